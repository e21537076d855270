"""Rules of operations that move values and compute none: the ids of channels move the same way."""
