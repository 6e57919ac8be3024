"""ONNX models as small graphs of nodes, and the passes that rewrite them."""
