"""The training loop, and what a sparse method adds to it."""
