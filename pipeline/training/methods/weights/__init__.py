"""Methods that hold weights at 0 by masks; channels that lose all their weights are left to surgery's proof."""
