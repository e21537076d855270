"""Training of an int8 graph: the fp32 graph in torch, every value behind a pair rounded as the graph rounds it."""
