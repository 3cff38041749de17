"""Run an exported detector with numpy, onnxruntime and pillow alone.

    python detect.py MODEL.onnx IMAGES... --output DIR

This module imports nothing else of the package, so that a copy of it runs beside an exported file.
"""

import argparse
import json
import math
import os
import struct
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageDraw, ImageFont, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # sent by default from 1.29 on
import onnxruntime

METADATA_KEY = "sepc_zoo"
METADATA_FORMAT = 1
IMAGE_SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
TRANSPOSES = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# PIL raises these on broken files: SyntaxError for PNG chunks, struct.error for TIFF tags ...
READ_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    Image.DecompressionBombError,
)
# Class colours, repeated after twenty. Those of the first classes differ most, also to eyes with
# protanopia, deuteranopia or tritanopia.
PALETTE = (
    "#2f8cff", "#ff4b3c", "#00ffa5", "#fff000", "#872d4b", "#691eff", "#ffa5f0", "#782d96",
    "#f05a5a", "#4bc3a5", "#96e15a", "#2d7887", "#d200d2", "#ff9600", "#d25ac3", "#784b1e",
    "#69870f", "#b496f0", "#c31e78", "#00964b",
)  # fmt: skip
MAX_NAMED = 5  # detections listed in a summary
MAX_PRECISION = 22  # bits of the integer weights of a resize
BLOCK = 16  # lines of pixels that are resized at once, few enough for the CPU cache

Corner = tuple[int, int, int, int]


class FileError(ValueError):
    """An image or model file that cannot be read; the message names the file and the reason."""


class Detection(NamedTuple):
    """One detected object."""

    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the image
    score: float
    label: int
    name: str


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The D objects found in an image, sorted by falling score.

    Iterating gives a ``Detection`` for each object; ``detections[0]`` is one of them,
    ``detections[:5]`` and ``detections[detections.scores > 0.5]`` are ``Detections`` again.

    Attributes:
        boxes: ``(D, 4)`` float32, xyxy in pixels of the image.
        scores: ``(D,)`` float32, from 0 to 1.
        labels: ``(D,)`` int64, 0…K-1.
        label_names: the K names of the model's classes.
        category_ids: the data set's K ids of these classes; None for a class that it lacks.
        image: the image, as its file or as an array ``(H, W, C)`` uint8.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    label_names: tuple[str, ...]
    category_ids: tuple[int | None, ...]
    image: Path | np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        """Return one ``Detection``, or the ``Detections`` of a slice, mask ``(D,)`` or indices."""
        boxes, scores, labels = self.boxes[index], self.scores[index], self.labels[index]
        if scores.ndim > 0:
            return replace(self, boxes=boxes, scores=scores, labels=labels)
        label = int(labels)
        return Detection(tuple(boxes.tolist()), scores.item(), label, self.label_names[label])

    def __repr__(self) -> str:
        shape = self.image.shape if isinstance(self.image, np.ndarray) else str(self.image)
        return (
            f"Detections({self.summary()}; boxes {self.boxes.shape}, scores, labels, "
            f"label_names ({len(self.label_names)}), category_ids, image {shape})"
        )

    def summary(self) -> str:
        """Name the detections with the highest scores: ``3: dog 0.91, cat 0.55, cat 0.41``."""
        names = ", ".join(self._captions()[:MAX_NAMED])
        return f"{len(self)}{': ' if names else ''}{names}{', …' * (len(self) > MAX_NAMED)}"

    def draw(self) -> Image.Image:
        """Draw each box with its class and score; the highest scores are drawn last.

        Raises:
            FileError: the image's file can no longer be read.
        """
        image = self.image if isinstance(self.image, np.ndarray) else read_image(self.image)
        colors = [class_color(label) for label in self.labels[::-1].tolist()]
        return draw_boxes(image, self.boxes[::-1], self._captions()[::-1], colors)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Draw the boxes and write the picture, whole or not at all; missing folders are made.

        Args:
            path: file to write; its suffix gives the format.

        Raises:
            ValueError: the suffix is none of ``IMAGE_SUFFIXES``.
        """
        path = Path(path).expanduser()
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(f"cannot write {path}: use one of {', '.join(IMAGE_SUFFIXES)}")
        picture = self.draw()
        with _new_file(path) as file:
            # Full colour resolution: JPEG's usual half of it smears thin coloured lines.
            picture.save(file, quality=92, subsampling=0)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return COCO results of this image: a dict for each detection, ready for JSON.

        Args:
            image_id: the image's id in the annotation file.

        Returns:
            ``image_id``, ``category_id``, ``bbox`` (x, y, width, height) and ``score`` of each
            object; a class without a category id is left out.
        """
        corners = self.boxes.astype(np.float64)
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        rows = zip(boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            {
                "image_id": image_id,
                "category_id": self.category_ids[label],
                "bbox": [round(value, 5) for value in box],
                "score": score,
            }
            for box, score, label in rows
            if self.category_ids[label] is not None
        ]

    def _captions(self) -> list[str]:
        return [f"{detection.name} {detection.score:.2f}" for detection in self]


@dataclass(frozen=True)
class Runtime:
    """An exported detector; several threads may use it at once.

    Attributes:
        session: the file loaded by onnxruntime.
        metadata: the metadata of the file: names, input, thresholds, versions.
    """

    session: onnxruntime.InferenceSession
    metadata: dict[str, Any]

    def predict(self, source: Any, score_threshold: float = 0.3) -> Any:
        """Find the objects in an image, or in each of many.

        Args:
            source: an image file or its bytes, PIL image or array ``(H, W)`` or ``(H, W, C)`` of
                uint8, uint16 or float in 0…1; or many: a folder, a list, tuple or iterator.
            score_threshold: lowest score of a detection. Scores under the file's own
                ``score_threshold`` were dropped before.

        Returns:
            ``Detections`` in pixels of the image; for many images a list of them.

        Raises:
            FileError: a file is missing or no image. In a folder it is left out with a warning.
            TypeError: the source is of no such type.
            ValueError: pixels of another shape, type or range.
        """
        images, single = open_images(source, self.metadata["input"]["channels"])
        found = [self._detect(pixels, path, score_threshold) for pixels, path in images]
        return found[0] if single else found

    def _detect(self, pixels: np.ndarray, path: Path | None, score_threshold: float) -> Detections:
        rule = self.metadata["input"]
        height, width = pixels.shape[:2]
        scale, size = plan_resize((height, width), rule)
        feed = {"images": to_input(pixels, size, rule), "sizes": np.array([size], np.int64)}
        feed = {name: value.repeat(rule["batch"] or 1, axis=0) for name, value in feed.items()}
        outputs = self.session.run(["boxes", "scores", "labels"], feed)
        boxes, scores, labels = (output[0] for output in outputs)
        kept = (labels >= 0) & (scores >= score_threshold)  # the label of padding is -1
        if rule["inclusive_boxes"]:  # x2 - 1 is the last pixel inside the box
            last_pixel = np.array([0, 0, 1, 1], np.float32)
            boxes = (boxes - last_pixel) / np.float32(scale) + last_pixel
        else:
            boxes = boxes * np.array([width / size[1], height / size[0]] * 2, np.float32)
        return Detections(
            boxes[kept],
            scores[kept],
            labels[kept],
            label_names=tuple(self.metadata["label_names"]),
            category_ids=tuple(self.metadata["category_ids"]),
            image=path or pixels,
        )


def load(
    path: str | os.PathLike[str],
    threads: int = 0,
    providers: Sequence[str] = ("CPUExecutionProvider",),
) -> Runtime:
    """Load a file that ``sepc-zoo export`` wrote.

    Args:
        path: the ONNX file.
        threads: of one prediction; 0 takes one for each core.
        providers: onnxruntime's names of the devices to run on, the preferred one first.

    Raises:
        FileError: the file is missing, damaged, not an exported detector, or has no boxes.
    """
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise FileError(f"{path}: no such file; `sepc-zoo export` writes one")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(path, options, [*providers])
    except Exception as error:  # onnxruntime's errors share no base
        reason = str(error).strip().splitlines()[0]
        hint = "; DeformConv needs onnxruntime 1.25 or newer" * ("DeformConv" in reason)
        raise FileError(f"{path}: onnxruntime cannot load it: {reason}{hint}") from error
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        raise FileError(f"{path}: no detector that sepc-zoo export wrote")
    metadata = json.loads(text)
    if metadata["format"] != METADATA_FORMAT:
        raise FileError(
            f"{path}: metadata of format {metadata['format']}, expected "
            f"{METADATA_FORMAT}; take the detect.py of the version that exported it"
        )
    if metadata["raw"]:
        raise FileError(f"{path}: has raw outputs; export it without --raw")
    return Runtime(session, metadata)


def write_runtime(folder: str | os.PathLike[str]) -> Path:
    """Copy this module into a folder as ``detect.py``, which runs alone; return its path.

    Raises:
        FileError: the folder has another file of this name.
    """
    path, text = Path(folder) / "detect.py", Path(__file__).read_bytes()
    if path.exists() and path.read_bytes().splitlines()[:1] != text.splitlines()[:1]:
        raise FileError(f"{path}: there is another file of this name; choose another folder")
    with _new_file(path) as file:
        file.write_bytes(text)
    return path


# Images


# Pixels (H, W, C) uint8 of an image, and its file if it comes from one.
LoadedImage = tuple[np.ndarray, Path | None]


def open_images(source: Any, channels: int = 3) -> tuple[Iterator[LoadedImage], bool]:
    """Open the images of a source one by one; the flag says whether it is a single image.

    Arguments and errors are those of ``Runtime.predict``.
    """
    if isinstance(source, str | os.PathLike):
        source = Path(source).expanduser()
        if source.is_dir():
            return _readable_images(list_images(source), channels), False
    if isinstance(source, Sequence | Iterator) and not isinstance(source, bytes):
        return (_open_image(one, channels) for one in source), False
    return iter([_open_image(source, channels)]), True


def list_images(folder: Path) -> list[Path]:
    """List the image files of a folder, by suffix, sorted; without hidden files and sub-folders."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def read_image(path: str | os.PathLike[str], channels: int = 3) -> np.ndarray:
    """Decode an image file to uint8 ``(H, W, C)``, upright (EXIF orientation applied).

    16-bit samples keep their high byte, an animation gives its first frame.

    Args:
        channels: 3 gives RGB, without transparency, 1 grey, 4 RGB with transparency.

    Raises:
        FileError: the file is missing, damaged or no image, has float samples or other channels.
    """
    with _naming(path):
        if os.path.exists(path) and not os.path.isfile(path):  # a pipe might never end
            raise ValueError("is a folder, pipe or device, no file")
        data = Path(path).read_bytes()
    return decode_image(data, path, channels)


def decode_image(
    data: bytes, name: str | os.PathLike[str] = "image", channels: int = 3
) -> np.ndarray:
    """Decode the content of an image file as ``read_image``; errors name it ``name``."""
    with _naming(name), Image.open(BytesIO(data)) as image:
        if image.format == "TIFF":
            return pixels_of_pil(ImageOps.exif_transpose(image), channels)
        turn = TRANSPOSES.get(_orientation(image))
        return pixels_of_pil(image if turn is None else image.transpose(turn), channels)


def pixels_of_pil(image: Image.Image, channels: int = 3) -> np.ndarray:
    """Convert a PIL image of any mode to uint8 ``(H, W, C)``, as ``read_image`` does.

    Raises:
        ValueError: float samples, or a number of channels other than 1, 3 and 4.
    """
    if image.mode == "F":
        raise ValueError("an image of float samples (mode F); convert it to 8 bits first")
    if channels not in (1, 3, 4):
        raise ValueError(f"the model takes {channels} channels; give an array (H, W, {channels})")
    if image.mode.startswith("I"):  # 16 bits a pixel, which PIL's own conversion may clip
        rgb = _high_byte(np.array(image).astype(np.int32))[:, :, None].repeat(3, axis=2)
    else:  # PIL's direct conversion to RGB warns about a palette's transparency
        opaque = image.convert("RGBA") if image.mode == "P" else image
        rgb = np.array(opaque.convert("RGB"))
    if channels == 1:
        return np.array(Image.fromarray(rgb).convert("L"))[:, :, None]
    if channels == 3:
        return rgb
    alpha = np.full_like(rgb[:, :, :1], 255)
    if image.has_transparency_data:
        alpha[:, :, 0] = image.convert("RGBA").getchannel("A")
    return np.concatenate([rgb, alpha], axis=2)


def _open_image(source: Any, channels: int) -> LoadedImage:
    if isinstance(source, bytes):
        return decode_image(source, f"{len(source)} bytes", channels), None
    if isinstance(source, str | os.PathLike):
        return read_image(source, channels), Path(source)
    if isinstance(source, Image.Image):
        return pixels_of_pil(ImageOps.exif_transpose(source), channels), None
    if isinstance(source, np.ndarray):
        return _pixels_of_array(source, channels), None
    raise TypeError(
        f"cannot predict on {type(source).__name__}: expected a file, folder, bytes, PIL image, "
        "array, or a list of these"
    )


def _readable_images(files: list[Path], channels: int) -> Iterator[LoadedImage]:
    for file in files:
        try:
            yield _open_image(file, channels)
        except FileError as error:
            warnings.warn(f"left out: {error}", stacklevel=3)


def _pixels_of_array(array: np.ndarray, channels: int) -> np.ndarray:
    image = array[:, :, None] if array.ndim == 2 else array
    if channels == 3 and image.ndim == 3 and image.shape[2] == 4:  # RGBA
        image = image[:, :, :3]
    if image.size == 0:
        raise ValueError("the image is empty: it has no pixels")
    allowed = (1, 3) if channels == 3 else (channels,)
    if image.ndim != 3 or image.shape[2] not in allowed:
        raise ValueError(
            f"expected an image with {' or '.join(map(str, allowed))} channels, got "
            f"{array.shape}; an array has its channels last"
        )
    if np.issubdtype(image.dtype, np.floating):
        if not (image.min() >= 0 and image.max() <= 1):
            raise ValueError(
                "a float image must lie in 0..1; give the image, not a normalised input"
            )
        image = (image * 255).round().astype(np.uint8)
    if image.dtype == np.uint16:
        image = _high_byte(image)
    if image.dtype != np.uint8:
        raise ValueError(f"expected an image of uint8, uint16 or float in 0..1, got {image.dtype}")
    return image.repeat(channels // image.shape[2], axis=2)  # a copy


def _high_byte(samples: np.ndarray) -> np.ndarray:
    return (samples >> 8).clip(0, 255).astype(np.uint8)


def _orientation(image: Image.Image) -> Any:
    """Get the EXIF orientation, 1...8 where it is valid; 1 (upright) where it cannot be read."""
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
    except (SyntaxError, struct.error):
        return 1
    return exif.get(ExifTags.Base.Orientation, 1)


@contextmanager
def _naming(name: str | os.PathLike[str]) -> Iterator[None]:
    """Turn errors of decoding into a FileError that names the file."""
    try:
        yield
    except Image.UnidentifiedImageError as error:
        raise FileError(f"{os.fspath(name)}: not an image, or of an unknown format") from error
    except READ_ERRORS as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FileError(f"{os.fspath(name)}: {reason}") from error


# From an image to the network's input


def plan_resize(image_size: tuple[int, int], rule: dict[str, Any]) -> tuple[float, tuple[int, int]]:
    """Choose the scale of an image, and its height and width in the network's input.

    Args:
        image_size: height and width of the image.
        rule: the metadata's ``input``.
    """
    short, long = rule["image_size"]
    if rule["height"] and rule["width"]:
        bounds = (rule["height"], rule["width"])
        scale = min(bounds[0] / image_size[0], bounds[1] / image_size[1])
    else:
        bounds = (short, long) if image_size[0] <= image_size[1] else (long, short)
        scale = min(long / max(image_size), short / min(image_size))
    if not rule["keep_ratio"]:
        return scale, bounds
    half = 0.5 if rule["round_sides"] else 0.0
    height, width = (max(1, int(side * scale + half)) for side in image_size)
    return scale, (height, width)


def to_input(pixels: np.ndarray, size: tuple[int, int], rule: dict[str, Any]) -> np.ndarray:
    """Resize uint8 ``(H, W, C)`` to ``size`` and pad it to a batch ``(1, h, w, C)``."""
    if rule["resize_floats"]:
        pixels = pixels.astype(np.float32)
    resized = resize(pixels, size, rule["antialias"])
    multiple = rule["pad_multiple"]
    height, width = (
        fixed or -(-max(side, rule["min_side"]) // multiple) * multiple
        for fixed, side in zip((rule["height"], rule["width"]), size, strict=True)
    )
    batch = np.zeros((1, height, width, pixels.shape[2]), rule["dtype"])
    batch[0, : size[0], : size[1]] = resized
    return batch


def resize(pixels: np.ndarray, size: tuple[int, int], antialias: bool) -> np.ndarray:
    """Resize uint8 or float ``(H, W, C)`` to ``size`` (height, width), bilinear, as PyTorch does.

    Bytes are equal to the last grey level: rows are resized first, and rounded in between.
    """
    columns = _resize_first_axis(pixels.swapaxes(0, 1), size[1], antialias)
    return _resize_first_axis(columns.swapaxes(0, 1), size[0], antialias)


def _resize_first_axis(pixels: np.ndarray, length: int, antialias: bool) -> np.ndarray:
    if len(pixels) == length:
        return pixels
    lines = np.ascontiguousarray(pixels).reshape(len(pixels), -1)
    is_bytes = pixels.dtype == np.uint8
    precision = np.float64 if is_bytes else np.float32  # in which PyTorch computes positions
    index, weights = _resize_weights(len(pixels), length, antialias, precision)
    bits = _precision(weights.max())
    weights = np.floor(weights * 2**bits + 0.5).astype(np.int32) if is_bytes else weights
    resized = np.empty((length, lines.shape[1]), pixels.dtype)
    for start in range(0, length, BLOCK):
        block = slice(start, start + BLOCK)
        taps = zip(index[block].T, weights[block].T, strict=True)
        products = (lines[places] * factors[:, None] for places, factors in taps)
        resized[block] = sum(products, 1 << bits - 1) >> bits if is_bytes else sum(products)
    return resized.reshape(length, *pixels.shape[1:])


def _resize_weights(
    old: int, new: int, antialias: bool, precision: type
) -> tuple[np.ndarray, np.ndarray]:
    """Compute indices and weights ``(new, taps)`` of the old pixels that make up each new one."""
    scale = float(precision(old) / precision(new))
    center = scale * (np.arange(new) + 0.5)
    if antialias:  # a triangle around the new pixel's center, as wide as two new pixels
        center, stretch = center.astype(precision), max(scale, 1.0)
        first = np.maximum((center - stretch + 0.5).astype(np.int64), 0)
        last = np.minimum((center + stretch + 0.5).astype(np.int64), old)
        index = first[:, None] + np.arange(2 * math.ceil(stretch) + 1)
        weights = np.maximum(1 - np.abs((index - center[:, None] + 0.5) / stretch), 0)
        weights[index >= last[:, None]] = 0
        weights /= weights.sum(axis=1, keepdims=True)
    else:
        place = np.maximum(center - 0.5, 0).astype(precision)
        before = np.minimum(place.astype(np.int64), old - 1)
        share = place - before
        index = np.stack([before, before + 1], axis=1)
        weights = np.stack([1 - share, share], axis=1)
        weights[before + 1 >= old] = [1, 0]
    return np.minimum(index, old - 1), weights


def _precision(max_weight: float) -> int:
    """Number of bits to scale weights by, so that the largest fits into a signed 16-bit integer."""
    bits = 0
    while bits < MAX_PRECISION and int(0.5 + max_weight * 2 ** (bits + 1)) < 2**15:
        bits += 1
    return bits


# Pictures


def class_color(label: int) -> tuple[int, int, int]:
    """Return the colour (r, g, b) of a class, the same in every picture."""
    red, green, blue = ImageColor.getrgb(PALETTE[label % len(PALETTE)])[:3]
    return red, green, blue


def text_color(color: tuple[int, int, int]) -> str:
    """Return black or white, the one with the higher contrast to a colour (WCAG 2.2)."""
    linear = [((v / 255 + 0.055) / 1.055) ** 2.4 for v in color]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "black" if luminance > 0.179 else "white"


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    captions: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
) -> Image.Image:
    """Draw boxes with captions on an image; later boxes are drawn over earlier ones.

    Args:
        image: ``(H, W, C)`` uint8; images that are not RGB are brightened to be visible.
        boxes: ``(D, 4)`` xyxy in continuous pixels of the image; parts outside are not drawn.
        captions: D texts.
        colors: D colours (r, g, b).
    """
    canvas = Image.fromarray(_to_rgb(image))
    draw = ImageDraw.Draw(canvas)
    side = (canvas.width * canvas.height) ** 0.5
    font = ImageFont.load_default(max(11.0, side / 44))
    corners = [_pixel_corners(box, canvas.size) for box in boxes.tolist()]
    for corner, color in zip(corners, colors, strict=True):
        draw.rectangle(corner, outline=color, width=max(1, round(side / 240)))
    for corner, caption, color in zip(corners, captions, colors, strict=True):
        # Captions come after all boxes, so that no line crosses a text.
        _draw_caption(draw, canvas.size, corner, " ".join(caption.splitlines()), color, font)
    return canvas


def _to_rgb(image: np.ndarray) -> np.ndarray:
    if image.shape[2] == 3:
        return image
    shown = image[:, :, : 3 if image.shape[2] > 3 else 1]
    brightened = (shown * np.float32(255 / max(shown.max(), 1))).round().astype(np.uint8)
    return brightened.repeat(3 // shown.shape[2], axis=2)


def _pixel_corners(box: Sequence[float], size: tuple[int, int]) -> Corner:
    """Return first and last pixel (inclusive, as PIL wants them) that a continuous box covers."""
    left, top, right, bottom = (
        min(max(round(value), 0), limit) for value, limit in zip(box, size * 2, strict=True)
    )
    left, top = min(left, size[0] - 1), min(top, size[1] - 1)
    return left, top, max(right - 1, left), max(bottom - 1, top)


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: Corner,
    caption: str,
    color: tuple[int, int, int],
    font: Any,
) -> None:
    """Draw a caption on the box's colour, above the box or, if there is no room, inside it."""
    pad = max(2, round(font.size / 5))
    caption = shorten(caption, font, size[0] - 2 * pad)
    ascent, descent = font.getmetrics()
    width = round(draw.textlength(caption, font)) + 2 * pad
    height = ascent + descent + pad
    left = max(0, min(corner[0], size[0] - width))
    top = corner[1] - height if corner[1] >= height else corner[1]
    top = max(0, min(top, size[1] - height))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=color)
    draw.text((left + pad, top + pad // 2), caption, fill=text_color(color), font=font)


def shorten(text: str, font: Any, width: float, tail: int = 5) -> str:
    """Shorten a text to a width: leave out its middle, and keep the score at its end."""
    kept = len(text) - tail
    while kept > 0 and font.getlength(text) > width:
        kept -= 1
        text = f"{text[:kept]}…{text[-tail:]}"
    return text


# Command line


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the detections of images, and write them as COCO results.

    Returns:
        The exit status: 0 done, 1 done but for the files that are listed, 2 wrong usage.
    """
    parser = argparse.ArgumentParser(description="Detect objects in images.")
    parser.add_argument("model", metavar="MODEL.onnx", help="file that sepc-zoo export wrote")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="image files and folders")
    parser.add_argument("--output", default="predictions", metavar="DIR", help="folder to write")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="X", help="lowest score to show"
    )
    options = parser.parse_args(arguments)
    try:
        model = load(options.model)
    except FileError as error:
        parser.error(str(error))
    named = [Path(os.path.abspath(name)) for name in options.images]
    files = [file for path in named for file in (list_images(path) if path.is_dir() else [path])]
    if not files:
        parser.error(f"no images in {', '.join(options.images)}")
    output, base = Path(options.output), Path(os.path.commonpath([file.parent for file in files]))
    images, rows, failures = [], [], 0
    for image_id, file in enumerate(dict.fromkeys(files), start=1):
        name = file.relative_to(base)
        suffix = file.suffix if file.suffix.lower() in IMAGE_SUFFIXES else ".png"
        try:
            found = model.predict(file, options.score_threshold)
            found.save(output / name.parent / f"{file.stem}_boxes{suffix}")
        except (OSError, ValueError) as error:
            print(f"not done: {error}", file=sys.stderr)
            failures += 1
            continue
        print(f"{name}: {found.summary()}")
        images.append({"id": image_id, "file_name": name.as_posix()})
        rows += found.to_coco(image_id)
    labels = zip(model.metadata["category_ids"], model.metadata["label_names"], strict=True)
    categories = [{"id": category_id, "name": name} for category_id, name in labels]
    content = {"images": images, "categories": categories, "annotations": rows}
    with _new_file(output / "detections.json") as path:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"{output}: {len(images)} images and detections.json with {len(rows)} boxes")
    return 1 if failures else 0


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` that becomes it at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid4().hex[:8]}.{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
