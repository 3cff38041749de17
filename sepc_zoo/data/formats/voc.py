"""The Pascal VOC layout: ``ImageSets/Main/<split>.txt``, ``Annotations/``, ``JPEGImages/``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

from sepc_zoo.data.annotations import ListedBox, ListedImage, Listing, Size
from sepc_zoo.data.formats.layout import Source, read_lines, report_duplicates
from sepc_zoo.data.images import list_images
from sepc_zoo.data.problems import Problem, unreadable


def voc_splits(root: Source) -> list[str]:
    """List the splits of a folder; none for another layout.

    VOC's own lists for single classes (``cat_train.txt`` beside ``train.txt``) are no splits.
    """
    files = {file.stem: file for file in (Path(root) / "ImageSets" / "Main").glob("*.txt")}
    return sorted(
        stem
        for stem, file in files.items()
        if stem.rpartition("_")[2] not in files.keys() - {stem} or not _has_flags(file)
    )


def list_voc(root: Source, split: str) -> Listing:
    """List one split of a folder, unchecked.

    The classes are the sorted names in all files of ``Annotations``, so that all splits agree, and
    their category ids count from 1. VOC's pixel indices count from 1 and include the last, so a box
    becomes ``(xmin - 1, ymin - 1, xmax, ymax)``. Objects marked ``difficult`` become crowds: VOC's
    evaluation neither rewards nor punishes finding them. An image's id is its position in the split
    file, from 1.

    Raises:
        DataError: no such split.
    """
    root = Path(root)
    stems = _read_split(root, split)
    where = f"ImageSets/Main/{split}.txt"
    problems = report_duplicates(stems, "image listed twice", where)
    paths = {stem: root / "Annotations" / f"{stem}.xml" for stem in stems}
    everywhere = (root / "Annotations").glob("*.xml")
    parsed = ((path, _parse(path, problems)) for path in sorted({*paths.values(), *everywhere}))
    trees = {path: tree for path, tree in parsed if tree is not None}
    objects = (entry for tree in trees.values() for entry in tree.findall("object"))
    names = sorted({_text(entry, "name") for entry in objects} - {""})
    label_of = {name: label for label, name in enumerate(names)}
    folder = root / "JPEGImages"
    files: dict[str, list[Path]] = {}
    for path in list_images(folder) if folder.is_dir() else []:
        files.setdefault(path.stem, []).append(path)
    images = []
    for image_id, stem in enumerate(stems, start=1):
        if paths[stem] not in trees:
            continue  # among the problems already
        if stem not in files:
            problems.append(Problem("missing image", f"{folder / stem}.*", "no image of this name"))
            continue
        tree, where = trees[paths[stem]], f"Annotations/{stem}.xml"
        size = _read_size(tree, where, problems)
        boxes = _list_boxes(tree, label_of, where, problems)
        images.append(ListedImage(image_id, _choose_file(files[stem], tree), size, boxes))
    return Listing(images, names, range(1, len(names) + 1), problems, "Annotations")


def _has_flags(file: Path) -> bool:
    """Whether the first line is ``000012 -1``: an image, and whether it has the class."""
    with file.open("rb") as lines:
        return lines.readline().split()[1:] in ([b"1"], [b"0"], [b"-1"])


def _read_split(root: Path, split: str) -> list[str]:
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        present = ", ".join(voc_splits(root)) or "none"
        raise unreadable(path, f"does not exist; there are: {present}")
    return [line for line in read_lines(path) if line]


def _parse(path: Path, problems: list[Problem]) -> ElementTree.Element | None:
    try:
        return ElementTree.parse(path).getroot()
    except OSError as error:
        problems.append(Problem("broken entry", str(path), str(error.strerror)))
    except ElementTree.ParseError as error:
        problems.append(Problem("broken entry", str(path), f"not well-formed XML: {error}"))
    return None


def _choose_file(files: Sequence[Path], tree: ElementTree.Element) -> Path:
    """Choose the file that ``<filename>`` names, or the first: many tools omit the suffix."""
    name = _text(tree, "filename")
    return next((file for file in files if file.name == name), files[0])


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
            problems.append(Problem("broken entry", place, text))
            continue
        box = xmin - 1, ymin - 1, xmax, ymax
        area = (box[2] - box[0]) * (box[3] - box[1])
        difficult = int(_text(entry, "difficult") == "1")
        boxes.append(ListedBox(place, box, label_of.get(name), repr(name), difficult, area))
    return boxes


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()
