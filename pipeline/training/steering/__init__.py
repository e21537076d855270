"""Which channels fade, and when, to land on a target."""
