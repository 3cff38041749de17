"""The Pascal VOC layout: ``ImageSets/Main/<split>.txt``, ``Annotations/``, ``JPEGImages/``."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from sepc_zoo.data.annotations import (
    Annotations,
    DataError,
    ListedBox,
    ListedImage,
    Listing,
    build_annotations,
    find_duplicates,
)
from sepc_zoo.data.formats.layout import read_lines
from sepc_zoo.data.images import list_images


def voc_splits(root: str | os.PathLike[str]) -> list[str]:
    """The splits of a folder in the VOC layout; empty for another layout.

    VOC's own lists for single classes (``cat_train.txt`` beside ``train.txt``) are no splits.
    """
    files = {file.stem: file for file in (Path(root) / "ImageSets" / "Main").glob("*.txt")}
    return sorted(
        stem
        for stem, file in files.items()
        if stem.rpartition("_")[2] not in files.keys() - {stem} or not _has_flags(file)
    )


def read_voc(
    root: str | os.PathLike[str],
    split: str,
    label_names: Sequence[str] | None = None,
    drop_bad_boxes: bool = False,
) -> Annotations:
    """Read one split of a folder in the Pascal VOC layout.

    The data set's classes are the sorted names of all files in ``Annotations``, so that all splits
    agree, and their category ids count from 1. Labels follow them, or ``label_names``; names that
    the data set does not have get the category id None. VOC's pixel indices count from 1 and
    include the last, so a box becomes ``(xmin - 1, ymin - 1, xmax, ymax)``. Objects marked
    ``difficult`` become ``iscrowd`` 1: VOC's evaluation neither rewards nor punishes finding them.
    An image's id is its position in the split file, from 1. With ``drop_bad_boxes``, boxes that are
    empty, outside their image or not finite are left out.

    Raises:
        DataError: no such split, or lists every broken image file and every broken entry.
    """
    return build_annotations(list_voc(root, split), label_names, drop_bad_boxes)


def list_voc(root: str | os.PathLike[str], split: str) -> Listing:
    """One split of a folder in the Pascal VOC layout, unchecked.

    Raises:
        DataError: no such split.
    """
    root = Path(root)
    stems = _read_split(root, split)
    problems = [
        f"ImageSets/Main/{split}.txt: {stem} is there twice" for stem in find_duplicates(stems)
    ]
    paths = {stem: root / "Annotations" / f"{stem}.xml" for stem in stems}
    everywhere = (root / "Annotations").glob("*.xml")
    trees = _parse_all(sorted({*paths.values(), *everywhere}), problems)
    objects = (entry for tree in trees.values() for entry in tree.findall("object"))
    names = sorted({_text(entry, "name") for entry in objects} - {""})
    label_of = {name: label for label, name in enumerate(names)}
    files = _files_by_stem(root / "JPEGImages")
    images = []
    for image_id, stem in enumerate(stems, start=1):
        if paths[stem] not in trees:
            continue  # among the problems already
        if stem not in files:
            problems.append(f"{root / 'JPEGImages' / stem}.*: no image of this name")
            continue
        tree, where = trees[paths[stem]], f"Annotations/{stem}.xml"
        size = _read_size(tree, where, problems)
        boxes = _list_boxes(tree, label_of, where, problems)
        images.append(ListedImage(image_id, _choose_file(files[stem], tree), size, boxes))
    ids = range(1, len(names) + 1)
    return Listing(images, names, ids, problems, "Annotations")


def _has_flags(file: Path) -> bool:
    """Whether the first line is ``000012 -1``: an image, and whether it has the class."""
    with file.open("rb") as lines:
        return lines.readline().split()[1:] in ([b"1"], [b"0"], [b"-1"])


def _read_split(root: Path, split: str) -> list[str]:
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        present = ", ".join(voc_splits(root)) or "none"
        raise DataError([f"{path} does not exist; there are: {present}"])
    return [line for line in read_lines(path) if line]


def _parse_all(paths: Sequence[Path], problems: list[str]) -> dict[Path, ElementTree.Element]:
    """The XML trees by file, without those of files that are missing or not well-formed."""
    trees = ((path, _parse(path, problems)) for path in paths)
    return {path: tree for path, tree in trees if tree is not None}


def _parse(path: Path, problems: list[str]) -> ElementTree.Element | None:
    try:
        return ElementTree.parse(path).getroot()
    except OSError as error:
        problems.append(f"{path}: {error.strerror}")
    except ElementTree.ParseError as error:
        problems.append(f"{path}: not well-formed XML: {error}")
    return None


def _files_by_stem(folder: Path) -> dict[str, list[Path]]:
    files: dict[str, list[Path]] = {}
    for path in list_images(folder) if folder.is_dir() else []:
        files.setdefault(path.stem, []).append(path)
    return files


def _choose_file(files: Sequence[Path], tree: ElementTree.Element) -> Path:
    """The file that ``<filename>`` names, or the first of its stem: many tools omit the suffix."""
    name = _text(tree, "filename")
    return next((file for file in files if file.name == name), files[0])


def _read_size(
    tree: ElementTree.Element, where: str, problems: list[str]
) -> tuple[int, int] | None:
    """The annotated (height, width); None where the file has none, or zeros as some tools write."""
    texts = _text(tree, "size/height"), _text(tree, "size/width")
    if texts == ("", ""):
        return None
    try:
        height, width = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):
        problems.append(f"{where}: size {texts} is not two numbers")
        return None
    return (height, width) if height and width else None


def _list_boxes(
    tree: ElementTree.Element, label_of: Mapping[str, int], where: str, problems: list[str]
) -> list[ListedBox]:
    boxes = []
    for i, entry in enumerate(tree.findall("object"), start=1):
        place = f"{where}: object {i}"
        name = _text(entry, "name")
        corners = [_text(entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            xmin, ymin, xmax, ymax = map(float, corners)
        except ValueError:
            problems.append(f"{place}: bndbox {corners} is not four numbers")
            continue
        box = xmin - 1, ymin - 1, xmax, ymax
        area = (box[2] - box[0]) * (box[3] - box[1])
        difficult = int(_text(entry, "difficult") == "1")
        boxes.append(ListedBox(place, box, label_of.get(name), repr(name), difficult, area))
    return boxes


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
