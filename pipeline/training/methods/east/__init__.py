"""Training at extreme sparsity with richer activations at first, shared blocks and a density that comes and goes."""
