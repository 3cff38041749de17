"""Detection in many image files: batches that workers read and processes share."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate import PartialState
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset

from sepc_zoo.config import DetectorConfig
from sepc_zoo.data.images import ImageError
from sepc_zoo.data.resilient_loader import shield_workers
from sepc_zoo.inference.detections import DetectionDict
from sepc_zoo.inference.predictor import ImageDetector
from sepc_zoo.inference.preprocess import ImageSource, open_image
from sepc_zoo.inference.tta import SINGLE_VIEW, ImageView, Views, detect_views


class OpenedFile(NamedTuple):
    """An image file that was opened."""

    position: int  # index among all files
    views: list[ImageView] | None = None  # None: the file cannot be read
    pixels: Tensor | None = None  # (C, H, W) uint8, where they are kept
    problem: str = ""  # why the file cannot be read; names it


@dataclass(eq=False)
class ImageFiles(Dataset[OpenedFile]):
    """Image files or URLs as views for a model; an unreadable one gives an item that says why."""

    files: Sequence[ImageSource]
    config: DetectorConfig
    views: Views = SINGLE_VIEW
    keep_pixels: bool = False

    def __post_init__(self) -> None:
        self.views.bounds(self.config)  # refuses what is too large here rather than in a worker

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> OpenedFile:
        try:
            pixels = open_image(self.files[index], len(self.config.weights.mean)).pixels
        except ImageError as error:
            return OpenedFile(index, problem=str(error))
        views = self.views.of_image(pixels, self.config)
        return OpenedFile(index, views, pixels if self.keep_pixels else None)


def image_loader(images: ImageFiles, batch_size: int, workers: int) -> DataLoader:
    """Load this process's share of the files, in lists of ``OpenedFile``.

    Do not prepare the loader with ``accelerate``, which would repeat images until every process has
    as many batches. Here one process may get a batch more than another, so that none may wait for
    the others before its last batch.
    """
    process, every = PartialState(), BatchSampler(range(len(images)), batch_size, drop_last=False)
    # An image is in the same batch, and gets the same detections, with any number of processes.
    batches = list(every)[process.process_index :: process.num_processes]
    workers = workers if len(batches) > 1 else 0
    loader = DataLoader(
        images,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=list,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # leaves the random numbers of a training alone
    )
    return shield_workers(loader)


def detect_files(
    model: ImageDetector, files: Sequence[OpenedFile]
) -> list[tuple[OpenedFile, DetectionDict | None]]:
    """Detect objects in each image of a batch, in its pixels; None if its file cannot be read."""
    readable = [file.views for file in files if file.views is not None]
    detections = iter(detect_views(model.detect, readable, model.config.postprocess))
    return [(file, None if file.views is None else next(detections)) for file in files]
