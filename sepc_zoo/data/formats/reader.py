"""Reading a data set of any known layout, or several as one."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from sepc_zoo.data.annotations import (
    Annotations,
    ListedImage,
    Listing,
    build_annotations,
    relabel,
    unite_classes,
)
from sepc_zoo.data.formats.coco import coco_splits, list_coco
from sepc_zoo.data.formats.huggingface import huggingface_splits, is_hub_name, list_huggingface
from sepc_zoo.data.formats.layout import Source
from sepc_zoo.data.formats.voc import list_voc, voc_splits
from sepc_zoo.data.formats.yolo import list_yolo, yolo_splits
from sepc_zoo.data.problems import DataError, Problem, unreadable

MAX_NAMES = 20  # files of a folder that an error lists


class DataFormat(NamedTuple):
    """A layout of data sets: a folder has it if ``splits`` finds any."""

    layout: str  # the files it consists of, for messages
    splits: Callable[[Source], list[str]]
    list: Callable[[Source, str], Listing]


FORMATS = {
    "coco": DataFormat(
        "annotations/instances_<split>*.json beside <split>*/", coco_splits, list_coco
    ),
    "voc": DataFormat("ImageSets/Main/<split>.txt", voc_splits, list_voc),
    "yolo": DataFormat(
        "data.yaml with train and names, or classes.txt beside images and labels",
        yolo_splits,
        list_yolo,
    ),
    "hf": DataFormat(
        "metadata.jsonl or metadata.csv in <split>/, <split>*.parquet, or save_to_disk",
        huggingface_splits,
        list_huggingface,
    ),
}


def read_data(
    roots: Source | Sequence[Source],
    split: str,
    label_names: Sequence[str] | None = None,
    drop_bad_boxes: bool = False,
    format: str | None = None,
) -> Annotations:
    """Read one split of a data set, or of several as one.

    Several are joined by class name, in order of first appearance; see ``join_listings``.

    Args:
        roots: A folder, the ``data.yaml`` of one, ``hf-hub:org/name`` of a data set of the hub, or
            several of these.
        split: For example "train" or "val".
        label_names: The classes in the order of their labels; by default the data set's own order.
        drop_bad_boxes: Leave out boxes that are empty, outside their image or not finite, instead
            of refusing the data set.
        format: "coco", "voc", "yolo" or "hf"; by default the layout of each folder decides.

    Raises:
        DataError: an unknown layout, a missing split, or all broken files and entries.
    """
    return build_annotations(list_data(roots, split, format), label_names, drop_bad_boxes)


def list_data(roots: Source | Sequence[Source], split: str, format: str | None = None) -> Listing:
    """List what ``read_data`` reads, unchecked.

    Raises:
        DataError: an unknown layout, or a missing split.
    """
    sources = [roots] if isinstance(roots, str | os.PathLike) else list(roots)
    if len(sources) == 1:
        return find_format(sources[0], format).list(sources[0], split)
    listings: list[Listing] = []
    problems: list[Problem] = []
    for source in sources:
        try:
            listings.append(find_format(source, format).list(source, split))
        except DataError as error:
            problems += [_name_source(source, problem) for problem in error.problems]
    if problems:
        raise DataError(problems)
    return join_listings(listings, sources)


def find_format(root: Source, format: str | None = None) -> DataFormat:
    """Find the format by a folder's layout, or check that it has the one asked for.

    Raises:
        DataError: no such folder, a layout of no known format or of several, or not of the one
            asked for.
    """
    if format is not None and format not in FORMATS:
        raise unreadable("", f"there is no format {format!r}; there are: {', '.join(FORMATS)}")
    if is_hub_name(root):
        return FORMATS["hf"]
    if not Path(root).exists():
        raise unreadable(root, "no such folder")
    asked = FORMATS if format is None else {format: FORMATS[format]}
    found = [name for name, data_format in asked.items() if data_format.splits(root)]
    if len(found) == 1:
        return FORMATS[found[0]]
    layouts = "; ".join(f"{FORMATS[name].layout} ({name})" for name in found or asked)
    if found:
        raise unreadable(root, f"could be any of: {layouts}. Say --format {' or '.join(found)}")
    known = "no known layout" if format is None else f"not in the layout of {format}"
    raise unreadable(root, f"{known}. Looked for {layouts}. There is: {_names(Path(root))}")


def join_listings(listings: Sequence[Listing], sources: Sequence[Source]) -> Listing:
    """Make one listing of several; classes of one name become one (see ``unite_classes``).

    Images are numbered anew, from 1. Names that differ in case only are a problem.
    """
    id_of = unite_classes(listings)
    problems = _case_problems(listings, sources)
    images: list[ListedImage] = []
    for source, listing in zip(sources, listings, strict=True):
        listing = relabel(listing, list(id_of))
        problems += [_name_source(source, problem) for problem in listing.problems]
        for image in listing.images:
            boxes = [box._replace(where=_with_source(source, box.where)) for box in image.boxes]
            images.append(image._replace(image_id=len(images) + 1, boxes=boxes))
    together = ", ".join(os.fspath(source) for source in sources)
    return Listing(images, list(id_of), list(id_of.values()), problems, together)


def _with_source(source: Source, where: str) -> str:
    name = os.fspath(source)
    return where if where.startswith(name) else f"{name}: {where}".removesuffix(": ")


def _name_source(source: Source, problem: Problem) -> Problem:
    return problem._replace(where=_with_source(source, problem.where))


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
