"""A graph in a lower precision that keeps its answers."""
