"""ONNX graphs: exported, simplified, read, run and compared."""
