"""A user's own transform of training images, checked at each image."""

import multiprocessing
import pickle
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from sepc_zoo.data.transforms.mixing import Target
from sepc_zoo.errors import UserError
from sepc_zoo.ops.boxes import box_area

MAX_OUTSIDE = 1.0  # pixels by which boxes may leave the image, from rounding; they are clipped


class TransformError(UserError, ValueError):
    """A user's transform fails, or returns what does not fit; the message names the transform."""


def name_of(function: Callable[..., Any]) -> str:
    """The name of a function, or of the class of an object that can be called."""
    return getattr(function, "__qualname__", type(function).__qualname__)


@dataclass(frozen=True)
class OwnTransform:
    """Applies a user's transform to a uint8 image ``(C, H, W)`` and its target.

    The transform gets the image and the boxes as tv_tensors, so that one of
    ``torchvision.transforms.v2`` can be given as it is. It may change the size of the image, and
    drop or add boxes. The random numbers of torch, NumPy and Python follow from the seed of the
    image; afterwards the states of NumPy and Python are restored.

    Args:
        function: called as the argument ``transform`` of ``sepc_zoo.train`` describes.
        num_classes: number of classes of the data.
    """

    function: Callable[[Tensor, dict[str, Any]], tuple[Tensor, Mapping[str, Any]]]
    num_classes: int

    def check_workers(self) -> None:
        """Refuse a transform that cannot be sent to workers; forked workers have it already.

        Raises:
            TransformError: it cannot be pickled.
        """
        if multiprocessing.get_start_method() != "fork":
            try:
                pickle.dumps(self.function)
            except Exception as error:
                raise self.error(
                    f"cannot be sent to workers ({error}): define it at the top level of a module, "
                    "or train with workers=0"
                ) from error

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """Transform an image with its target.

        Raises:
            TransformError: the transform fails, or returns what is no image or target.
        """
        boxes = tv_tensors.BoundingBoxes(
            target["boxes"], format="XYXY", canvas_size=tuple(image.shape[-2:])
        )
        given = {name: target[name] for name in ("labels", "iscrowd", "image_id")}
        try:
            with seeded():
                result = self.function(tv_tensors.Image(image), {"boxes": boxes, **given})
        except Exception as error:
            raise self.error(f"failed: {type(error).__name__}: {error}") from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise self.error(f"returned {type(result).__name__}; it must return (image, target)")
        new_image = self.checked_image(result[0], len(image))
        columns = self.checked_columns(result[1], *new_image.shape[-2:])
        return new_image, target | columns | {"area": box_area(columns["boxes"])}

    def checked_image(self, image: Any, channels: int) -> Tensor:
        """Return a plain uint8 tensor ``(channels, H, W)``; refuse anything else."""
        wanted = f"a uint8 tensor ({channels}, H, W) in 0..255"
        if not isinstance(image, Tensor):
            raise self.error(f"returned a {type(image).__name__} as image; it must be {wanted}")
        shape = tuple(image.shape)
        if image.dtype != torch.uint8 or len(shape) != 3 or shape[0] != channels or 0 in shape:
            raise self.error(f"returned an image {image.dtype} {shape}; it must be {wanted}")
        return image.as_subclass(Tensor).contiguous()

    def checked_columns(self, target: Any, height: int, width: int) -> dict[str, Tensor]:
        """Return ``boxes (G, 4)``, ``labels (G,)``, ``iscrowd (G,)``; refuse what does not fit."""
        for name in ("boxes", "labels"):
            if not isinstance(target, Mapping) or not isinstance(target.get(name), Tensor):
                raise self.error(f"returned a target without a tensor {name!r}")
        boxes, labels = target["boxes"], target["labels"].as_subclass(Tensor)
        if isinstance(boxes, tv_tensors.BoundingBoxes):
            boxes = TF.convert_bounding_box_format(boxes, new_format="XYXY").as_subclass(Tensor)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise self.error(f"returned boxes {tuple(boxes.shape)}; they must be (G, 4), xyxy")
        if labels.shape != boxes.shape[:1] or labels.is_floating_point():
            raise self.error(
                f"returned labels {labels.dtype} {tuple(labels.shape)} for {len(boxes)} boxes; "
                "there must be one whole number for each box"
            )
        boxes, labels = boxes.float(), labels.long()
        limit = boxes.new_tensor([width, height, width, height]) + MAX_OUTSIDE
        is_bad = ~((boxes >= -MAX_OUTSIDE) & (boxes <= limit)).all(dim=1)  # also where it is NaN
        is_bad |= (boxes[:, 2:] < boxes[:, :2]).any(dim=1)
        if is_bad.any():
            raise self.error(
                f"returned the box {boxes[is_bad][0].tolist()} for an image of {width}x{height}; "
                "boxes must be xyxy in pixels, inside the image it returns"
            )
        if not ((labels >= 0) & (labels < self.num_classes)).all():
            found, last = labels.unique().tolist(), self.num_classes - 1
            raise self.error(f"returned the labels {found}; the classes are 0 to {last}")
        crowds = torch.as_tensor(target.get("iscrowd", torch.zeros_like(labels))).long()
        if crowds.shape != labels.shape:
            if crowds.any():
                raise self.error(
                    f"returned iscrowd {tuple(crowds.shape)} for {len(labels)} boxes; it must drop "
                    "their crowd flags with the boxes"
                )
            crowds = torch.zeros_like(labels)  # flags that are all 0 may be left as they were
        return {"boxes": boxes, "labels": labels, "iscrowd": crowds.as_subclass(Tensor)}

    def error(self, text: str) -> TransformError:
        return TransformError(f"transform {name_of(self.function)} {text}")


@contextmanager
def seeded() -> Iterator[None]:
    """Seed NumPy and Python by torch's random numbers, and restore their states afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    seed = int(torch.randint(2**31, ()))
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
