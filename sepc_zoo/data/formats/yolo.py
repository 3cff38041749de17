"""The YOLO layouts: a text file of boxes for each image; ``data.yaml`` or ``classes.txt``."""

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sepc_zoo.data.annotations import ListedBox, ListedImage, Listing, Size
from sepc_zoo.data.formats.layout import (
    ONLY_SPLIT,
    Finder,
    Source,
    choose_split,
    fold,
    index_stems,
    is_image,
    no_image_text,
    parse_id,
    read_class_names,
    read_lines,
    read_paths,
    read_text,
    report_duplicates,
    split_word,
    walk,
)
from sepc_zoo.data.images import ImageError, read_size
from sepc_zoo.data.problems import DataError, Problem, unreadable

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
YAML_SUFFIXES = (".yaml", ".yml")
DARKNET_FILE = "obj.data"  # Darknet's data.yaml; CVAT writes it
CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
SPLITS = ("train", "val", "valid", "validation", "minival", "test")

IMAGE_FOLDERS = ("images", "jpegimages")  # in whose place a path of labels has "labels"
MIN_POLYGON = 6  # numbers of a triangle
MAX_BEYOND = 1.0  # of a side of the image; values further outside are no fractions of it
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
    without a label file has no boxes, and labels that would lie elsewhere are a problem. Paths are
    found by their end, whatever their case. A polygon becomes its bounding box. The category ids
    are the class numbers, the area is width times height. An image's id is its position from 1, by
    sorted path or in the list of images.

    Raises:
        DataError: no such split, or a broken ``data.yaml``, ``classes.txt`` or list of images.
    """
    folder = _describe(Path(root))
    if folder is None:
        raise unreadable(root, "no YOLO data set: it has no data.yaml and no classes.txt")
    split = choose_split(split, list(folder.splits), folder.file, "split {}")
    problems: list[Problem] = []
    paths, has_all = _find_images(folder, split, problems)
    label_files = _find_labels(folder, paths, has_all, problems)
    with ThreadPoolExecutor() as pool:
        sizes = pool.map(_read_size, paths)
        contents = list(pool.map(_read_label_file, label_files))
    if not folder.has_keypoints:
        problems += _keypoint_problems(folder, [line for lines, _ in contents for line in lines])

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
    if root.is_file() and root.suffix.lower() in YAML_SUFFIXES:
        return _describe_yaml(root)
    if (file := _find_yaml(root)) is not None:
        return _describe_yaml(file)
    if (root / DARKNET_FILE).is_file():
        return _describe_darknet(root / DARKNET_FILE)
    return _describe_folders(root)


def _find_yaml(root: Path) -> Path | None:
    """Find the YAML file of a folder that has splits, by its usual names or any other."""
    usual = [root / name for name in YAML_FILES if (root / name).is_file()]
    others = sorted({p for suffix in YAML_SUFFIXES for p in root.glob(f"*{suffix}")} - {*usual})
    found = [file for file in usual if any(map(_read_yaml(file).get, SPLITS))]
    if not found:
        for file in others:
            with suppress(DataError):  # a file of another program
                content = _read_yaml(file)
                found += [file] if "names" in content and any(map(content.get, SPLITS)) else []
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise unreadable(root, f"could be any of: {names}; give the file instead of its folder")
    return found[0] if found else None


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
    number = None if content.get("nc") is None else parse_id(content["nc"])
    names = _parse_names(content.get("names"), number, path, bases)
    if number is not None and number != len(names):
        raise unreadable(path, f"nc is {number}, but there are {len(names)} names")
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
    finder = Finder([root])
    places = [root, finder.follow(root, ["labels"]) or root]
    for folder in folders.values():
        places += [*_label_places(folder, finder), folder.parent]
    files = [finder.follow(p, [name]) for p in dict.fromkeys(places) for name in CLASS_FILES]
    names = {file: read_class_names(file) for file in files if file is not None}
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
    finder = Finder([root])
    home = finder.follow(root, ["images"]) or root
    folders = {}
    if home.is_dir() and not _has_images(home):
        for child in sorted(filter(Path.is_dir, home.iterdir())):
            folder = finder.follow(child, ["images"]) or child
            if _has_images(folder):
                folders[child.name] = folder
    return folders if any(map(split_word, folders)) else {ONLY_SPLIT: home}


def _has_images(folder: Path) -> bool:
    return any(map(is_image, os.listdir(folder)))


def _has_labels(folder: Path) -> bool:
    finder = Finder([])
    images = (place for place, names in walk(folder) if any(map(is_image, names)))
    places = {place for parent in images for place in _label_places(parent, finder)}
    return any(_may_be_labels(name) for place in places for name in finder.listing(place))


def _may_be_labels(name: str) -> bool:
    return name.lower().endswith(".txt") and name.lower() not in CLASS_FILES


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, with which a small file can describe an endless one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: impossible date
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
        file = Finder(bases).find(names)
        if file is None or not file.is_file():
            text = f"there is no file {names!r}; names of classes are a list, [{names}]"
            raise unreadable(f"{path}: names", text)
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


def _find_images(
    folder: YoloFolder, split: str, problems: list[Problem]
) -> tuple[list[Path], bool]:
    """Find the images of a split; the flag says that these are all in their folders."""
    paths: list[Path] = []
    has_all = True
    where, finder = f"{folder.file}: {split}", Finder(folder.bases)
    for text in folder.splits[split]:
        place = finder.find(text)
        if place is None and (matches := _match(text, folder.bases)):
            has_all = False
            paths += matches
        elif place is None:
            looked = " and ".join(map(str, folder.bases))
            raise unreadable(where, f"there is no {text!r} (looked in {looked})")
        elif place.is_dir():
            inside = sorted(
                p / name for p, names in walk(place) for name in filter(is_image, names)
            )
            problems += [] if inside else [Problem("no images", str(place), "no images inside")]
            paths += inside
        elif is_image(place.name):
            has_all = False
            paths.append(place)
        else:
            has_all = False
            paths += _read_image_list(place, folder.bases, problems)
    problems += report_duplicates(paths, "image listed twice", where)
    return list(dict.fromkeys(paths)), has_all


def _match(pattern: str, bases: Sequence[Path]) -> list[Path]:
    """Find the images that a pattern such as ``images/train/*.jpg`` matches below a base."""
    for base in bases:
        names = glob.glob(pattern, root_dir=base, recursive=True) if glob.has_magic(pattern) else ()
        if found := sorted(base / name for name in names if is_image(name)):
            return found
    return []


def _read_image_list(file: Path, bases: Sequence[Path], problems: list[Problem]) -> list[Path]:
    paths, finder = [], Finder([*bases, file.parent])
    for i, line in enumerate(read_paths(file), start=1):
        path = finder.find(line) if line else None
        if path is not None:
            paths.append(path)
        elif line:
            problems.append(Problem("missing image", f"{file}:{i}", f"there is no image {line!r}"))
    return paths


def _find_labels(
    folder: YoloFolder, paths: Sequence[Path], has_all: bool, problems: list[Problem]
) -> list[Path | None]:
    """Find the label file of each image; None where it has none.

    With ``has_all``, a label file without an image is a problem too.
    """
    finder = Finder([])
    places = {parent: _label_places(parent, finder) for parent in {path.parent for path in paths}}
    stems: dict[Path, set[str]] = defaultdict(set)  # of the images whose labels a folder may hold
    image_of: dict[Path, Path] = {}
    found: list[Path | None] = []
    for path in paths:
        files = [finder.follow(place, [f"{path.stem}.txt"]) for place in places[path.parent]]
        found.append(file := next(filter(None, files), None))
        for place in places[path.parent]:
            stems[place].add(fold(path.stem))
        if file and (other := image_of.setdefault(file, path)) != path:
            text = f"shares its label file {file} with {other.name}"
            problems.append(Problem("shared label file", str(path), text))
    unread = _unread_labels(folder, paths, found)
    problems += unread
    if paths and not any(found) and not unread:
        text = f"no label file of any of the {len(paths)} images"
        problems.append(Problem("broken entry", " and ".join(sorted(map(str, stems))), text))
    alone = [
        place / name
        for place, own in stems.items()
        for name in finder.listing(place)
        if _may_be_labels(name) and fold(Path(name).stem) not in own
    ]
    alone = [file for file in alone if has_all and _is_label_file(file)]
    by_stem = _index(folder) if alone else {}
    for file in alone:
        text = f"has labels, but there is {no_image_text(by_stem.get(fold(file.stem), []))}"
        problems.append(Problem("missing image", str(file), text))
    return found


def _unread_labels(
    folder: YoloFolder, paths: Sequence[Path], found: Sequence[Path | None]
) -> list[Problem]:
    """List the label files of images without labels that lie where they are not looked for."""
    lost = [path for path, file in zip(paths, found, strict=True) if file is None]
    by_stem = _index(folder) if lost else {}
    problems, finder = [], Finder([])
    for path in lost:
        alike = by_stem.get(fold(path.stem), [])
        images = (file.parent for file in alike if is_image(file.name))
        read = {place for parent in images for place in _label_places(parent, finder)}
        for file in alike:
            if _may_be_labels(file.name) and file.parent not in read and _is_label_file(file):
                place = _label_places(path.parent, finder)[0]
                text = f"is not read: the labels of {path} are looked for in {place}"
                problems.append(Problem("unread label file", str(file), text))
    return problems


def _index(folder: YoloFolder) -> dict[str, list[Path]]:
    index: dict[str, list[Path]] = defaultdict(list)
    for base in folder.bases:
        for stem, files in index_stems(base).items():
            index[stem] += [file for file in files if file not in index[stem]]
    return index


def _label_places(folder: Path, finder: Finder) -> list[Path]:
    """List the folders where labels of the images of a folder may be.

    They are those with ``labels`` for an ``images`` of the path, the last first, and the same one.
    """
    parts = folder.parts
    places = []
    for i in reversed(range(len(parts))):
        if fold(parts[i]) in IMAGE_FOLDERS:
            above = Path(*parts[:i])
            others = sorted(finder.names(above).get("labels", ()))  # "Labels" is another folder
            places += [finder.follow(above, [name, *parts[i + 1 :]]) for name in others]
    return [*filter(None, places), folder]


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


def _keypoint_problems(folder: YoloFolder, lines: Iterable[str]) -> list[Problem]:
    """Say that what could be polygons looks like boxes with keypoints.

    All lines are then of one length, their first numbers are boxes around the following points, and
    as the second corner of a polygon, width and height would mostly lie far from the others.
    """
    rows = [row for text in lines if len(row := _numbers(text)) >= MIN_POLYGON]
    if len({len(row) for row in rows}) != 1:
        return []
    for size in (2, 3):  # x and y, or these and visibility
        count, rest = divmod(len(rows[0]) - 4, size)
        if rest or not all(_is_box_of_points(row, size) for row in rows):
            continue
        if size == 2 and sum(map(_far_second_corner, rows)) * 2 < len(rows):
            continue
        text = (
            f"{len(rows[0]) + 1} columns look like boxes with keypoints: declare them in a "
            f"data.yaml (kpt_shape: [{count}, {size}]), or remove all columns after the fifth"
        )
        return [Problem("broken entry", str(folder.file.parent), text)]
    return []


def _numbers(text: str) -> list[float]:
    """Parse the values of a line behind its class; none where they are no numbers."""
    try:
        return [float(value) for value in text.split()[1:]]
    except ValueError:
        return []


def _is_box_of_points(row: Sequence[float], size: int) -> bool:
    """Whether all points after the first four numbers are in the box of these, or unknown: 0, 0."""
    x, y, width, height = row[:4]
    points = zip(row[4::size], row[5::size], strict=True)
    if size == 3 and not {*row[6::3]} <= {0, 1, 2}:
        return False
    return all(
        (abs(px - x) <= width / 2 and abs(py - y) <= height / 2) or px == py == 0
        for px, py in points
    )


def _far_second_corner(row: Sequence[float]) -> bool:
    """Whether the second corner is further from the others than these from each other."""
    for axis in (0, 1):
        others = [row[axis], *row[4 + axis :: 2]]
        size = max(others) - min(others)
        if not min(others) - size <= row[2 + axis] <= max(others) + size:
            return True
    return False


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
        if any(abs(value - 0.5) > 0.5 + MAX_BEYOND for value in line.values):
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
    if len(values) != 4 and (len(values) < MIN_POLYGON or len(values) % 2):
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
