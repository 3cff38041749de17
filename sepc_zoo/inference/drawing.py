"""Pictures: boxes on images, batches and contact sheets."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps
from torch import Tensor

Color = tuple[int, int, int]

# Class colours, far apart for the first classes; repeated after twenty.
PALETTE = (
    "#ff3838", "#2f8cff", "#18c964", "#ffb000", "#b14cff", "#00c2d1", "#ff5fa2", "#9acd00",
    "#ff7a1a", "#5b5bff", "#008f6b", "#d4a373", "#e056fd", "#7ed6df", "#a0522d", "#f6e05e",
    "#c9a0ff", "#a3ffb0", "#00e5a0", "#ff9f9f",
)  # fmt: skip


def class_color(label: int) -> Color:
    """Return the colour (r, g, b) of a class, the same in every picture."""
    red, green, blue = ImageColor.getrgb(PALETTE[label % len(PALETTE)])[:3]
    return red, green, blue


def draw_boxes(
    image: Tensor | Image.Image,
    boxes: Tensor,
    captions: Sequence[str],
    colors: Sequence[Color],
    line: int | None = None,
) -> Image.Image:
    """Draw boxes with captions on a copy of an image; later boxes are drawn over earlier ones.

    Args:
        image: uint8 tensor ``(C, H, W)``, see ``to_rgb``, or PIL image.
        boxes: ``(D, 4)`` xyxy in continuous pixels of the image; parts outside are not drawn.
        captions: D texts; an empty one is not drawn.
        colors: D colours (r, g, b).
        line: width of the lines in pixels; by default it grows with the image, as letters do.

    Raises:
        ValueError: boxes, captions and colors differ in number.
    """
    canvas = _to_pil(image)
    draw = ImageDraw.Draw(canvas)
    side = (canvas.width * canvas.height) ** 0.5
    line = line or max(1, round(side / 240))
    font = ImageFont.load_default(max(11.0, side / 44))
    corners = [_pixel_corners(box, canvas.size) for box in boxes.tolist()]
    for corner, color in zip(corners, colors, strict=True):
        draw.rectangle(corner, outline=color, width=line)
    for corner, caption, color in zip(corners, captions, colors, strict=True):
        if caption:  # after all the boxes, so that no line crosses a text
            _draw_caption(draw, canvas.size, corner, " ".join(caption.splitlines()), color, font)
    return canvas


def close_up(
    image: Tensor, boxes: Tensor, colors: Sequence[Color], size: tuple[int, int], focus: int
) -> Image.Image:
    """Cut an image to its last boxes and their surroundings, and draw all boxes.

    Args:
        image: uint8 ``(C, H, W)``, see ``to_rgb``.
        boxes: ``(D, 4)`` xyxy in continuous pixels of the image.
        colors: D colours (r, g, b).
        size: largest width and height of the picture, pixels.
        focus: number of boxes, counted from the end, that must be in the picture.
    """
    height, width = image.shape[1:]
    left, top, right, bottom = _surroundings(boxes[len(boxes) - focus :], (width, height), size)
    cut = _to_pil(image[:, top:bottom, left:right])
    scale = min(size[0] / cut.width, size[1] / cut.height)
    sides = max(1, round(cut.width * scale)), max(1, round(cut.height * scale))
    boxes = (boxes - boxes.new_tensor([left, top, left, top])) * scale
    resized = cut.resize(sides, Image.Resampling.LANCZOS)
    return draw_boxes(resized, boxes, [""] * len(boxes), colors, line=max(2, size[0] // 160))


def contact_sheet(images: Sequence[Image.Image], columns: int = 4, side: int = 480) -> Image.Image:
    """Put images of any sizes in rows on white, each fitted to ``side`` x 3/4 ``side`` pixels.

    Raises:
        ValueError: no images.
    """
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    gap = max(2, side // 60)
    tiles = [ImageOps.contain(image.convert("RGB"), (side, side * 3 // 4)) for image in images]
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    width = max(map(len, rows)) * (side + gap) + gap
    sheet = Image.new("RGB", (width, sum(heights) + gap * (len(rows) + 1)), "white")
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for i, tile in enumerate(row):
            left = gap + i * (side + gap) + (side - tile.width) // 2
            sheet.paste(tile, (left, top + (height - tile.height) // 2))
        top += height + gap
    return sheet


def draw_batch(
    images: Tensor,
    targets: Sequence[Mapping[str, Any]],
    mean: Sequence[float],
    std: Sequence[float],
    label_names: Sequence[str],
) -> Image.Image:
    """Draw a batch as the network receives it, with its padding and its ground truth.

    Args:
        images: ``(N, C, H, W)``, normalised; on any device. See ``to_rgb``.
        targets: ``boxes (G, 4)``, ``labels (G,)``, ``iscrowd (G,)`` of each image.
        mean: of each channel in 0…1, that was subtracted.
        std: of each channel in 0…1, that the images were divided by.
        label_names: name of each label.
    """
    images = images.detach().float().cpu()
    offset, factor = (images.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    pixels = ((images * factor + offset).clamp(0, 1) * 255).round().to(torch.uint8)
    pictures = []
    for image, target in zip(pixels, targets, strict=True):
        labels, crowds = target["labels"].tolist(), target["iscrowd"].tolist()
        names = [
            label_names[label] + " (crowd)" * crowd
            for label, crowd in zip(labels, crowds, strict=True)
        ]
        pictures.append(draw_boxes(image, target["boxes"], names, [*map(class_color, labels)]))
    return contact_sheet(pictures)


def to_rgb(image: Tensor) -> Tensor:
    """Make a picture of uint8 ``(C, H, W)``: RGB as it is, else its first channels, brightened.

    These are three, or one where there are no three; their highest value becomes white.
    """
    if len(image) == 3:
        return image
    shown = image[: 3 if len(image) > 3 else 1]
    return (shown * (255 / shown.max().clamp(min=1))).round().to(torch.uint8).expand(3, -1, -1)


def _to_pil(image: Tensor | Image.Image) -> Image.Image:
    if isinstance(image, Tensor):
        image = Image.fromarray(to_rgb(image).permute(1, 2, 0).cpu().numpy())
    return image.convert("RGB")  # a copy in either case


def _surroundings(
    boxes: Tensor, limits: tuple[int, int], size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Choose the part (x1, y1, x2, y2) of an image around boxes, in the proportions of ``size``.

    It is twice as wide and high as all boxes together, and at least a third of the image's width
    and height ``limits``; it ends at the image's borders.
    """
    x1, y1 = boxes[:, :2].amin(dim=0).tolist()
    x2, y2 = boxes[:, 2:].amax(dim=0).tolist()
    width = max(2 * (x2 - x1), limits[0] / 3)
    height = max(2 * (y2 - y1), limits[1] / 3, width * size[1] / size[0])
    width = max(width, height * size[0] / size[1])
    left, right = _span((x1 + x2) / 2, width, limits[0])
    top, bottom = _span((y1 + y2) / 2, height, limits[1])
    return left, top, right, bottom


def _span(center: float, length: float, limit: int) -> tuple[int, int]:
    """Return first and last pixel (exclusive) around a center, moved to inside 0…limit."""
    length = min(max(1, round(length)), limit)
    start = min(max(0, round(center - length / 2)), limit - length)
    return start, start + length


def _pixel_corners(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return first and last pixel (inclusive, as PIL wants them) that a continuous box covers."""
    left, top, right, bottom = (
        min(max(round(value), 0), limit) for value, limit in zip(box, size * 2, strict=True)
    )
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    return left, top, max(right - 1, left), max(bottom - 1, top)


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[int, int, int, int],
    caption: str,
    color: Color,
    font: Any,
) -> None:
    """Draw a caption on a plate of the box's colour above the box, or inside it without room."""
    pad = max(2, round(font.size / 5))
    ascent, descent = font.getmetrics()
    width = round(draw.textlength(caption, font)) + 2 * pad
    height = ascent + descent + pad
    left = max(0, min(corner[0], size[0] - width))
    top = corner[1] - height if corner[1] >= height else corner[1]
    top = max(0, min(top, size[1] - height))
    luminance = 0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2]
    ink = "black" if luminance > 130 else "white"
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
    draw.text((left + pad, top + pad // 2), caption, fill=ink, font=font)
