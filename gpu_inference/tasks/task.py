"""The task that a manifest names."""

from __future__ import annotations

from collections.abc import Sequence

from gpu_inference.models.manifest import (
    Classification,
    Detection,
    Embedding,
    ImageInput,
    Manifest,
    Raw,
    Regression,
    Segmentation,
    Series,
    SeriesInput,
)
from gpu_inference.tasks.answers import Task
from gpu_inference.tasks.classification import ClassificationTask
from gpu_inference.tasks.embedding import EmbeddingTask
from gpu_inference.tasks.raw import RawTask
from gpu_inference.tasks.regression import RegressionTask
from gpu_inference.tasks.series import SeriesTask


def task_of(manifest: Manifest, labels: Sequence[str] = ()) -> Task:
    """Makes the task of a model.

    Args:
        manifest: of the model.
        labels: by class; `manifest.labels_of` reads them.
    """
    match manifest.output, manifest.input:
        case Classification() as output, _:
            return ClassificationTask(output, labels)
        case Detection() as output, ImageInput() as picture:
            # compiled loops are imported by the tasks that need them
            from gpu_inference.tasks.detection import DetectionTask

            return DetectionTask(output, labels, picture.size)
        case Segmentation() as output, ImageInput() as picture:
            from gpu_inference.tasks.segmentation import SegmentationTask

            return SegmentationTask(output, labels, picture.size)
        case Embedding() as output, _:
            return EmbeddingTask(output)
        case Regression() as output, _:
            return RegressionTask(output)
        case Series() as output, SeriesInput() as series:
            return SeriesTask(output, series)
        case Raw() as output, _:
            return RawTask(output)
    raise AssertionError(manifest)  # checked where the manifest is read
