"""Rules of layers with parameters: what their weights mix, scale and let through."""
