"""From annotations to batches, the same with any number of workers and processes."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from sepc_zoo.data.annotations import Annotations, Record, Size
from sepc_zoo.data.images import ImageError, fitting_reduction, read_image
from sepc_zoo.data.pixels import normalize, pad_and_stack, resized_size
from sepc_zoo.data.sampling import draw_epoch, epoch_length
from sepc_zoo.data.transforms.mixing import GREY, Mixer, Sample, Target, scale, select
from sepc_zoo.data.transforms.own import TransformError
from sepc_zoo.data.transforms.pipeline import Transform
from sepc_zoo.ops.devices import to_device


class Batch(NamedTuple):
    """Images padded to one size, with their targets."""

    images: Tensor  # (N, C, H, W), uint8; of the default dtype once ``normalized``
    targets: list[Target]
    image_sizes: list[Size]  # (height, width) of each image without its padding

    def normalized(
        self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu"
    ) -> "Batch":
        """Move the images to the device as uint8 and normalise them there.

        Targets stay on the host, where they are checked without synchronising the device.
        """
        images = to_device(self.images, device)
        return self._replace(images=normalize(images, self.image_sizes, mean, std))

    @property
    def unreadable(self) -> list[str]:
        """Messages of the images that cannot be read."""
        return [text for target in self.targets for text in target["unreadable"]]


@dataclass(eq=False)
class DetectionDataset(Dataset[tuple[Tensor, Target]]):
    """The images of ``annotations`` with their targets, each through ``transform``.

    Random augmentation is a function of seed, epoch and index alone, also after an interruption.
    Index i + k * N is image i of N again, augmented in another way. ``set_epoch`` also reaches
    persistent workers.

    An image that can no longer be read becomes grey and has no boxes; ``unreadable`` of its target
    names the reason.

    Args:
        mix: Combines images before the transform.
        largest: The largest short and long side of an image after the transform; JPEGs of at least
            twice the size are then decoded at a fraction of it. None: decoded whole.
        channels: Number of channels of the images, as in ``read_image``.
        factors: How often each image ``(N,)`` is used in a shuffled epoch, as itself or mixed into
            another, see ``repeat_factors``. None: once.
    """

    annotations: Annotations
    transform: Transform
    seed: int = 0
    mix: Mixer | None = None
    largest: tuple[float, float] | None = None
    channels: int = 3
    factors: Tensor | None = None

    def __post_init__(self) -> None:
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._ends = None if self.factors is None else self.factors.cumsum(0)

    def __len__(self) -> int:
        return len(self.annotations.records)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        sample = self.read(index % len(self))
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed would seed the accelerators as well, whose state is not forked here
            torch.default_generator.manual_seed(_stable_seed(self.seed, self.epoch, index))
            if self.mix is not None and self.mix.is_on(self.epoch):
                sample = self.mix(sample, self.draw)
            try:
                return self.transform(*sample)
            except TransformError as error:
                path = self.annotations.records.path(index % len(self))
                raise TransformError(f"{path}: {error}") from error

    def read(self, index: int) -> Sample:
        """Read an image, at a fraction of its size where ``largest`` allows it, and its target."""
        record = self.annotations.records[index]
        target, reduction = make_target(record), 1
        if self.largest is not None:
            reduction = fitting_reduction(record.size, resized_size(*record.size, *self.largest))
        try:
            image = read_image(record.path, reduction, self.channels)
        except ImageError as error:
            grey = torch.full((self.channels, *record.size), GREY, dtype=torch.uint8)
            nothing = select(target, torch.zeros(len(record.boxes), dtype=torch.bool))
            return grey, nothing | {"unreadable": [str(error)]}
        y, x = image.shape[-2] / record.size[0], image.shape[-1] / record.size[1]
        return image, target if x == y == 1 else scale(target, x, y)

    def draw(self) -> Sample:
        """Read a random image, with a probability in proportion to its factor."""
        if self._ends is None:
            return self.read(int(torch.randint(len(self), ())))
        place = torch.rand((), dtype=self._ends.dtype) * self._ends[-1]
        return self.read(int(torch.searchsorted(self._ends, place).clamp(max=len(self) - 1)))

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def subset(self, indices: Sequence[int]) -> "DetectionDataset":
        """Build the data set of the images at ``indices``."""
        records = self.annotations.records.take(indices)
        factors = None if self.factors is None else self.factors[list(indices)]
        return replace(
            self, annotations=replace(self.annotations, records=records), factors=factors
        )


@dataclass(eq=False)
class EpochSampler(Sampler[int]):
    """Shuffles by seed and epoch; the epoch is kept by the data set alone."""

    dataset: DetectionDataset
    seed: int

    def __len__(self) -> int:
        factors = self.dataset.factors
        return len(self.dataset) if factors is None else epoch_length(factors)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(_stable_seed(self.seed, self.dataset.epoch))
        if self.dataset.factors is None:
            yield from torch.randperm(len(self.dataset), generator=generator).tolist()
        else:
            yield from draw_epoch(self.dataset.factors, generator).tolist()

    def set_epoch(self, epoch: int) -> None:
        # accelerate calls either this or the data set's, depending on the number of processes
        self.dataset.set_epoch(epoch)


def collate(samples: Sequence[tuple[Tensor, Target]], multiple: int = 32) -> Batch:
    """Make a batch of samples, its sides multiples of ``multiple`` (see ``pad_and_stack``)."""
    images = [image for image, _ in samples]
    sizes = [(image.shape[-2], image.shape[-1]) for image in images]
    targets = [
        target | {"image_size": size} for (_, target), size in zip(samples, sizes, strict=True)
    ]
    return Batch(pad_and_stack(images, multiple), targets, sizes)


def make_loader(
    dataset: DetectionDataset,
    batch_size: int,
    *,
    shuffle: bool,
    seed: int,
    workers: int,
    multiple: int,
    drop_last: bool,
) -> DataLoader:
    """Load batches of a data set, shuffled by seed and epoch.

    Call ``dataset.set_epoch`` before each epoch, or the loader's where accelerate has prepared it.
    """
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(dataset, seed) if shuffle else None,
        num_workers=workers,
        collate_fn=partial(collate, multiple=multiple),
        drop_last=drop_last,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),  # leaves torch's default generator alone
    )


def make_target(record: Record) -> Target:
    """Make the target of an image, in the pixels of its file.

    It has ``boxes (G, 4)``, ``labels (G,)``, ``iscrowd (G,)``, ``area (G,)``, ``image_id``, and
    ``unreadable``: messages of images that cannot be read, none here.
    """
    # Copies: a record's tensors are views of the whole data set's, and must stay as they are.
    return {
        "boxes": record.boxes.clone(),
        "labels": record.labels.clone(),
        "iscrowd": record.iscrowd.clone(),
        "area": record.area.float(),
        "image_id": record.image_id,
        "unreadable": [],
    }


def _stable_seed(*parts: int) -> int:
    """Derive a seed from numbers, the same on every machine; neighbours give unrelated seeds."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
