"""Models of other formats, through the ONNX exporters of their own libraries, where those are installed."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from gpu_inference.errors import ModelError, RecipeError

#: By ending: whose format it is, what to install, and what exports it then.
_ELSEWHERE: Final = {
    ".h5": (
        "Keras",
        "pip install tf2onnx tensorflow",
        "python -m tf2onnx.convert --keras MODEL --output model.onnx",
    ),
    ".keras": ("Keras", "pip install tf2onnx tensorflow", "model.export('model.onnx', format='onnx')"),
    ".pb": (
        "TensorFlow",
        "pip install tf2onnx tensorflow",
        "python -m tf2onnx.convert --saved-model FOLDER --output model.onnx",
    ),
    ".tflite": (
        "TensorFlow Lite",
        "pip install tf2onnx tensorflow",
        "python -m tf2onnx.convert --tflite MODEL --output model.onnx",
    ),
    ".joblib": ("scikit-learn", "pip install skl2onnx", "skl2onnx.to_onnx(model, sample)"),
    ".pkl": ("scikit-learn", "pip install skl2onnx", "skl2onnx.to_onnx(model, sample)"),
    ".safetensors": ("weights alone", "pip install torch", "torch.onnx.export(module, inputs, 'model.onnx')"),
}
_SCRIPTS: Final = (".pt", ".pth", ".ts", ".torchscript")
_PROGRAMS: Final = (".pt2",)


def read_any(path: Path, shapes: Sequence[Sequence[int]] = ()) -> Path | bytes:
    """What `load_model` takes: the path of an ONNX file, or an exported model.

    Args:
        path: of an .onnx file, a TorchScript (.pt, .pth, .ts) or a program of torch.export (.pt2).
        shapes: of the inputs of a TorchScript, which doesn't say them.

    Raises:
        ModelError: the library of the format isn't installed, or its exporter refuses the model.
        RecipeError: shapes are missing.
    """
    ending = path.suffix.lower()
    if ending in _SCRIPTS or ending in _PROGRAMS:
        return _from_torch(path, shapes, script=ending in _SCRIPTS)
    if ending in _ELSEWHERE:
        name, install, command = _ELSEWHERE[ending]
        raise ModelError(f"'{path.name}' is {name}, not ONNX: {install}, then {command}, and take its result")
    return path


def _from_torch(path: Path, shapes: Sequence[Sequence[int]], *, script: bool) -> bytes:
    torch = _module("torch", path, "torch")
    if script and not shapes:
        raise RecipeError(
            f"'{path.name}' doesn't say the shapes of its inputs: give each with --shape 1,3,224,224"
        )
    if not script:
        _module("onnxscript", path, "torch onnxscript")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model.onnx"
        try:
            if script:
                module = torch.jit.load(str(path), map_location="cpu").eval()
                examples = tuple(torch.zeros(tuple(shape)) for shape in shapes)
                names = [f"x{index}" for index in range(len(shapes))]
                free = {name: {0: "n"} for name in names}
                torch.onnx.export(
                    module,
                    examples,
                    str(target),
                    input_names=names,
                    dynamic_axes=free,
                    opset_version=18,
                    dynamo=False,
                )
            else:
                torch.onnx.export(torch.export.load(str(path)), (), str(target), dynamo=True)
            return target.read_bytes()
        except Exception as error:
            hint = "save it with torch.jit.script(model).save(...) or torch.export.save(...)"
            raise ModelError(f"PyTorch can't export '{path.name}' ({error}): {hint}") from error


def _module(name: str, path: Path, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ModelError(
            f"'{path.name}' is a PyTorch model, and {name} is not installed: pip install {install}, "
            "or export it elsewhere with torch.onnx.export"
        ) from None
