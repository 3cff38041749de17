"""From images to ``Detections``: prediction with any detector."""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sepc_zoo.config import DetectorConfig
from sepc_zoo.data.pixels import normalize, pad_and_stack, padded_size
from sepc_zoo.inference.detections import DetectionDict, Detections
from sepc_zoo.inference.preprocess import open_images
from sepc_zoo.inference.tta import SINGLE_VIEW, Views, detect_views
from sepc_zoo.ops.devices import to_device


class ImageDetector(Protocol):
    """A model as prediction knows it: it finds objects in images of any sizes."""

    config: DetectorConfig

    def detect(self, images: Sequence[Tensor]) -> list[DetectionDict]:
        """Find objects in each input ``(C, h, w)`` in 0…255, in its own pixels."""
        ...


class DetectionNetwork(Protocol):
    """A network as :func:`detect` knows it: a batch to outputs, outputs to detections."""

    config: DetectorConfig

    def __call__(self, images: Tensor, targets: Sequence[Mapping[str, Any]] | None = None) -> Any:
        """Targets tell the ``image_size`` of each image inside the batch."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def postprocess(
        self, outputs: Any, image_sizes: Sequence[tuple[int, int]]
    ) -> list[DetectionDict]: ...


@overload
def predict(
    model: ImageDetector,
    source: Image.Image | np.ndarray | bytes,
    score_threshold: float = ...,
    views: Views = ...,
) -> Detections: ...
@overload  # Any: a list, where the path is a folder's or the tensor a batch
def predict(
    model: ImageDetector,
    source: str | os.PathLike[str] | Tensor,
    score_threshold: float = ...,
    views: Views = ...,
) -> Detections | Any: ...
@overload
def predict(
    model: ImageDetector,
    source: list[Any] | tuple[Any, ...] | Iterator[Any],
    score_threshold: float = ...,
    views: Views = ...,
) -> list[Detections]: ...
def predict(
    model: ImageDetector, source: Any, score_threshold: float = 0.3, views: Views = SINGLE_VIEW
) -> Detections | list[Detections]:
    """Find the objects in an image, or in each of many; the model runs in eval mode.

    Args:
        source: an image file, its URL or its bytes, PIL image, ndarray ``(H, W)`` or ``(H, W, 3)``,
            or tensor ``(1, H, W)`` or ``(3, H, W)``, of uint8, uint16 or float in 0…1; or many: a
            folder, a list, tuple or iterator of these, or a tensor ``(N, 3, H, W)``.
            A model of C other channels takes C of them.
        score_threshold: lowest score of a detection. Scores under the config's
            ``postprocess.score_threshold`` are dropped before.
        views: mirror images and sizes for test-time augmentation.

    Returns:
        ``Detections`` in pixels of the image; for many images a list of them.

    Raises:
        ImageError: a file is missing or no image. In a folder it is left out with a warning.
        TypeError: the source is of no such type.
        ValueError: pixels of another shape, type or range.
    """
    config, found = model.config, []
    images, single = open_images(source, len(config.weights.mean))
    with eval_mode(model):
        for pixels, path in images:
            inputs = views.of_image(pixels, config)
            (detections,) = detect_views(model.detect, [inputs], config.postprocess)
            found.append(Detections.from_dict(detections, score_threshold, config, path or pixels))
    return found[0] if single else found


@torch.no_grad()
def detect(network: DetectionNetwork, images: Sequence[Tensor]) -> list[DetectionDict]:
    """Find objects in inputs ``(C, h, w)`` in 0…255, in the pixels of each input.

    Inputs that have one size when padded go through the network together, others do not: padding
    beyond what an image needs would change its detections.
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
    """Put a module in eval mode for a while; each of its modules gets its own mode back."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in training:  # one by one, as a frozen backbone stays in eval mode
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
