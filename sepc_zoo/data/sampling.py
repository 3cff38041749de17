"""Repeat-factor sampling: images with rare classes are used more often (Gupta et al. 2019)."""

import torch
from torch import Tensor

from sepc_zoo.data.annotations import Annotations


def repeat_factors(annotations: Annotations, threshold: float) -> tuple[Tensor, Tensor]:
    """Compute how often an epoch should use each class ``(K,)`` and each image ``(N,)``.

    A class c on a fraction f(c) of the images has ``max(1, sqrt(threshold / f(c)))``, an image the
    largest factor of its classes. Crowds do not count; an image without boxes comes once.
    """
    records, num_classes = annotations.records, len(annotations.label_names)
    pairs = torch.from_numpy(records.image * num_classes + records.labels)
    pairs = pairs[torch.from_numpy(records.iscrowd == 0)].unique()
    image, label = pairs // num_classes, pairs % num_classes
    fraction = label.bincount(minlength=num_classes).double() / len(records)
    of_class = (threshold / fraction).sqrt().clamp(min=1).where(fraction > 0, 1.0)
    ones = torch.ones(len(records), dtype=torch.float64)
    return of_class, ones.scatter_reduce(0, image, of_class[label], "amax")


def epoch_length(factors: Tensor) -> int:
    """Number of images of an epoch, the same for all epochs."""
    return int(factors.sum())


def draw_epoch(factors: Tensor, generator: torch.Generator) -> Tensor:
    """Draw the shuffled indices of an epoch; index i + k * N is the k-th copy of image i.

    Each image is drawn as often as its factor says, rounded up or down at random. By systematic
    sampling the sum is always the same, and the mean is the factor.
    """
    order = torch.randperm(len(factors), generator=generator)
    total, length = factors.sum(), epoch_length(factors)
    start = torch.rand((), generator=generator, dtype=torch.float64) * (length + 1 - total)
    ends = (factors[order].cumsum(0) + start).floor().long().clamp(max=length)
    ends[-1] = length  # the last bits of the sum may differ
    starts = ends.roll(1)
    starts[0] = 0
    images = order.repeat_interleave(ends - starts)
    copies = torch.arange(length) - starts.repeat_interleave(ends - starts)
    shuffled = torch.randperm(length, generator=generator)
    return (images + copies * len(factors))[shuffled]
