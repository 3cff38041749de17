"""Rows of Hugging Face's object detection layout: images with ``objects``, and their classes."""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sepc_zoo.data.formats.parsing import parse_box, parse_size
from sepc_zoo.data.listing import ListedBox, ListedImage
from sepc_zoo.data.problems import Problem

CATEGORY_KEYS = ("category", "categories", "category_id", "label", "labels")
CROWD_KEYS = ("iscrowd", "is_crowd")
CLASS_FILE = "classes.txt"


class Row(NamedTuple):
    """A row of a split: an image and its columns."""

    where: str  # the row, for messages
    path: Path
    columns: Mapping[str, Any]  # "objects", and where known "image_id", "width", "height"


class Classes(NamedTuple):
    """The classes of a data set, and the category values that stand for them."""

    names: list[str]
    ids: list[int]
    label_of: dict[Any, int]  # label of each category as a row has it, number or text
    source: str  # names the classes, for messages


def list_image(row: Row, image_id: int, classes: Classes, problems: list[Problem]) -> ListedImage:
    """List an image with its boxes; broken ones become problems."""
    size = parse_size(row.columns.get("height"), row.columns.get("width"))
    boxes: list[ListedBox] = []
    try:
        objects = parse_objects(row.columns.get("objects"))
    except ValueError as error:
        problems.append(Problem("broken entry", row.where, str(error)))
        objects = []
    for i, entry in enumerate(objects):
        where, category = f"{row.where}: objects[{i}]", entry["category"]
        if not is_category(category):
            text = f"category {category!r} is neither a number nor a text"
            problems.append(Problem("broken entry", where, text))
            continue
        box = parse_box(where, entry, classes.label_of.get(category), repr(category))
        if isinstance(box, Problem):
            problems.append(box)
        else:
            boxes.append(box)
    return ListedImage(image_id, row.path, size, boxes)


def parse_objects(objects: Any) -> list[dict[str, Any]]:
    """Turn ``objects``, lists by key or a list of objects, into annotations with COCO's keys.

    A ValueError says what is wrong.
    """
    if not objects:
        return []
    if isinstance(objects, Mapping):
        columns = {key: values for key, values in objects.items() if isinstance(values, list)}
        lengths = {key: len(values) for key, values in columns.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"the lists of 'objects' are not of one length: {lengths}")
        rows = zip(*columns.values(), strict=True)
        objects = [dict(zip(columns, row, strict=True)) for row in rows]
    if not isinstance(objects, list) or not all(isinstance(entry, Mapping) for entry in objects):
        raise ValueError("'objects' has no lists 'bbox' and 'category'")
    return [
        {
            **entry,
            "category": first_of(entry, CATEGORY_KEYS),
            "iscrowd": first_of(entry, CROWD_KEYS),
        }
        for entry in objects
    ]


def first_of(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if key in entry), None)


def is_category(category: Any) -> bool:
    return isinstance(category, int | str) and not isinstance(category, bool)


def named_classes(names: Sequence[str], source: str) -> Classes:
    numbers = range(len(names))
    label_of: dict[Any, int] = dict(zip([*names, *numbers], [*numbers, *numbers], strict=True))
    return Classes(list(names), list(numbers), label_of, source)


def gather_classes(rows: Iterable[Mapping[str, Any]], source: str) -> Classes:
    """Sort the categories of all rows; broken rows are reported elsewhere."""
    found: set[Any] = set()
    for columns in rows:
        with suppress(ValueError):
            objects = parse_objects(columns.get("objects"))
            found |= {entry["category"] for entry in objects if is_category(entry["category"])}
    if all(isinstance(category, int) for category in found):
        ids = sorted(found)
        label_of = {category: label for label, category in enumerate(ids)}
        return Classes([str(category) for category in ids], ids, label_of, source)
    return named_classes(sorted(map(str, found)), source)
