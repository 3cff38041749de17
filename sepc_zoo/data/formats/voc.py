"""The Pascal VOC layouts: an XML file of boxes for each image, beside it or in another folder."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

from sepc_zoo.data.annotations import Size
from sepc_zoo.data.formats.layout import (
    ONLY_SPLIT,
    Finder,
    common_end,
    fold,
    index_stems,
    is_image,
    no_image_text,
    report_duplicates,
    split_of,
    split_word,
    walk,
)
from sepc_zoo.data.formats.parsing import read_paths
from sepc_zoo.data.listing import ListedBox, ListedImage, Listing, Splits
from sepc_zoo.data.problems import Problem

LIST_FOLDERS = ("ImageSets/Main", "ImageSets", ".")
FLAG = re.compile(r"\s+(-1|0|1)$")  # behind an image: whether it has the class of its list
ROOT_TAG = re.compile(rb"<annotation[\s>]")  # CVAT's own files have <annotations>
HEAD = 1024  # bytes of a file that are searched for its root
DECLARATION = re.compile(rb"<\?xml[^>]*?encoding\s*=\s*[\"']([\w.:-]+)[\"'][^>]*\?>")
IMAGE_FOLDERS = ("jpegimages", "images", "image", "img", "imgs")


def voc_splits(root: Path) -> Splits:
    """Find the splits of a folder, as lists of images or folders of XML files; none elsewhere.

    VOC's own lists of single classes (``cat_train.txt`` beside ``train.txt``) are not splits.
    """
    files = _find_xml(root)
    found = _find_lists(root, files) or _group_by_folder(root, files)
    return {name: partial(_list_split, root, files, paths) for name, paths in found.items()}


def _list_split(root: Path, files: Sequence[Path], paths: Path | Sequence[Path]) -> Listing:
    """List the images of XML files, or of a file that lists them.

    The classes are the sorted names in all XML files, so that all splits agree; their category ids
    count from 1. VOC's pixel indices count from 1 and include the last pixel, so a box becomes
    ``(xmin - 1, ymin - 1, xmax, ymax)``. Objects marked ``difficult`` become crowds: VOC's
    evaluation neither rewards nor punishes finding them. An image's id is its position in the
    split, from 1.
    """
    problems: list[Problem] = []
    if isinstance(paths, Path):
        where, paths = str(paths.relative_to(root)), _read_list(paths, root, files)
        stems = [path.stem for path in paths]
        problems += report_duplicates(stems, "image listed twice", where)
    by_stem = index_stems([root])
    parsed = {path: _parse(path, problems) for path in sorted({*paths, *files})}
    trees = {path: tree for path, tree in parsed.items() if tree is not None}
    objects = (entry for tree in trees.values() for entry in tree.findall("object"))
    names = sorted({_text(entry, "name") for entry in objects} - {""})
    label_of = {name: label for label, name in enumerate(names)}
    listed = []
    for image_id, path in enumerate(paths, start=1):
        if (tree := trees.get(path)) is None:
            continue  # among the problems already
        where = str(path.relative_to(root))
        image = _choose_image(path, tree, by_stem.get(fold(path.stem), []), root)
        if isinstance(image, Problem):
            problems.append(image)
            continue
        boxes = _list_boxes(tree, label_of, where, problems)
        listed.append(ListedImage(image_id, image, _read_size(tree, where, problems), boxes))
    return Listing(listed, names, range(1, len(names) + 1), problems, "Annotations")


def _find_lists(root: Path, files: Sequence[Path]) -> dict[str, Path]:
    """Find the lists of images by split; outside ImageSets/Main their first image needs an XML."""
    for place in LIST_FOLDERS:
        lists = {
            file.stem: file
            for file in (root / place).glob("*.txt")
            if place == LIST_FOLDERS[0]
            or (split_word(file.stem) and files and {*_read_list(file, root, files)[:1]} & {*files})
        }
        if lists:
            return {
                stem: file
                for stem, file in lists.items()
                if stem.rpartition("_")[2] not in lists.keys() - {stem} or not _has_flags(file)
            }
    return {}


def _group_by_folder(root: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    groups: dict[str, list[Path]] = defaultdict(list)
    for file in files:
        groups[split_of(file.relative_to(root).parent.parts) or ONLY_SPLIT].append(file)
    return groups


def _has_flags(file: Path) -> bool:
    """Whether the first line is ``000012 -1``: an image, and whether it has the class."""
    with file.open("rb") as lines:
        return lines.readline().split()[1:] in ([b"1"], [b"0"], [b"-1"])


def _read_list(file: Path, root: Path, files: Sequence[Path]) -> list[Path]:
    """Read the XML file of each line: ``a``, ``a 1``, ``a.jpg`` or ``folder/a``."""
    lines = [line for line in read_paths(file) if line]
    if all(map(FLAG.search, lines)):
        lines = [FLAG.sub("", line) for line in lines]
    finder = Finder(dict.fromkeys(path.parent for path in files))
    home = finder.follow(root, ["Annotations"]) or root / "Annotations"
    finder.bases.insert(0, home)
    stems = [line[: line.rindex(".")] if is_image(line) else line for line in lines]
    found = [(stem, finder.find(f"{stem}.xml")) for stem in stems]
    return [
        path if path and path.is_relative_to(root) else home / f"{stem}.xml" for stem, path in found
    ]


def _find_xml(root: Path) -> list[Path]:
    """Find the annotations; the first XML file of a folder decides for all files of the folder."""
    found: list[Path] = []
    for folder, names in walk(root):
        files = [folder / name for name in names if name.lower().endswith(".xml")]
        if files and _is_annotation(files[0]):
            found += files
    return found


def _is_annotation(file: Path) -> bool:
    with file.open("rb") as opened:
        return ROOT_TAG.search(opened.read(HEAD).replace(b"\0", b"")) is not None


def _choose_image(
    path: Path, tree: ElementTree.Element, alike: Sequence[Path], root: Path
) -> Path | Problem:
    """Choose the image of an XML file among the files of its stem.

    That is the one in the nearest folder, then the one that ``<filename>`` names (many tools omit
    the suffix), then one in a folder named for images.
    """
    own, name = path.relative_to(root).parent.parts, _text(tree, "filename")

    def rank(image: Path) -> tuple[bool, int, bool, bool]:
        parts = image.relative_to(root).parent.parts
        is_home = any(fold(part) in IMAGE_FOLDERS for part in parts)
        shared = common_end(own, parts) + common_end(own[::-1], parts[::-1])
        return parts == own, shared, image.name == name, is_home

    images = [file for file in alike if is_image(file.name)]
    if not images:
        return Problem("missing image", str(path), no_image_text(alike))
    best = max(map(rank, images))
    first, *others = [image for image in images if rank(image) == best]
    if any(image.parent != first.parent for image in others):
        text = f"its image could be {' or '.join(map(str, (first, *others)))}"
        return Problem("missing image", str(path), text)
    return first


def _parse(path: Path, problems: list[Problem]) -> ElementTree.Element | None:
    """Parse an XML file of any encoding that Python knows; None where it is broken."""
    try:
        data = path.read_bytes().lstrip()
        declared = DECLARATION.search(data[:HEAD])
        if declared is None:
            return ElementTree.fromstring(data)
        name = declared[1].decode("ascii").lower()  # the parser knows no multi-byte encodings
        name = "gb18030" if name.startswith("gb") else name  # GB 18030 includes GB 2312 and GBK
        return ElementTree.fromstring(data[declared.end() :].decode(name))
    except OSError as error:
        problems.append(Problem("broken entry", str(path), str(error.strerror)))
    except (ValueError, ElementTree.ParseError, LookupError, RecursionError) as error:
        problems.append(Problem("broken entry", str(path), f"not well-formed XML: {error}"))
    return None


def _read_size(tree: ElementTree.Element, where: str, problems: list[Problem]) -> Size | None:
    """Read the annotated size; None where the file has none, or zeros as some tools write."""
    texts = _text(tree, "size/height"), _text(tree, "size/width")
    if texts == ("", ""):
        return None
    try:
        height, width = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):
        problems.append(Problem("broken entry", where, f"size {texts} is not two numbers"))
        return None
    return (height, width) if height and width else None


def _list_boxes(
    tree: ElementTree.Element, label_of: Mapping[str, int], where: str, problems: list[Problem]
) -> list[ListedBox]:
    boxes = []
    for i, entry in enumerate(tree.findall("object"), start=1):
        place = f"{where}: object {i}"
        name = _text(entry, "name")
        corners = [_text(entry, f"bndbox/{key}") for key in ("xmin", "ymin", "xmax", "ymax")]
        try:
            xmin, ymin, xmax, ymax = map(float, corners)
        except ValueError:
            text = f"bndbox {corners} is not four numbers"
            if entry.find("bndbox") is None and entry.find("robndbox") is not None:
                text = "a rotated box (robndbox), which is not read; draw an upright one (bndbox)"
            problems.append(Problem("broken entry", place, text))
            continue
        if xmax < xmin or ymax < ymin:
            text = f"corners {corners} are in the wrong order"
            problems.append(Problem("corners swapped", place, text))
        (xmin, xmax), (ymin, ymax) = sorted((xmin, xmax)), sorted((ymin, ymax))
        box = xmin - 1, ymin - 1, xmax, ymax
        area = (xmax - (xmin - 1)) * (ymax - (ymin - 1))
        difficult = int(_text(entry, "difficult") == "1")
        boxes.append(ListedBox(place, box, label_of.get(name), repr(name), difficult, area))
    return boxes


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
