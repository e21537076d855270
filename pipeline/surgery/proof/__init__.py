"""That the compact network computes the same function."""
