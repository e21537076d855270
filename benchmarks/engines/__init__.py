"""What becomes of a network after the cut: exports, converters, lower precision, and the gate's power."""
