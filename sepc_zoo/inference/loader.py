"""What a detector sees in many photo files, in batches that are dealt out to the processes."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import BatchSampler, DataLoader, Dataset

from sepc_zoo.config import WeightsConfig
from sepc_zoo.data.images import ImageError, read_image
from sepc_zoo.inference.preprocess import Photo
from sepc_zoo.inference.tta import Found, PhotoInput, Views, look
from sepc_zoo.models.detector import Detector
from sepc_zoo.training.resilience.signals import shield_workers


class PhotoFile(NamedTuple):
    """A photo file that was opened."""

    position: int  # among all files
    input: PhotoInput | None = None  # None: it cannot be read
    pixels: Tensor | None = None  # 3, H, W uint8 RGB, where they are kept
    problem: str = ""  # why it cannot be read; names the file


class PhotoFiles(Dataset[PhotoFile]):
    """Files as a model wants them; one that cannot be read says why."""

    def __init__(
        self,
        files: Sequence[Path],
        weights: WeightsConfig,
        views: Views,
        keep_pixels: bool = False,
    ) -> None:
        views.sizes(weights)  # refuses what is too large here rather than in a worker
        self.files = files
        self.weights = weights
        self.views = views
        self.keep_pixels = keep_pixels

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> PhotoFile:
        try:
            pixels = read_image(self.files[index])
        except ImageError as error:
            return PhotoFile(index, problem=str(error))
        inputs = self.views.inputs(Photo(pixels), self.weights)
        return PhotoFile(index, inputs, pixels if self.keep_pixels else None)


def photo_loader(photos: PhotoFiles, batch_size: int, workers: int) -> DataLoader:
    """This process's share of the photos, in lists of ``PhotoFile``. Not for accelerate to prepare.

    accelerate would show photos twice, so that every process gets as many batches. Here one may get
    a batch more than another, and nothing may wait for the other processes before the last batch.
    """
    batches = share_of_batches(len(photos), batch_size, *_rank_and_processes())
    workers = workers if len(batches) > 1 else 0
    loader = DataLoader(
        photos,
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=list,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # leaves the training's own numbers alone
    )
    return shield_workers(loader)


def share_of_batches(length: int, batch_size: int, rank: int, processes: int) -> list[list[int]]:
    """The indices in each batch of a process: every n-th of the batches that one alone would see.

    A photo is thus in the same company, and found to hold the same, with any number of processes.
    """
    batches = BatchSampler(range(length), batch_size, drop_last=False)
    return list(batches)[rank::processes]


def find_objects(
    detector: Detector, photos: Sequence[PhotoFile]
) -> list[tuple[PhotoFile, Found | None]]:
    """Each photo and what is in it, in its own pixels; None where it cannot be read."""
    inputs = [photo.input for photo in photos if photo.input is not None]
    found = iter(look(detector.detect, inputs, detector.config))
    return [(photo, None if photo.input is None else next(found)) for photo in photos]


def _rank_and_processes() -> tuple[int, int]:
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1
