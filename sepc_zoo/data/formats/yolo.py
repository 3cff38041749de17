"""The YOLO layouts: a text file of boxes for each image; ``data.yaml`` or ``classes.txt``."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sepc_zoo.data.annotations import (
    Annotations,
    DataError,
    ListedBox,
    ListedImage,
    Listing,
    build_annotations,
    find_duplicates,
)
from sepc_zoo.data.formats.layout import (
    ONLY_SPLIT,
    choose_split,
    read_class_names,
    read_lines,
    read_text,
)
from sepc_zoo.data.images import IMAGE_SUFFIXES, ImageError, list_images, read_size

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
DARKNET_FILE = "obj.data"  # what data.yaml is to Darknet; CVAT writes it
CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
SPLITS = ("train", "val", "valid", "validation", "minival", "test")

LEAD = re.compile(r"(\.{1,2}/|data/)+")  # Roboflow and CVAT write paths for a folder above
ROUNDING = 1e-3  # how far from 0...1 a value may be
COLUMNS = "'class x y width height' (or 'class x1 y1 x2 y2 x3 y3 ...' of a polygon)"


class YoloFolder(NamedTuple):
    """What a folder says of itself."""

    file: Path  # what names the classes
    names: dict[int, str]  # by class number, rising
    splits: dict[str, list[str]]  # folders of images, or text files that list images, as written
    bases: list[Path]  # what these may be relative to
    has_keypoints: bool = False  # behind each box


class Line(NamedTuple):
    """A line of a label file."""

    number: float  # the class
    values: tuple[float, ...]  # x, y, width, height, or the corners of a polygon, in 0...1


def yolo_splits(root: str | os.PathLike[str]) -> list[str]:
    """The splits of a folder (or a ``data.yaml``) in a YOLO layout; empty for another layout.

    Raises:
        DataError: its ``data.yaml`` or ``classes.txt`` is broken.
    """
    folder = _describe(Path(root))
    return sorted(folder.splits) if folder else []


def read_yolo(
    root: str | os.PathLike[str],
    split: str,
    label_names: Sequence[str] | None = None,
    drop_bad_boxes: bool = False,
) -> Annotations:
    """Read one split of a folder in a YOLO layout; the split "val" finds ``valid`` too.

    The folder has a ``data.yaml`` (or is that file), or Darknet's ``obj.data``, or a
    ``classes.txt`` beside ``images/<split>`` and ``labels/<split>``, ``<split>/images`` and
    ``<split>/labels``, or images and text files side by side. Without splits all is "train".
    Labels are in ``labels/`` where the image's path has ``images/``, or beside the image; an image
    without a label file has no boxes. A polygon becomes its bounding box. The category ids are the
    class numbers, the area is width times height. An image's id is its position from 1, by sorted
    path or in the list of images. With ``drop_bad_boxes``, boxes that are empty, outside their
    image, not finite or given twice are left out.

    Raises:
        DataError: no such split, or lists every broken image file and every broken line.
    """
    return build_annotations(list_yolo(root, split), label_names, drop_bad_boxes)


def list_yolo(root: str | os.PathLike[str], split: str) -> Listing:
    """One split of a folder in a YOLO layout, with boxes in pixels, unchecked.

    Raises:
        DataError: no such split, or a broken ``data.yaml``, ``classes.txt`` or list of images.
    """
    folder = _describe(Path(root))
    if folder is None:
        raise DataError([f"{root}: no YOLO data set: it has no data.yaml and no classes.txt"])
    split = choose_split(split, list(folder.splits), f"{folder.file}: split ")
    problems: list[str] = []
    paths, has_all = _find_images(folder, split, problems)
    label_files = _find_labels(paths, has_all, problems)
    with ThreadPoolExecutor() as pool:
        contents = list(pool.map(_read_size_and_lines, paths, label_files))

    classes: dict[float, tuple[int, str]] = {
        number: (label, f"{number} ({name!r})")
        for label, (number, name) in enumerate(folder.names.items())
    }
    bad_boxes: list[str] = []
    images = []
    files = zip(paths, label_files, contents, strict=True)
    for image_id, (path, label_file, (size, lines)) in enumerate(files, start=1):
        if isinstance(lines, str):
            problems.append(lines)
            lines = []
        where = _shorten(label_file, folder.bases)
        parsed = _parse_lines(lines, where, folder.has_keypoints, problems, bad_boxes)
        # An image that cannot be read is found by the checks; until then its boxes have no pixels.
        boxes = [_list_box(place, line, size, classes) for place, line in parsed] if size else []
        images.append(ListedImage(image_id, path, size, boxes))
    names, ids = list(folder.names.values()), list(folder.names)
    return Listing(images, names, ids, problems, folder.file.name, bad_boxes)


def _describe(root: Path) -> YoloFolder | None:
    if root.is_file() and root.suffix.lower() in (".yaml", ".yml"):
        return _describe_yaml(root)
    for name in YAML_FILES:
        if (root / name).is_file() and (folder := _describe_yaml(root / name)).splits:
            return folder
    if (root / DARKNET_FILE).is_file():
        return _describe_darknet(root / DARKNET_FILE)
    return _describe_folders(root)


def _describe_yaml(path: Path) -> YoloFolder:
    content = _read_yaml(path)
    root = path.parent
    # Ultralytics looks for ``path`` in a folder of its settings; the data set may have been moved.
    bases = [root / str(content.get("path") or "."), root]
    bases = [base for base in dict.fromkeys(bases) if base.is_dir()]
    splits = {}
    for split in SPLITS:
        if entry := content.get(split):
            splits[split] = [str(text) for text in (entry if isinstance(entry, list) else [entry])]
    if not splits:
        return YoloFolder(path, {}, {}, bases)
    count = content.get("nc")
    names = _parse_names(content.get("names"), count, path, bases)
    if count is not None and count != len(names):
        raise DataError([f"{path}: nc is {count!r}, but there are {len(names)} names"])
    return YoloFolder(path, names, splits, bases, "kpt_shape" in content)


def _describe_darknet(path: Path) -> YoloFolder:
    pairs = (line.partition("=") for line in read_lines(path))
    content = {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
    bases = [path.parent]
    splits = {split: [content[split]] for split in SPLITS if split in content}
    return YoloFolder(path, _parse_names(content.get("names"), None, path, bases), splits, bases)


def _describe_folders(root: Path) -> YoloFolder | None:
    """A folder with splits that have labels, and with a ``classes.txt`` in one of its places."""
    folders = {
        split: folder for split, folder in _split_folders(root).items() if _has_labels(folder)
    }
    places = [root, root / "labels"]
    for folder in folders.values():
        places += [_label_folder(folder), folder, folder.parent]
    files = [place / name for place in dict.fromkeys(places) for name in CLASS_FILES]
    files = [file for file in files if file.is_file()]
    if not folders or not files:
        return None
    names = [dict(enumerate(read_class_names(file))) for file in files]
    for file, other in zip(files, names, strict=True):
        if other != names[0]:
            raise DataError([f"{file}: has other classes than {files[0]}"])
    splits = {split: [str(folder.relative_to(root))] for split, folder in folders.items()}
    return YoloFolder(files[0], names[0], splits, [root])


def _split_folders(root: Path) -> dict[str, Path]:
    """Where a folder without ``data.yaml`` has the images of each split."""
    home = root / "images" if (root / "images").is_dir() else root
    if not home.is_dir() or _has_images(home):
        return {ONLY_SPLIT: home}
    children = [child for child in sorted(home.iterdir()) if child.is_dir()]
    folders = {
        child.name: child / "images" if (child / "images").is_dir() else child for child in children
    }
    return {split: folder for split, folder in folders.items() if _has_images(folder)}


def _has_images(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(IMAGE_SUFFIXES) for entry in entries)


def _has_labels(folder: Path) -> bool:
    folder = _label_folder(folder)
    return folder.is_dir() and any(
        name.endswith(".txt") and name not in CLASS_FILES for name in os.listdir(folder)
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
        raise DataError([f"{path}: not YAML: {' '.join(str(error).split())}"]) from error
    if not isinstance(content, dict):
        raise DataError([f"{path}: expected keys like 'train', 'val' and 'names'"])
    return content


def _parse_names(names: Any, count: Any, path: Path, bases: Sequence[Path]) -> dict[int, str]:
    """Class names by number, from a list, a dict or a file; without any, the numbers themselves.

    Raises:
        DataError: names the entry.
    """
    if names is None and isinstance(count, int):
        return {number: str(number) for number in range(count)}
    if isinstance(names, str):
        file = _find(names, bases)
        if file is None or not file.is_file():
            raise DataError([f"{path}: names: there is no file {names!r}"])
        return dict(enumerate(read_class_names(file)))
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise DataError([f"{path}: names: expected a list or numbers with names"])
    parsed: dict[int, str] = {}
    problems = []
    for number, name in names.items():
        if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
            problems.append(f"{path}: names: {number}: {name!r} is no text; put it in quotes")
        elif not re.fullmatch("[0-9]+", str(number)):
            problems.append(f"{path}: names: {number!r} is no class number")
        else:
            parsed[int(number)] = str(name)
    if problems:
        raise DataError(problems)
    return dict(sorted(parsed.items()))


def _find(text: str, bases: Sequence[Path]) -> Path | None:
    """Where a path in a data set's own files leads; None where nothing is.

    What Roboflow (``../``) and Darknet (``data/``) put in front is passed over if it leads nowhere.
    """
    text = text.replace("\\", "/")
    inner = text[lead.end() :] if (lead := LEAD.match(text)) else text
    places = (base / part for base in bases for part in dict.fromkeys((text, inner)))
    return next((place for place in places if place.exists()), None)


def _find_images(folder: YoloFolder, split: str, problems: list[str]) -> tuple[list[Path], bool]:
    """The images of a split, and whether these are all in their folders."""
    paths: list[Path] = []
    has_all = True
    for text in folder.splits[split]:
        place = _find(text, folder.bases)
        if place is None:
            looked = " and ".join(map(str, folder.bases))
            raise DataError([f"{folder.file}: {split}: there is no {text!r} (looked in {looked})"])
        if place.is_dir():
            inside = sorted(_walk_images(place))
            problems += [] if inside else [f"{place}: no images inside"]
            paths += inside
        else:
            has_all = False
            paths += _read_image_list(place, folder.bases, problems)
    problems += [
        f"{folder.file}: {split}: {path} is there twice" for path in find_duplicates(paths)
    ]
    return list(dict.fromkeys(paths)), has_all


def _walk_images(folder: Path) -> Iterator[Path]:
    """The images of a folder and those inside it; links are followed, once."""
    seen = set()
    for parent, children, _ in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            children.clear()
            continue
        seen.add(real)
        children[:] = [child for child in children if not child.startswith(".")]
        yield from list_images(parent)


def _read_image_list(file: Path, bases: Sequence[Path], problems: list[str]) -> list[Path]:
    paths = []
    for i, line in enumerate(read_lines(file), start=1):
        path = _find(line, [*bases, file.parent]) if line else None
        if path is not None:
            paths.append(path)
        elif line:
            problems.append(f"{file}:{i}: there is no image {line!r}")
    return paths


def _find_labels(paths: Sequence[Path], has_all: bool, problems: list[str]) -> list[Path | None]:
    """The label file of each image; None where it has none.

    With ``has_all``, a label file without an image is a problem too.
    """
    folders = {parent: _label_folder(parent) for parent in {path.parent for path in paths}}
    present = {place: set(os.listdir(place)) for place in folders.values()}
    image_of: dict[Path, Path] = {}
    found: list[Path | None] = []
    for path in paths:
        place, name = folders[path.parent], f"{path.stem}.txt"
        other = image_of.setdefault(place / name, path)
        if other != path:
            problems.append(f"{path} and {other.name} would have one label file, {place / name}")
        found.append(place / name if name in present[place] else None)
    if paths and not any(found):
        places = " and ".join(sorted(map(str, present)))
        problems.append(f"{places}: no label file of any of the {len(paths)} images")
    if has_all:
        problems += [
            f"{file}: has labels, but there is no image of this name"
            for place, names in present.items()
            for file in (place / name for name in sorted(names) if name.endswith(".txt"))
            if file not in image_of and file.name not in CLASS_FILES and _is_label_file(file)
        ]
    return found


def _label_folder(folder: Path) -> Path:
    """The folder of the labels: ``labels`` for the last ``images`` of the path, or the same."""
    parts = folder.parts
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:last], "labels", *parts[last + 1 :])
        return labels if labels.is_dir() else folder
    return folder


def _is_label_file(file: Path) -> bool:
    lines = _read_or_problem(file)
    try:
        return isinstance(lines, list) and bool(_parse_line(next(filter(None, lines)), False))
    except (StopIteration, ValueError):
        return False


def _read_size_and_lines(
    path: Path, label_file: Path | None
) -> tuple[tuple[int, int] | None, list[str] | str]:
    """An image's (height, width), None if it cannot be read, and ``_read_or_problem``."""
    lines = _read_or_problem(label_file) if label_file else []
    try:
        return read_size(path), lines
    except ImageError:
        return None, lines


def _read_or_problem(file: Path) -> list[str] | str:
    """The lines of a label file, or what is wrong with it."""
    try:
        return read_lines(file)
    except DataError as error:
        return str(error)


def _shorten(file: Path | None, bases: Sequence[Path]) -> str:
    """A label file as told in messages."""
    text = str(file)
    for base in bases:
        text = text.removeprefix(f"{base}{os.sep}")
    return text


def _parse_lines(
    lines: Sequence[str],
    where: str,
    has_keypoints: bool,
    problems: list[str],
    bad_boxes: list[str],
) -> list[tuple[str, Line]]:
    """The well-formed lines of a label file, each once, with their places."""
    first: dict[Line, int] = {}
    for i, text in enumerate(lines, start=1):
        if not text:
            continue
        try:
            line = _parse_line(text, has_keypoints)
        except ValueError as error:
            problems.append(f"{where}:{i}: {error}")
            continue
        if min(line.values) < -ROUNDING or max(line.values) > 1 + ROUNDING:
            bad_boxes.append(f"{where}:{i}: {text!r} goes beyond 0 ... 1, the sides of the image")
        elif line in first:
            bad_boxes.append(f"{where}:{i}: the same as line {first[line]}")
        else:
            first[line] = i
    return [(f"{where}:{i}", line) for line, i in first.items()]


def _parse_line(text: str, has_keypoints: bool) -> Line:
    """A line of a label file.

    Raises:
        ValueError: says what is wrong with it.
    """
    try:
        number, *values = map(float, text.split())
    except ValueError:
        raise ValueError(f"{text!r} is not numbers: {COLUMNS}") from None
    if has_keypoints:
        values = values[:4]
    if len(values) == 5:
        raise ValueError(
            f"{text!r} has a sixth column, as predictions with their confidence have; "
            f"expected {COLUMNS}"
        )
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"{len(values) + 1} columns in {text!r}; expected {COLUMNS}")
    if not number.is_integer():
        raise ValueError(f"class {number:g} is no whole number")
    return Line(number, tuple(values))


def _list_box(
    where: str, line: Line, size: tuple[int, int], classes: Mapping[float, tuple[int, str]]
) -> ListedBox:
    height, width = size
    if len(line.values) == 4:
        x, y, w, h = line.values
        corners = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    else:
        xs, ys = line.values[0::2], line.values[1::2]
        corners = min(xs), min(ys), max(xs), max(ys)
    x1, y1, x2, y2 = (
        corners[0] * width,
        corners[1] * height,
        corners[2] * width,
        corners[3] * height,
    )
    label, category = classes.get(line.number, (None, f"{line.number:g}"))
    return ListedBox(where, (x1, y1, x2, y2), label, category, 0, (x2 - x1) * (y2 - y1))
