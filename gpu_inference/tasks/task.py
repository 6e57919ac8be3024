"""The task that a manifest names."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_inference.errors import ModelError
from gpu_inference.models.manifest import Classification, Detection, ImageInput, Manifest
from gpu_inference.tasks.answers import Task


def task_of(manifest: Manifest, labels: Sequence[str] = ()) -> Task:
    """Makes the task of a model.

    Args:
        manifest: of the model.
        labels: by class; `manifest.labels_of` reads them.
    """
    from gpu_inference.tasks import classification, detection

    match manifest.output:
        case Classification() as config:
            return classification.ClassificationTask(config, labels)
        case Detection() as config:
            assert isinstance(manifest.input, ImageInput)  # the manifest was checked
            return detection.DetectionTask(config, labels, manifest.input.size)
    raise ModelError(f"no task {manifest.output!r}: use classification or detection")
