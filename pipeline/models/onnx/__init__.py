"""An ONNX file as a torch network: the same function by torch's own layers, each holding the file's weights."""

from pipeline.models.onnx.convert import Network
from pipeline.models.onnx.network import network_from_model, network_from_onnx

__all__ = ["Network", "network_from_model", "network_from_onnx"]
