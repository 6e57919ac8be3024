"""Inference engines: arrays in, arrays out."""

from gpu_inference.errors import DeviceError, EngineError, KernelError, ModelError
from gpu_inference.graph.ir import TensorInfo
from gpu_inference.session import Session, load

__all__ = ["DeviceError", "EngineError", "KernelError", "ModelError", "Session", "TensorInfo", "load"]
