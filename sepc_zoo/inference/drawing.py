"""Pictures: boxes on images, batches and contact sheets."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps
from torch import Tensor

Color = tuple[int, int, int]

# Class colours, repeated after twenty. Those of the first classes differ most, also for people with
# protanopia, deuteranopia or tritanopia.
PALETTE = (
    "#2f8cff", "#ff4b3c", "#00ffa5", "#fff000", "#872d4b", "#691eff", "#ffa5f0", "#782d96",
    "#f05a5a", "#4bc3a5", "#96e15a", "#2d7887", "#d200d2", "#ff9600", "#d25ac3", "#784b1e",
    "#69870f", "#b496f0", "#c31e78", "#00964b",
)  # fmt: skip
# Fonts of Linux, macOS and Windows, for names that are not ASCII: Pillow's own font has no more.
FONTS = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "wqy-microhei.ttc",
    "Arial Unicode.ttf", "PingFang.ttc", "segoeui.ttf", "msyh.ttc", "malgun.ttf", "Nirmala.ttf",
)  # fmt: skip
TILE = (480, 360)  # largest width and height of a picture on a contact sheet, pixels
COLUMNS = 4  # of a contact sheet
SCORE = 5  # letters of a score at the end of a caption
HEADING = 28  # height of the texts above its columns, pixels


def class_color(label: int) -> Color:
    """Return the colour (r, g, b) of a class, the same in every picture."""
    red, green, blue, *_ = ImageColor.getrgb(PALETTE[label % len(PALETTE)])
    return red, green, blue


def text_color(color: Color) -> str:
    """Return black or white, the one with the higher contrast to a colour (WCAG 2.2)."""
    linear = [((v / 255 + 0.055) / 1.055) ** 2.4 for v in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


def draw_boxes(
    image: Tensor | Image.Image,
    boxes: Tensor,
    captions: Sequence[str],
    colors: Sequence[Color],
    line: int | None = None,
) -> Image.Image:
    """Draw boxes ``(D, 4)`` in pixels on a copy of an image, later ones over earlier ones.

    An empty caption is not drawn, one wider than the image is shortened. The width of a ``line`` in
    pixels grows with the image by default, as letters do.
    """
    canvas = _to_pil(image)
    draw = ImageDraw.Draw(canvas)
    side = (canvas.width * canvas.height) ** 0.5
    line = line or max(1, round(side / 240))
    corners = [_pixel_corners(box, canvas.size) for box in boxes.tolist()]
    for corner, color in zip(corners, colors, strict=True):
        draw.rectangle(corner, outline=color, width=line)
    for corner, caption, color in zip(corners, captions, colors, strict=True):
        if caption:  # after all the boxes, so that no line crosses a text
            text = " ".join(caption.splitlines())
            _draw_caption(draw, canvas.size, corner, text, color, max(11.0, side / 44))
    return canvas


def fit(
    image: Tensor | Image.Image, boxes: Tensor, size: tuple[int, int] = TILE
) -> tuple[Image.Image, Tensor]:
    """Resize an image, and its boxes ``(D, 4)``, to a largest width and height in pixels.

    Draw boxes afterwards: captions are then as easy to read on a small image as on a large one.
    """
    whole = _to_pil(image)
    resized = ImageOps.contain(whole, size, Image.Resampling.LANCZOS)
    factor = boxes.new_tensor([resized.width / whole.width, resized.height / whole.height] * 2)
    return resized, boxes * factor


def close_up(
    image: Tensor, boxes: Tensor, colors: Sequence[Color], size: tuple[int, int], focus: int
) -> Image.Image:
    """Crop an image to its last ``focus`` boxes and their surroundings, and draw all boxes.

    The picture has at most the width and height ``size`` in pixels.
    """
    height, width = image.shape[1:]
    left, top, right, bottom = _surroundings(boxes[len(boxes) - focus :], (width, height), size)
    cut = image[:, top:bottom, left:right]
    picture, boxes = fit(cut, boxes - boxes.new_tensor([left, top, left, top]), size)
    return draw_boxes(picture, boxes, [""] * len(boxes), colors, line=max(2, size[0] // 160))


def draw_targets(
    image: Tensor | Image.Image, target: Mapping[str, Tensor], label_names: Sequence[str]
) -> Image.Image:
    """Draw a target on its image, resized to a tile of a contact sheet."""
    labels, crowds = target["labels"].tolist(), target["iscrowd"].tolist()
    pairs = zip(labels, crowds, strict=True)
    captions = [label_names[label] + " (crowd)" * crowd for label, crowd in pairs]
    return draw_boxes(*fit(image, target["boxes"]), captions, [*map(class_color, labels)])


def contact_sheet(images: Sequence[Image.Image], headings: Sequence[str] = ()) -> Image.Image:
    """Put images of any sizes in rows on white, each fitted to ``TILE``, under headings."""
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    tiles = [ImageOps.contain(image.convert("RGB"), TILE) for image in images]
    side, gap = max(tile.width for tile in tiles), TILE[0] // 60
    rows = [tiles[i : i + COLUMNS] for i in range(0, len(tiles), COLUMNS)]
    heights = [max(tile.height for tile in row) for row in rows]
    width = max(map(len, rows)) * (side + gap) + gap
    top = gap + HEADING * bool(headings)
    sheet = Image.new("RGB", (width, top + sum(heights) + gap * len(rows)), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(HEADING * 0.7)
    for i, text in enumerate(headings):
        draw.text((2 * gap + i * (side + gap), gap), text, fill="black", font=font)
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
    """Draw images ``(N, C, H, W)``, normalised by mean and std in 0…1, with their targets."""
    images = images.detach().float().cpu()
    offset, factor = (images.new_tensor(values).view(-1, 1, 1) for values in (mean, std))
    pixels = ((images * factor + offset).clamp(0, 1) * 255).round().to(torch.uint8)
    pairs = zip(pixels, targets, strict=True)
    return contact_sheet([draw_targets(image, target, label_names) for image, target in pairs])


def to_rgb(image: Tensor) -> Tensor:
    """Convert uint8 ``(C, H, W)`` to RGB; images of other channels are brightened.

    They show their first three channels, or one if there are fewer; the highest value becomes 255.
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
    font_size: float,
) -> None:
    """Draw a caption on a plate of the box's colour, above the box or, without room, inside it."""
    font = choose_font(frozenset(caption), font_size)
    pad = max(2, round(font_size / 5))
    caption = shorten(caption, font, size[0] - 2 * pad)
    ascent, descent = font.getmetrics()
    width = round(draw.textlength(caption, font)) + 2 * pad
    height = ascent + descent + pad
    left = max(0, min(corner[0], size[0] - width))
    top = corner[1] - height if corner[1] >= height else corner[1]
    top = max(0, min(top, size[1] - height))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
    draw.text((left + pad, top + pad // 2), caption, fill=text_color(color), font=font)


def shorten(text: str, font: Any, width: float) -> str:
    """Leave out the middle of a text until it is narrow enough; the score at its end stays."""
    kept = len(text) - SCORE
    while kept > 0 and font.getlength(text) > width:
        kept -= 1
        text = f"{text[:kept]}…{text[-SCORE:]}"
    return text


@cache
def choose_font(characters: frozenset[str], size: float) -> Any:
    """Choose Pillow's own font for ASCII, else the first of those that lack fewest characters."""
    own = ImageFont.load_default(size)
    others = {character for character in characters if not character.isascii()}
    return min([own, *_fonts(size)], key=lambda font: _num_lacking(font, others)) if others else own


def _num_lacking(font: Any, characters: set[str]) -> int:
    """Count the characters that a font draws like a character that does not exist."""
    lacking = bytes(font.getmask("\uffff"))
    return sum(bytes(font.getmask(character)) == lacking for character in characters)


@cache
def _fonts(size: float) -> list[Any]:
    """Load the fonts that are installed, and the one that comes with matplotlib."""
    names = [*FONTS]
    if (matplotlib := find_spec("matplotlib")) and matplotlib.origin:
        names.insert(1, str(Path(matplotlib.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf"))
    fonts = []
    for name in names:
        with suppress(OSError):
            fonts.append(ImageFont.truetype(name, size))
    return fonts
