"""A small data set of drawn shapes, for trials and for tests."""

import math
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_convert

from sepc_zoo.data.annotations import Annotations, Record, Records, Size
from sepc_zoo.data.formats.coco import write_coco
from sepc_zoo.files import new_folder

SHAPES = ("disc", "square", "triangle", "star")

MAX_OVERLAP = 0.2  # covered part of the smaller of two boxes
OVERSAMPLING = 4  # factor of resolution, for smooth edges

Box = tuple[int, int, int, int]


class Look(NamedTuple):
    """The way images are drawn."""

    size: Size  # height and width, pixels
    sides: tuple[float, float]  # smallest and largest longer side of a shape, pixels
    texture: float  # standard deviation of the noise at each scale, 0…255
    contrast: float  # smallest distance of a shape's colour from the ground under it, 0…255


def write_shapes(
    root: str | os.PathLike[str],
    train: int = 200,
    val: int = 50,
    size: Size = (192, 192),
    seed: int = 0,
    sides: tuple[float, float] = (8.0, 120.0),
    texture: float = 12.0,
    contrast: float = 80.0,
) -> Path:
    """Draw a data set of discs, squares, triangles and stars in the COCO layout.

    A shape has at most two thirds of the image's side, and any size is as likely as its double. The
    same seed draws the same data set.

    Args:
        root: The folder to make; it appears complete or not at all.
        train: The number of images in ``train/``.
        val: The number of images in ``val/``.
        size: The (height, width) of an image in pixels.
        sides: The smallest and the largest longer side of a shape in pixels.
        texture: The standard deviation of the background's noise, at each of four scales.
        contrast: The smallest distance of a shape's colour from the background under it, in RGB.

    Raises:
        FileExistsError: ``root`` is there already.
    """
    root, look = Path(root), Look(size, sides, texture, contrast)
    with new_folder(root) as folder:
        for number, (split, images) in enumerate((("train", train), ("val", val))):
            (folder / split).mkdir()
            records = [
                _write_image(folder / split, i + 1, look, np.random.default_rng([seed, number, i]))
                for i in range(images)
            ]
            annotations = Annotations(Records.of(records), SHAPES, tuple(range(1, len(SHAPES) + 1)))
            write_coco(annotations, folder / "annotations" / f"instances_{split}.json")
    return root


def _write_image(folder: Path, image_id: int, look: Look, rng: np.random.Generator) -> Record:
    image = _draw_ground(look, rng)
    boxes: list[Box] = []
    labels: list[int] = []
    for _ in range(rng.integers(1, 9)):
        label = int(rng.integers(len(SHAPES)))
        mask = _draw_shape(SHAPES[label], look, rng)
        box = mask.point(lambda value: 255 * (value > 127)).getbbox()  # half covered pixels count
        if box is not None and all(_overlap(box, other) <= MAX_OVERLAP for other in boxes):
            image.paste(_choose_color(image, mask, look.contrast, rng), mask=mask)
            boxes.append(box)
            labels.append(label)
    path = folder / f"{image_id:06d}.jpg"
    image.save(path, quality=95)
    xyxy = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    bbox = box_convert(xyxy.double(), "xyxy", "xywh")
    counted = torch.tensor(labels, dtype=torch.int64)
    crowds, area = torch.zeros_like(counted), bbox[:, 2:].prod(dim=1)
    return Record(image_id, path, look.size, xyxy, counted, crowds, area, bbox)


def _draw_ground(look: Look, rng: np.random.Generator) -> Image.Image:
    """Draw noise at several scales around a random colour."""
    height, width = look.size
    color = torch.tensor(rng.uniform(60, 195, (1, 3, 1, 1))).float()
    ground = color.expand(1, 3, height, width).clone()
    for cell in (2, 8, 32, 96):
        ground += _smooth_noise((max(2, height // cell), max(2, width // cell)), look, rng)
    pixels = ground[0].clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels)


def _smooth_noise(coarse: Size, look: Look, rng: np.random.Generator) -> Tensor:
    gray = rng.normal(0, look.texture, (1, 1, *coarse))
    color = rng.normal(0, look.texture / 2, (1, 3, *coarse))
    return F.interpolate(torch.tensor(gray + color).float(), size=look.size, mode="bilinear")


def _draw_shape(shape: str, look: Look, rng: np.random.Generator) -> Image.Image:
    """Draw the mask of a shape at a random place, wholly inside the image."""
    height, width = look.size
    longest = min(look.sides[1], min(look.size) * 2 / 3)
    side = math.exp(rng.uniform(math.log(min(look.sides[0], longest)), math.log(longest)))
    corners = _shape_corners(shape, rng.uniform(0, 2 * math.pi))
    corners -= corners.min(axis=0)
    corners *= side / corners.max()
    corners += rng.uniform(0, 1, 2) * (np.array([width, height]) - corners.max(axis=0))
    mask = Image.new("L", (width * OVERSAMPLING, height * OVERSAMPLING))
    ImageDraw.Draw(mask).polygon([tuple(xy) for xy in corners * OVERSAMPLING], fill=255)
    return mask.reduce(OVERSAMPLING)


def _shape_corners(shape: str, turn: float) -> np.ndarray:
    """Compute the corners ``(n, 2)`` of a shape around the origin, turned by ``turn`` radians."""
    number = {"disc": 64, "square": 4, "triangle": 3, "star": 10}[shape]
    angle = turn + 2 * math.pi / number * np.arange(number)
    radius = np.where(np.arange(number) % 2, 0.45, 1.0) if shape == "star" else np.ones(number)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)


def _choose_color(
    image: Image.Image, mask: Image.Image, contrast: float, rng: np.random.Generator
) -> tuple[int, int, int]:
    """Choose a random colour that contrasts with the image under the mask."""
    ground = np.asarray(image)[np.asarray(mask) > 127].mean(axis=0)
    while True:
        color = rng.integers(0, 256, 3)
        if np.linalg.norm(color - ground) >= contrast:
            return int(color[0]), int(color[1]), int(color[2])


def _overlap(a: Box, b: Box) -> float:
    """Compute the common area over the smaller area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return max(width, 0) * max(height, 0) / smaller
