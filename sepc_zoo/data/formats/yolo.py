"""The YOLO layouts: a text file of boxes for each image; ``data.yaml`` or ``classes.txt``."""

import glob
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from sepc_zoo.data.annotations import Size
from sepc_zoo.data.formats.layout import (
    Finder,
    fold,
    index_stems,
    is_image,
    no_image_text,
    report_duplicates,
    walk,
)
from sepc_zoo.data.formats.parsing import read_paths
from sepc_zoo.data.formats.yolo_folder import YoloFolder, describe
from sepc_zoo.data.formats.yolo_labels import (
    is_label_file,
    keypoint_problems,
    label_places,
    list_boxes,
    may_be_labels,
    read_label_file,
)
from sepc_zoo.data.images import ImageError, read_size
from sepc_zoo.data.listing import ListedImage, Listing, Splits
from sepc_zoo.data.problems import Problem, unreadable


def yolo_splits(root: Path) -> Splits:
    """Find the splits of a folder (or a ``data.yaml``); none for another layout.

    Raises:
        DataError: a broken ``data.yaml`` or ``classes.txt``.
    """
    folder = describe(root)
    return {split: partial(_list_split, folder, split) for split in folder.splits} if folder else {}


def _list_split(folder: YoloFolder, split: str) -> Listing:
    """List one split of a folder, with boxes in pixels.

    An image without a label file has no boxes; a label file that no image uses is a problem. The
    category ids are the class numbers, the area is width times height. An image's id is its
    position from 1, by sorted path or in the list of images.
    """
    problems: list[Problem] = []
    paths, has_all = _find_images(folder, split, problems)
    label_files = _find_labels(folder, paths, has_all, problems)
    with ThreadPoolExecutor() as pool:
        sizes = pool.map(_read_size, paths)
        contents = list(pool.map(read_label_file, label_files))
    if not folder.has_keypoints:
        lines = [line for own, _ in contents for line in own]
        problems += keypoint_problems(folder.file.parent, lines)

    names, ids = list(folder.names.values()), list(folder.names)
    classes = {i: (label, f"{i} ({names[label]!r})") for label, i in enumerate(ids)}
    images: list[ListedImage] = []
    files = zip(paths, label_files, sizes, contents, strict=True)
    for i, (path, label_file, size, (lines, broken)) in enumerate(files, start=1):
        problems += broken
        where = _shorten(label_file, folder.bases)
        # The checks report an image that cannot be read; its boxes have no size in pixels here.
        boxes = list_boxes(lines, where, size or (1, 1), classes, folder.has_keypoints, problems)
        images.append(ListedImage(i, path, size, boxes if size else []))
    return Listing(images, names, ids, problems, folder.file.name)


def _find_images(
    folder: YoloFolder, split: str, problems: list[Problem]
) -> tuple[list[Path], bool]:
    """Find the images of a split, and whether they are all the images of their folders."""
    paths: list[Path] = []
    has_all = True
    where, finder = f"{folder.file}: {split}", Finder(folder.bases)
    for text in folder.splits[split]:
        place = finder.find(text)
        if place is None:
            found = _match(text, folder.bases)
            if not found:
                looked = " and ".join(map(str, folder.bases))
                raise unreadable(where, f"there is no {text!r} (looked in {looked})")
        elif place.is_dir():
            found = sorted(p / name for p, names in walk(place) for name in filter(is_image, names))
            problems += [] if found else [Problem("no images", str(place), "no images inside")]
        elif is_image(place.name):
            found = [place]
        else:
            found = _read_image_list(place, folder.bases, problems)
        paths += found
        has_all = has_all and place is not None and place.is_dir()
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
    places = {parent: label_places(parent, finder) for parent in {path.parent for path in paths}}
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
    alone = [
        place / name
        for place, own in stems.items()
        for name in finder.listing(place)
        if has_all and may_be_labels(name) and fold(Path(name).stem) not in own
    ]
    alone = [file for file in alone if is_label_file(file)]
    by_stem = index_stems(folder.bases) if alone or None in found else {}
    unread = [
        problem
        for path, file in zip(paths, found, strict=True)
        if file is None
        for problem in _unread_labels(path, by_stem.get(fold(path.stem), []), finder)
    ]
    problems += unread
    if paths and not any(found) and not unread:
        text = f"no label file of any of the {len(paths)} images"
        problems.append(Problem("no label files", " and ".join(sorted(map(str, stems))), text))
    for file in alone:
        text = f"has labels, but there is {no_image_text(by_stem.get(fold(file.stem), []))}"
        problems.append(Problem("missing image", str(file), text))
    return found


def _unread_labels(path: Path, alike: Sequence[Path], finder: Finder) -> Iterator[Problem]:
    """List label files, among all files of an image's stem, that lie where none are looked for."""
    images = (file.parent for file in alike if is_image(file.name))
    read = {place for parent in images for place in label_places(parent, finder)}
    for file in alike:
        if may_be_labels(file.name) and file.parent not in read and is_label_file(file):
            place = label_places(path.parent, finder)[0]
            text = f"is not read: the labels of {path} are looked for in {place}"
            yield Problem("unread label file", str(file), text)


def _read_size(path: Path) -> Size | None:
    try:
        return read_size(path)
    except ImageError:
        return None


def _shorten(file: Path | None, bases: Sequence[Path]) -> str:
    """Make a label file's path relative to the data set, for messages."""
    text = str(file)
    for base in bases:
        text = text.removeprefix(f"{base}{os.sep}")
    return text
