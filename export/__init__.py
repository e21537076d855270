"""From a network to files that a server loads: ONNX, TensorRT engines, a Triton model repository."""
