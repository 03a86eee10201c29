"""A trained network for other programs: an ONNX graph, a PyTorch state dict, a safetensors file, and a model card."""
