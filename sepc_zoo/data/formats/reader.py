"""Reading a data set of any known layout, or several as one."""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

from sepc_zoo.data.annotations import Annotations, build_annotations
from sepc_zoo.data.formats.coco import coco_splits
from sepc_zoo.data.formats.huggingface import huggingface_splits
from sepc_zoo.data.formats.huggingface_tables import is_hub_name
from sepc_zoo.data.formats.layout import Source, choose_split, is_visible
from sepc_zoo.data.formats.voc import voc_splits
from sepc_zoo.data.formats.yolo import yolo_splits
from sepc_zoo.data.listing import ListedBox, ListedImage, Listing, Splits, relabel, unite_classes
from sepc_zoo.data.problems import DataError, Problem, unreadable
from sepc_zoo.files import encodable

Placed = TypeVar("Placed", ListedBox, Problem)

MAX_NAMES = 20  # files of a folder that an error lists
MAX_ABOVE = 2  # levels that the given folder may lie above the data set
MAX_FOLDERS = 200  # folders that are tried


class DataFormat(NamedTuple):
    """A layout of data sets; a folder has it if ``splits`` finds splits in it."""

    layout: Sequence[str]  # the lines of a small tree of its files, for messages
    splits: Callable[[Path], Splits]


class DataSource(NamedTuple):
    """A data set that was found: its folder, file or name on the hub, and its splits."""

    root: Source
    splits: Splits

    def list(self, split: str) -> Listing:
        """List a split, unchecked, with class names that can be encoded in every file.

        "train" also finds ``train2017``, and "val" finds ``valid``; see ``choose_split``.
        """
        listing = self.splits[choose_split(split, [*self.splits], self.root)]()
        return listing._replace(label_names=[*map(encodable, listing.label_names)])


FORMATS = {
    "coco": DataFormat(
        (
            "annotations/instances_train.json  (or train/_annotations.coco.json, result.json)",
            "train/1.jpg                       (or images/train/1.jpg)",
        ),
        coco_splits,
    ),
    "voc": DataFormat(
        (
            "Annotations/1.xml                 (or beside the images)",
            "JPEGImages/1.jpg                  (or images/1.jpg, train/1.jpg)",
            "ImageSets/Main/train.txt          (or folders named by their split)",
        ),
        voc_splits,
    ),
    "yolo": DataFormat(
        (
            "data.yaml                         (with train and names; or classes.txt)",
            "images/train/1.jpg                (or train/images/1.jpg)",
            "labels/train/1.txt                (or beside the images)",
        ),
        yolo_splits,
    ),
    "hf": DataFormat(
        (
            "train/metadata.jsonl              (or metadata.csv, parquet, save_to_disk)",
            "train/1.jpg",
        ),
        huggingface_splits,
    ),
}


def read_data(
    roots: Source | Sequence[Source],
    split: str,
    label_names: Sequence[str] | None = None,
    drop_bad_boxes: bool = False,
    format: str | None = None,
    skip_bad_images: bool = False,
) -> Annotations:
    """Read one split of a data set, or of several as one.

    Several are joined by class name, in order of first appearance; see ``join_listings``.

    Args:
        roots: A folder, the ``data.yaml`` of one, ``hf-hub:org/name`` of a data set of the hub, or
            several of these.
        split: For example "train" or "val".
        label_names: As in ``build_annotations``, with ``drop_bad_boxes`` and ``skip_bad_images``.
        format: "coco", "voc", "yolo" or "hf"; by default the layout of each folder decides.

    Raises:
        DataError: an unknown layout, a missing split, or all broken files and entries.
    """
    listing = list_data(roots, split, format)
    return build_annotations(listing, label_names, drop_bad_boxes, skip_bad_images)


def list_data(roots: Source | Sequence[Source], split: str, format: str | None = None) -> Listing:
    """List what ``read_data`` reads, unchecked.

    Raises:
        DataError: an unknown layout, or a missing split.
    """
    sources = as_sources(roots)
    if len(sources) == 1:
        return find_data(sources[0], format).list(split)
    listings: list[Listing] = []
    problems: list[Problem] = []
    hint = ""
    for source in sources:
        try:
            listings.append(find_data(source, format).list(split))
        except DataError as error:
            hint = error.hint
            problems += _name_source(source, error.problems)
    if problems:
        raise DataError(problems, hint)
    return join_listings(listings, sources)


def as_sources(roots: Source | Sequence[Source]) -> list[Source]:
    return [roots] if isinstance(roots, str | os.PathLike) else list(roots)


def find_data(root: Source, format: str | None = None) -> DataSource:
    """Find a data set by the layout of its folder, or of a folder or two below it.

    Raises:
        DataError: no such folder, a layout of no known format or of several, or not of the one
            asked for.
    """
    if format is not None and format not in FORMATS:
        raise unreadable("", f"there is no format {format!r}; there are: {', '.join(FORMATS)}")
    if is_hub_name(root):
        return DataSource(root, huggingface_splits(root))
    if not Path(root).exists():
        raise unreadable(root, "no such folder")
    asked = [*FORMATS] if format is None else [format]
    places = [Path(root)]
    for _ in range(MAX_ABOVE + 1):
        found = {(place, n): FORMATS[n].splits(place) for place in places for n in asked}
        found = {key: dict(sorted(splits.items())) for key, splits in found.items() if splits}
        if len(found) == 1:
            (((place, _), splits),) = found.items()
            return DataSource(place, splits)
        if found:
            several = len({place for place, _ in found}) > 1
            names = " or ".join(name for _, name in found)
            say = "Give one of these folders" if several else f"Say --format {names}"
            text = ", ".join(f"{place} ({name})" for place, name in found)
            raise unreadable(root, f"could be any of: {text}. {say}")
        places = [p for place in places for p in _inner_folders(place)][:MAX_FOLDERS]
    known = "no known layout" if format is None else f"not in the layout of {format}"
    trees = ["\n    ".join([f"  {name}:", *FORMATS[name].layout]) for name in asked]
    hint = "\n".join(["Arrange it as one of these:", *trees])
    raise unreadable(root, f"{known}. There is: {_names(Path(root))}", hint)


def _inner_folders(folder: Path) -> list[Path]:
    with suppress(OSError):  # a file, or a folder that may not be read
        return sorted(p for p in folder.iterdir() if p.is_dir() and is_visible(p.name))
    return []


def join_listings(listings: Sequence[Listing], sources: Sequence[Source]) -> Listing:
    """Join listings to one; classes of the same name become one (see ``unite_classes``).

    Images are renumbered from 1. Class names that differ in case only are a problem.
    """
    id_of = unite_classes(listings)
    problems = _case_problems(listings, sources)
    images: list[ListedImage] = []
    for source, listing in zip(sources, listings, strict=True):
        listing = relabel(listing, list(id_of))
        problems += _name_source(source, listing.problems)
        for image in listing.images:
            boxes = _name_source(source, image.boxes)
            images.append(image._replace(image_id=len(images) + 1, boxes=boxes))
    together = ", ".join(os.fspath(source) for source in sources)
    return Listing(images, list(id_of), list(id_of.values()), problems, together)


def _name_source(source: Source, found: Sequence[Placed]) -> list[Placed]:
    """Prefix the places of problems or boxes with their data set."""
    name = os.fspath(source)
    return [
        f if f.where.startswith(name) else f._replace(where=f"{name}: {f.where}".removesuffix(": "))
        for f in found
    ]


def _case_problems(listings: Sequence[Listing], sources: Sequence[Source]) -> list[Problem]:
    first: dict[str, tuple[str, Source]] = {}
    problems = []
    for source, listing in zip(sources, listings, strict=True):
        for name in listing.label_names:
            other, other_source = first.setdefault(name.casefold(), (name, source))
            if name != other and source != other_source:
                text = f"class {name!r} is {other!r} in {other_source}; write them alike"
                problems.append(Problem("class names alike", os.fspath(source), text))
    return problems


def _names(root: Path) -> str:
    if not root.is_dir():
        return "a file"
    names = sorted(path.name + ("/" if path.is_dir() else "") for path in root.iterdir())
    more = [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    return ", ".join(names[:MAX_NAMES] + more) or "nothing"
