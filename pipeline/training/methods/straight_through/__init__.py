"""Methods whose optimizer moves dense weights, while the network computes with masked ones."""
