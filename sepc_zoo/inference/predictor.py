"""From images to ``Detections``: prediction with any detector."""

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sepc_zoo.config import DetectorConfig
from sepc_zoo.data.images import ImageError
from sepc_zoo.data.pixels import normalize, pad_and_stack, padded_size
from sepc_zoo.inference.detections import DetectionDict, Detections
from sepc_zoo.inference.preprocess import LoadedImage, open_images
from sepc_zoo.inference.tracking import Tracker
from sepc_zoo.inference.tta import SINGLE_VIEW, Views, detect_views
from sepc_zoo.inference.video import VIDEO_SUFFIXES, Video, VideoError, is_video
from sepc_zoo.ops.devices import to_device


class ImageDetector(Protocol):
    """The part of a model that prediction needs; ``detect`` takes inputs ``(C, h, w)`` in 0…255."""

    config: DetectorConfig

    def detect(self, images: Sequence[Tensor]) -> list[DetectionDict]: ...


@overload  # Any: a list, where the path is a folder's or the tensor a batch
def predict(
    model: ImageDetector,
    source: str | os.PathLike[str] | Tensor | Image.Image | np.ndarray | bytes,
    score_threshold: float = ...,
    views: Views = ...,
    batch_size: int = ...,
) -> Detections | Any: ...
@overload
def predict(
    model: ImageDetector,
    source: list[Any] | tuple[Any, ...] | Iterator[Any],
    score_threshold: float = ...,
    views: Views = ...,
    batch_size: int = ...,
) -> list[Detections]: ...
def predict(
    model: ImageDetector,
    source: Any,
    score_threshold: float = 0.3,
    views: Views = SINGLE_VIEW,
    batch_size: int = 1,
) -> Detections | list[Detections]:
    """Find the objects in an image, or in each of many; the model runs in eval mode.

    Args:
        source: an image file, its URL or its bytes, PIL image, ndarray ``(H, W)`` or ``(H, W, 3)``,
            or tensor ``(1, H, W)`` or ``(3, H, W)``, of uint8, uint16 or float in 0…1; or many: a
            folder, a list, tuple or iterator of these, or a tensor ``(N, 3, H, W)``.
            A model of C other channels takes C of them.
        score_threshold: lowest score of a detection. Scores under the config's
            ``postprocess.score_threshold`` are dropped before.
        views: mirror images, sizes and tiles, see ``Views``.
        batch_size: number of images that are read at a time; those of the same padded size go
            through the network together. It changes the results only by rounding.

    Returns:
        ``Detections`` in pixels of the image; for many images a list of them.

    Raises:
        ImageError: a file is missing or no image. In a folder it is left out with a warning.
        TypeError: the source is of no such type.
        ValueError: pixels of another shape, type or range.
    """
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() in VIDEO_SUFFIXES:
        raise ImageError(f"{source}: is a video; model.stream gives its frames one by one")
    images, single = open_images(source, len(model.config.weights.mean))
    batches = detect_batches(model, images, score_threshold, views, batch_size)
    found = [detections for batch in batches for _, detections in batch]
    return found[0] if single else found


def stream(
    model: ImageDetector,
    source: Any,
    score_threshold: float = 0.3,
    views: Views = SINGLE_VIEW,
    batch_size: int = 1,
    *,
    every: int = 1,
    track: bool = False,
) -> Iterator[Detections]:
    """Find the objects in images or frames, one after the other, in constant memory.

    Args:
        source: a video file, its URL, the address of a stream (``rtsp://…``), a camera's index or
            device (``/dev/video0``), all that ``predict`` takes, or a list or iterator of these.
        score_threshold: lowest score of a detection.
        views: mirror images and sizes for test-time augmentation.
        batch_size: number of images that are read before the first of them is detected.
        every: detect in every n-th frame of a video.
        track: follow objects from frame to frame; their numbers are ``Detections.track_ids``.

    Yields:
        ``Detections`` of each image. Those of a frame hold its pixels ``(C, H, W)``.

    Raises:
        VideoError: a video cannot be opened, ends too early or stalls, after what could be read.
            Frames that cannot be decoded are left out; a warning at the end tells how many.
        TrackError: the library for tracks is missing.
        ImageError: an image cannot be read. In a folder it is left out with a warning.
    """
    if every < 1:
        raise ValueError(f"every is {every}; it must be at least 1")
    images = _images_and_frames(source, len(model.config.weights.mean), every)
    tracker = Tracker(score_threshold) if track else None
    batches = detect_batches(model, images, score_threshold, views, batch_size, tracker)
    return (detections for batch in batches for _, detections in batch)


def detect_batches(
    model: ImageDetector,
    images: Iterable[LoadedImage],
    score_threshold: float,
    views: Views = SINGLE_VIEW,
    batch_size: int = 1,
    tracker: Tracker | None = None,
) -> Iterator[list[tuple[LoadedImage, Detections]]]:
    """Find the objects in images, batch by batch; the model runs in eval mode."""
    config = model.config
    for batch in _batched(images, batch_size):
        with eval_mode(model):
            inputs = [views.of_image(image.pixels, config) for image in batch]
            found = detect_views(model.detect, inputs, config.postprocess)
        if tracker is not None:
            for one, image in zip(found, batch, strict=True):
                one["track_ids"] = tracker.update(one, image.time)
        yield [
            (image, Detections.from_dict(one, score_threshold, config, image.path or image.pixels))
            for image, one in zip(batch, found, strict=True)
        ]


def _batched(images: Iterable[LoadedImage], size: int) -> Iterator[list[LoadedImage]]:
    """Group images in lists; before an error of one image, those read before it are yielded."""
    if size < 1:
        raise ValueError(f"batch_size is {size}; it must be at least 1")
    batch: list[LoadedImage] = []
    try:
        for image in images:
            batch.append(image)
            if len(batch) == size:
                yield batch
                batch = []
    except Exception:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _images_and_frames(source: Any, channels: int, every: int) -> Iterator[LoadedImage]:
    if is_video(source):
        with Video(source, channels, every) as video:
            yield from video
            if video.damaged:
                warnings.warn(video.damage, stacklevel=2)
            if video.faults:
                raise VideoError("; ".join(video.faults))
    elif isinstance(source, list | tuple | Iterator):
        for one in source:
            yield from _images_and_frames(one, channels, every)
    else:
        yield from open_images(source, channels)[0]


@torch.no_grad()
def detect(network: Any, images: Sequence[Tensor]) -> list[DetectionDict]:
    """Find objects in inputs ``(C, h, w)`` in 0…255; boxes are in the pixels of each input.

    The network is a ``Detector``, which this module must not import. Inputs of the same padded size
    go through it together, others do not: padding beyond what an image needs would change its
    detections.
    """
    weight, conventions = next(network.parameters()), network.config.weights
    precision = torch.promote_types(weight.dtype, torch.float32)
    same_size = defaultdict(list)
    for i, image in enumerate(images):
        same_size[padded_size(image, conventions.pad_multiple)].append(i)
    detections: dict[int, DetectionDict] = {}
    for indices in same_size.values():
        group = [to_device(images[i], weight.device) for i in indices]
        sizes = [(image.shape[-2], image.shape[-1]) for image in group]
        batch = pad_and_stack(group, conventions.pad_multiple)
        batch = normalize(batch, sizes, conventions.mean, conventions.std, precision)
        targets = [{"image_size": size} for size in sizes]
        found = network.postprocess(network(batch.to(weight.dtype), targets), sizes)
        detections.update(zip(indices, found, strict=True))
    return [detections[i] for i in range(len(images))]


@contextmanager
def eval_mode(model: object) -> Iterator[None]:
    """Put a module in eval mode inside the context; then restore the mode of each submodule."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in training:  # one by one: a frozen backbone stays in eval mode
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
