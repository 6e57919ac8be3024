"""ONNX graphs on one OpenCL device."""
