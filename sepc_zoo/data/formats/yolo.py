"""The YOLO layouts: a text file of boxes for each image; ``data.yaml`` or ``classes.txt``."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sepc_zoo.data.annotations import ListedBox, ListedImage, Listing, Size
from sepc_zoo.data.formats.layout import (
    ONLY_SPLIT,
    Source,
    choose_split,
    read_class_names,
    read_lines,
    read_text,
    report_duplicates,
)
from sepc_zoo.data.images import IMAGE_SUFFIXES, ImageError, list_images, read_size
from sepc_zoo.data.problems import DataError, Problem, unreadable

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
DARKNET_FILE = "obj.data"  # Darknet's data.yaml; CVAT writes it
CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
SPLITS = ("train", "val", "valid", "validation", "minival", "test")

LEAD = re.compile(r"(\.{1,2}/|data/)+")  # Roboflow and CVAT write paths for a folder above
ROUNDING = 1e-3  # tolerance of values outside 0...1
COLUMNS = "'class x y width height' (or 'class x1 y1 x2 y2 x3 y3 ...' of a polygon)"


class YoloFolder(NamedTuple):
    """The classes and splits that a folder's own files declare."""

    file: Path  # names the classes
    names: dict[int, str]  # class names in the order of their numbers
    splits: dict[str, list[str]]  # folders of images, or text files that list images, as written
    bases: list[Path]  # folders to which these may be relative
    has_keypoints: bool = False  # behind each box


class Line(NamedTuple):
    """A line of a label file."""

    number: float  # the class
    values: tuple[float, ...]  # x, y, width, height, or the corners of a polygon, in 0...1


def yolo_splits(root: Source) -> list[str]:
    """List the splits of a folder (or a ``data.yaml``); none for another layout.

    Raises:
        DataError: a broken ``data.yaml`` or ``classes.txt``.
    """
    folder = _describe(Path(root))
    return sorted(folder.splits) if folder else []


def list_yolo(root: Source, split: str) -> Listing:
    """List one split of a folder, with boxes in pixels, unchecked; "val" finds ``valid`` too.

    The folder has a ``data.yaml`` (or is that file), or Darknet's ``obj.data``, or a
    ``classes.txt`` beside ``images/<split>`` and ``labels/<split>``, ``<split>/images`` and
    ``<split>/labels``, or images and text files side by side. Without splits all is "train".
    Labels are in ``labels/`` where the image's path has ``images/``, or beside the image; an image
    without a label file has no boxes. A polygon becomes its bounding box. The category ids are the
    class numbers, the area is width times height. An image's id is its position from 1, by sorted
    path or in the list of images.

    Raises:
        DataError: no such split, or a broken ``data.yaml``, ``classes.txt`` or list of images.
    """
    folder = _describe(Path(root))
    if folder is None:
        raise unreadable(root, "no YOLO data set: it has no data.yaml and no classes.txt")
    split = choose_split(split, list(folder.splits), folder.file, "split {}")
    problems: list[Problem] = []
    paths, has_all = _find_images(folder, split, problems)
    label_files = _find_labels(paths, has_all, problems)
    with ThreadPoolExecutor() as pool:
        sizes = pool.map(_read_size, paths)
        contents = pool.map(_read_label_file, label_files)

    names, ids = list(folder.names.values()), list(folder.names)
    classes: dict[float, tuple[int, str]] = {
        i: (label, f"{i} ({names[label]!r})") for label, i in enumerate(ids)
    }
    images: list[ListedImage] = []
    files = zip(paths, label_files, sizes, contents, strict=True)
    for path, label_file, size, (lines, broken) in files:
        problems += broken
        where = _shorten(label_file, folder.bases)
        places = _parse_lines(lines, where, folder.has_keypoints, problems)
        # An image that cannot be read is found by the checks; until then its boxes have no pixels.
        boxes = [_make_box(place, line, size, classes) for line, place in places.items() if size]
        images.append(ListedImage(len(images) + 1, path, size, boxes))
    return Listing(images, names, ids, problems, folder.file.name)


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
    splits = {
        split: [*map(str, entry if isinstance(entry, list) else [entry])]
        for split in SPLITS
        if (entry := content.get(split))
    }
    if not splits:
        return YoloFolder(path, {}, {}, bases)
    number = content.get("nc")
    names = _parse_names(content.get("names"), number, path, bases)
    if number is not None and number != len(names):
        raise unreadable(path, f"nc is {number!r}, but there are {len(names)} names")
    return YoloFolder(path, names, splits, bases, "kpt_shape" in content)


def _describe_darknet(path: Path) -> YoloFolder:
    pairs = (line.partition("=") for line in read_lines(path))
    content = {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
    bases = [path.parent]
    splits = {split: [content[split]] for split in SPLITS if split in content}
    return YoloFolder(path, _parse_names(content.get("names"), None, path, bases), splits, bases)


def _describe_folders(root: Path) -> YoloFolder | None:
    """Describe a folder that has splits with labels, and a ``classes.txt`` in one of its places."""
    folders = {split: path for split, path in _split_folders(root).items() if _has_labels(path)}
    if not folders:
        return None
    places = [root, root / "labels"]
    for folder in folders.values():
        places += [_label_folder(folder), folder, folder.parent]
    files = [place / name for place in dict.fromkeys(places) for name in CLASS_FILES]
    names = {file: read_class_names(file) for file in files if file.is_file()}
    if not names:
        return None
    first, *others = names
    for file in others:
        if names[file] != names[first]:
            raise unreadable(file, f"has other classes than {first}")
    splits = {split: [str(folder.relative_to(root))] for split, folder in folders.items()}
    return YoloFolder(first, dict(enumerate(names[first])), splits, [root])


def _split_folders(root: Path) -> dict[str, Path]:
    """Find the images of each split of a folder without ``data.yaml``."""
    home = root / "images" if (root / "images").is_dir() else root
    if not home.is_dir() or _has_images(home):
        return {ONLY_SPLIT: home}
    folders = {}
    for child in sorted(filter(Path.is_dir, home.iterdir())):
        folder = child / "images" if (child / "images").is_dir() else child
        if _has_images(folder):
            folders[child.name] = folder
    return folders


def _has_images(folder: Path) -> bool:
    return any(name.lower().endswith(IMAGE_SUFFIXES) for name in os.listdir(folder))


def _has_labels(folder: Path) -> bool:
    folder = _label_folder(folder)
    return folder.is_dir() and any(
        name.endswith(".txt") and name not in CLASS_FILES for name in os.listdir(folder)
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date
        raise unreadable(path, f"not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise unreadable(path, "expected keys like 'train', 'val' and 'names'")
    return content


def _parse_names(names: Any, number: Any, path: Path, bases: Sequence[Path]) -> dict[int, str]:
    """Parse class names by number from a list, a dict or a file; by default the numbers themselves.

    Raises:
        DataError: names the entry.
    """
    if names is None and isinstance(number, int):
        return {i: str(i) for i in range(number)}
    if isinstance(names, str):
        file = _find(names, bases)
        if file is None or not file.is_file():
            raise unreadable(f"{path}: names", f"there is no file {names!r}")
        names = read_class_names(file)
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise unreadable(f"{path}: names", "expected a list or numbers with names")
    texts = []
    for key, name in names.items():
        if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
            texts.append(f"{key}: {name!r} is no text; put it in quotes")
        elif not re.fullmatch("[0-9]+", str(key)):
            texts.append(f"{key!r} is no class number")
    if texts:
        where = f"{path}: names"
        raise DataError([Problem("unreadable annotations", where, text) for text in texts])
    return dict(sorted((int(key), str(name)) for key, name in names.items()))


def _find(text: str, bases: Sequence[Path]) -> Path | None:
    """Follow a path of a data set's own files; None where nothing is.

    A prefix of Roboflow (``../``) or Darknet (``data/``) is ignored if it leads nowhere.
    """
    text = text.replace("\\", "/")
    inner = text[lead.end() :] if (lead := LEAD.match(text)) else text
    places = (base / part for base in bases for part in dict.fromkeys((text, inner)))
    return next((place for place in places if place.exists()), None)


def _find_images(
    folder: YoloFolder, split: str, problems: list[Problem]
) -> tuple[list[Path], bool]:
    """Find the images of a split; the flag says that these are all in their folders."""
    paths: list[Path] = []
    has_all = True
    where = f"{folder.file}: {split}"
    for text in folder.splits[split]:
        place = _find(text, folder.bases)
        if place is None:
            looked = " and ".join(map(str, folder.bases))
            raise unreadable(where, f"there is no {text!r} (looked in {looked})")
        if place.is_dir():
            inside = sorted(_walk_images(place))
            problems += [] if inside else [Problem("no images", str(place), "no images inside")]
            paths += inside
        else:
            has_all = False
            paths += _read_image_list(place, folder.bases, problems)
    problems += report_duplicates(paths, "image listed twice", where)
    return list(dict.fromkeys(paths)), has_all


def _walk_images(folder: Path) -> Iterator[Path]:
    """Walk the images of a folder and those inside it; links are followed, once."""
    seen = set()
    for parent, children, _ in os.walk(folder, followlinks=True):
        is_new = (real := os.path.realpath(parent)) not in seen
        seen.add(real)
        children[:] = [child for child in children if is_new and not child.startswith(".")]
        yield from list_images(parent) if is_new else ()


def _read_image_list(file: Path, bases: Sequence[Path], problems: list[Problem]) -> list[Path]:
    paths = []
    for i, line in enumerate(read_lines(file), start=1):
        path = _find(line, [*bases, file.parent]) if line else None
        if path is not None:
            paths.append(path)
        elif line:
            problems.append(Problem("missing image", f"{file}:{i}", f"there is no image {line!r}"))
    return paths


def _find_labels(
    paths: Sequence[Path], has_all: bool, problems: list[Problem]
) -> list[Path | None]:
    """Find the label file of each image; None where it has none.

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
            text = f"shares its label file {place / name} with {other.name}"
            problems.append(Problem("shared label file", str(path), text))
        found.append(place / name if name in present[place] else None)
    if paths and not any(found):
        text = f"no label file of any of the {len(paths)} images"
        places = " and ".join(sorted(map(str, present)))
        problems.append(Problem("broken entry", places, text))
    if has_all:
        text = "has labels, but there is no image of this name"
        problems += [
            Problem("missing image", str(file), text)
            for place, names in present.items()
            for file in (place / name for name in sorted(names) if name.endswith(".txt"))
            if file not in image_of and file.name not in CLASS_FILES and _is_label_file(file)
        ]
    return found


def _label_folder(folder: Path) -> Path:
    """Find the folder of labels: ``labels`` for the path's last ``images``, or the same folder."""
    parts = folder.parts
    if "images" in parts:
        last = len(parts) - 1 - parts[::-1].index("images")
        labels = Path(*parts[:last], "labels", *parts[last + 1 :])
        return labels if labels.is_dir() else folder
    return folder


def _is_label_file(file: Path) -> bool:
    lines, _ = _read_label_file(file)
    try:
        return any(_parse_line(line, False) for line in lines if line)
    except ValueError:
        return False


def _read_size(path: Path) -> Size | None:
    try:
        return read_size(path)
    except ImageError:
        return None


def _read_label_file(file: Path | None) -> tuple[list[str], list[Problem]]:
    try:
        return read_lines(file) if file else [], []
    except DataError as error:
        return [], [problem._replace(kind="broken entry") for problem in error.problems]


def _shorten(file: Path | None, bases: Sequence[Path]) -> str:
    """Make a label file's path relative to the data set, for messages."""
    text = str(file)
    for base in bases:
        text = text.removeprefix(f"{base}{os.sep}")
    return text


def _parse_lines(
    lines: Sequence[str], where: str, has_keypoints: bool, problems: list[Problem]
) -> dict[Line, str]:
    """Parse the lines of a label file; return each well-formed one once, with its place."""
    places: dict[Line, str] = {}
    for i, text in enumerate(lines, start=1):
        if not text:
            continue
        place = f"{where}:{i}"
        try:
            line = _parse_line(text, has_keypoints)
        except ValueError as error:
            problems.append(Problem("broken entry", place, str(error)))
            continue
        if min(line.values) < -ROUNDING or max(line.values) > 1 + ROUNDING:
            text = f"{text!r} goes beyond 0 ... 1, the sides of the image"
            problems.append(Problem("box outside the image", place, text))
        elif line in places:
            text = f"the same as line {places[line].rpartition(':')[2]}"
            problems.append(Problem("box twice", place, text))
        else:
            places[line] = place
    return places


def _parse_line(text: str, has_keypoints: bool) -> Line:
    """Parse a line of a label file.

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
        reason = "has a sixth column, as predictions with their confidence have"
        raise ValueError(f"{text!r} {reason}; expected {COLUMNS}")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"{len(values) + 1} columns in {text!r}; expected {COLUMNS}")
    if not number.is_integer():
        raise ValueError(f"class {number:g} is no whole number")
    return Line(number, tuple(values))


def _make_box(
    where: str, line: Line, size: Size, classes: Mapping[float, tuple[int, str]]
) -> ListedBox:
    height, width = size
    if len(line.values) == 4:
        x, y, w, h = line.values
        x1, y1, x2, y2 = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    else:
        xs, ys = line.values[0::2], line.values[1::2]
        x1, y1, x2, y2 = min(xs), min(ys), max(xs), max(ys)
    x1, y1, x2, y2 = x1 * width, y1 * height, x2 * width, y2 * height
    label, category = classes.get(line.number, (None, f"{line.number:g}"))
    return ListedBox(where, (x1, y1, x2, y2), label, category, 0, (x2 - x1) * (y2 - y1))
