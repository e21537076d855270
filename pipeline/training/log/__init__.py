"""What a training has seen: the history, and the same as TensorBoard events."""
