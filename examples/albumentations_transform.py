"""Albumentations for training images: ``python examples/albumentations_transform.py DATA``."""

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import sepc_zoo

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # no question to PyPI for a newer version
import albumentations as A


class Albumentations:
    """Apply transforms of Albumentations to an image and its boxes.

    Boxes of which less than ``min_visibility`` remains are left out, with their labels.
    """

    def __init__(self, transforms: Sequence[Any], min_visibility: float = 0.3) -> None:
        boxes = A.BboxParams(
            "pascal_voc",  # xyxy pixels
            label_fields=["labels", "iscrowd"],
            min_visibility=min_visibility,
            clip=True,
            filter_invalid_bboxes=True,
        )
        self.compose = A.Compose(transforms, bbox_params=boxes)

    def __call__(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        # Its own random numbers would differ between workers, and after an interruption.
        self.compose.set_random_seed(int(torch.randint(2**31, ())))
        result = self.compose(
            image=image.permute(1, 2, 0).numpy(),
            bboxes=target["boxes"].numpy(),
            labels=target["labels"].numpy(),
            iscrowd=target["iscrowd"].numpy(),
        )
        columns = {
            name: torch.as_tensor(result[name], dtype=torch.int64) for name in ("labels", "iscrowd")
        }
        boxes = torch.as_tensor(result["bboxes"], dtype=torch.float32).reshape(-1, 4)
        return torch.from_numpy(result["image"]).permute(2, 0, 1), {"boxes": boxes, **columns}


def main(data: str) -> None:
    """Fine-tune a small model with a rotation and fog."""
    transforms = [A.Rotate(10, p=0.5), A.RandomFog(p=0.2), A.CLAHE(p=0.2)]
    result = sepc_zoo.train(
        data=data,
        model="gfl_mnv2_sepc_lite",
        pretrained_backbone=True,
        image_size=(480, 640),
        epochs=12,
        transform=Albumentations(transforms),
        draw_batches=2,  # see batches/ in the run folder
    )
    print(result)


if __name__ == "__main__":
    main(sys.argv[1])
