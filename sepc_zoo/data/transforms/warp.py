"""Rotation, shear, shift and perspective of an image with its boxes, as one warp.

torchvision's own transforms would each interpolate the pixels again, and clip each box to the image
before it is known how much of the box is left.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as TF

from sepc_zoo.data.transforms.mixing import GREY, Target, clip_target, uniform


@dataclass(frozen=True)
class Warp:
    """Warps an image around its middle at random; see ``Augmentation`` for the strengths.

    A box becomes the hull of its warped corners, and stays if the hull's centre is in the image.
    """

    degrees: float
    shear: float
    translate: float
    perspective: float

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        height, width = image.shape[-2:]
        matrix = self.draw_matrix(height, width)
        warped = tv_tensors.Image(warp_image(image, matrix))
        return warped, clip_target(warp_target(target, matrix), height, width)

    def draw_matrix(self, height: int, width: int) -> Tensor:
        """Draw a projection ``(3, 3)`` from pixels of the image to those of the warped one."""
        shift = [side * uniform(-self.translate, self.translate) for side in (width, height)]
        angle = math.radians(uniform(-self.degrees, self.degrees))
        x, y = (math.tan(math.radians(uniform(-self.shear, self.shear))) for _ in range(2))
        cos, sin = math.cos(angle), math.sin(angle)
        # Positive over the whole image: |u| + |v| < 1 for each of its points.
        u, v = (uniform(-self.perspective, self.perspective) * 2 / s for s in (width, height))
        steps = (
            [[1, 0, width / 2 + shift[0]], [0, 1, height / 2 + shift[1]], [0, 0, 1]],
            [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]],
            [[1, x, 0], [y, 1, 0], [0, 0, 1]],
            [[1, 0, 0], [0, 1, 0], [u, v, 1]],
            [[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]],
        )
        return torch.linalg.multi_dot([torch.tensor(step, dtype=torch.float64) for step in steps])


def warp_image(image: Tensor, matrix: Tensor) -> Tensor:
    """Warp ``(C, H, W)``, bilinear; pixels from outside the image become grey."""
    inverse = torch.linalg.inv(matrix).flatten()
    coefficients = (inverse[:8] / inverse[8]).tolist()
    return TF.perspective(image, None, None, fill=GREY, coefficients=coefficients)


def warp_target(target: Target, matrix: Tensor) -> Target:
    """Replace each box by the hull of its warped corners; areas grow as the box itself does."""
    boxes = target["boxes"].as_subclass(Tensor)
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].view(-1, 4, 2)  # around the box
    x, y, w = (F.pad(corners.to(matrix), (0, 1), value=1.0) @ matrix.T).unbind(dim=-1)
    x, y = x / w, y / w
    hulls = torch.stack([x.amin(1), y.amin(1), x.amax(1), y.amax(1)], dim=1).to(boxes)
    (ax, bx), (ay, by) = ((side[:, 2:] - side[:, :2]).unbind(1) for side in (x, y))  # diagonals
    sides = boxes[:, 2:] - boxes[:, :2]
    growth = (ax * by - ay * bx).abs() / 2 / sides.prod(dim=1).clamp(min=1e-6)
    return target | {"boxes": hulls, "area": target["area"] * growth.to(boxes)}
