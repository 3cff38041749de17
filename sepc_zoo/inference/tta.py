"""Test-time augmentation: several views of a photo make one answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from msgspec.structs import replace
from torch import Tensor
from torchvision.ops import batched_nms

from sepc_zoo.config import ConfigError, DetectorConfig, PostprocessConfig, WeightsConfig
from sepc_zoo.inference.preprocess import Photo, to_photo

Found = dict[str, Tensor]  # boxes (D, 4), scores (D,), labels (D,), by falling score


@dataclass(frozen=True)
class Views:
    """How a photo is looked at: in each size as it is and, if asked for, as its mirror image.

    Attributes:
        flip: the mirror images too.
        scales: factors of the model's own image size.
    """

    flip: bool = False
    scales: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.scales or not all(0.1 <= scale <= 10 for scale in self.scales):
            raise ConfigError(f"scales {list(self.scales)}: expected factors of 0.1 to 10")

    def inputs(self, photo: Photo, weights: WeightsConfig) -> "PhotoInput":
        """The photo in each size."""
        images = [photo.to_input(scaled) for scaled in self.sizes(weights)]
        return PhotoInput(photo.size, images, self)

    def sizes(self, weights: WeightsConfig) -> list[WeightsConfig]:
        """What the weights expect, with each of the image sizes."""
        short, long = weights.image_size
        return [
            replace(weights, image_size=(_scaled(short, scale), _scaled(long, scale)))
            for scale in self.scales
        ]


PLAIN = Views()


class PhotoInput(NamedTuple):
    """A photo as the network's input."""

    size: tuple[int, int]  # height and width of the photo
    images: list[Tensor]  # (3, h, w) uint8: one for each scale
    views: Views


@torch.no_grad()
def look(
    detect: Callable[[Sequence[Tensor]], list[Found]],
    photos: Sequence[PhotoInput],
    config: DetectorConfig,
) -> list[Found]:
    """What is in each photo, in its own pixels: what all of its views show, on the CPU.

    Args:
        detect: what is in images ``(3, h, w)`` uint8, in their own pixels: ``Detector.detect``.
        photos: all for the same views.
        config: the detector's.
    """
    if not photos:
        return []
    views, by_view = photos[0].views, []
    for i, weights in enumerate(views.sizes(config.weights)):
        scaled = replace(config, weights=weights)
        images = [photo.images[i] for photo in photos]
        for mirrored in (False, True)[: 1 + views.flip]:
            found = detect([image.flip(-1) for image in images] if mirrored else images)
            triples = zip(found, photos, images, strict=True)
            by_view.append(
                [_in_photo(f, photo, image, mirrored, scaled) for f, photo, image in triples]
            )
    return [merge(of_photo, config.postprocess) for of_photo in zip(*by_view, strict=True)]


def merge(found: Sequence[Found], config: PostprocessConfig) -> Found:
    """What several views of a photo show: class-wise non-maximum suppression over all of it."""
    if len(found) == 1:
        return found[0]
    boxes, scores, labels = (
        torch.cat([one[name] for one in found]) for name in ("boxes", "scores", "labels")
    )
    keep = batched_nms(boxes.double(), scores.double(), labels, config.iou_threshold)
    keep = keep[: config.max_detections]
    return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}


def mirror_boxes(boxes: Tensor, width: float) -> Tensor:
    """Boxes ``(D, 4)`` of an image ``width`` wide, in its mirror image."""
    x1, y1, x2, y2 = boxes.unbind(dim=1)
    return torch.stack([width - x2, y1, width - x1, y2], dim=1)


def _in_photo(
    found: Found, photo: PhotoInput, image: Tensor, mirrored: bool, config: DetectorConfig
) -> Found:
    height, width = image.shape[-2:]
    boxes = mirror_boxes(found["boxes"], width) if mirrored else found["boxes"]
    found = found | {"boxes": to_photo(boxes, photo.size, (height, width), config)}
    return {name: values.cpu() for name, values in found.items()}


def _scaled(side: int, scale: float) -> int:
    return max(1, int(side * scale + 0.5))
