"""Hugging Face's object detection layout: images with ``objects: {bbox, category}``."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from sepc_zoo.data.formats.huggingface_tables import (
    CATEGORY_KEYS,
    Table,
    first_of,
    read_table,
    table_splits,
)
from sepc_zoo.data.formats.layout import ONLY_SPLIT, Finder, Source, report_duplicates
from sepc_zoo.data.formats.parsing import (
    number_ids,
    parse_box,
    parse_id,
    parse_size,
    read_class_names,
    read_text,
)
from sepc_zoo.data.listing import ListedBox, ListedImage, Listing, Splits
from sepc_zoo.data.problems import Problem, unreadable

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
CLASS_FILE = "classes.txt"
KNOWN_SPLIT = re.compile("train|val|dev|test|eval", re.IGNORECASE)
CROWD_KEYS = ("iscrowd", "is_crowd")


def huggingface_splits(root: Source) -> Splits:
    """Find the splits of a folder, or of ``hf-hub:org/name``; none for another layout.

    ``root`` is a folder of images with ``metadata.jsonl`` or ``metadata.csv`` (one in each split's
    folder, or one for all), a folder of parquet files or of ``save_to_disk``, or
    ``hf-hub:org/name[@revision]``; the last three need ``pip install "sepc_zoo[datasets]"``. A data
    set of the hub is downloaded, or comes from the cache.

    Raises:
        DataError: the hub has no such data set or cannot be reached, or a broken metadata file.
    """
    for find, read in ((_metadata_splits, _read_metadata), (table_splits, read_table)):
        if splits := find(root):
            return {split: partial(_list_split, root, splits, split, read) for split in splits}
    return {}


def _list_split(
    root: Source, splits: Mapping[str, Any], split: str, read: Callable[..., Table]
) -> Listing:
    """List one split.

    A row has an image, perhaps ``image_id``, ``width`` and ``height``, and ``objects`` with
    ``bbox`` (x, y, width, height in pixels), ``category`` or ``categories``, perhaps ``area`` and
    ``iscrowd``. The classes are the ``ClassLabel`` feature's or those of a ``classes.txt`` in the
    folder, else the categories of all splits, sorted: texts are their own names, numbers become
    "0", "1" and so on. Images inside the tables are written out once, to the cache of ``datasets``.

    Raises:
        DataError: the library is missing, or files that cannot be read.
    """
    problems: list[Problem] = []
    table = read(root, splits, split, problems)
    names, ids, source = _find_classes(root, table)
    label_of = dict(zip([*names, *ids], [*range(len(ids))] * 2, strict=True))
    image_ids = [columns.get("image_id") for _, _, columns in table.rows]
    number_of = {} if None in image_ids else number_ids(map(parse_id, image_ids))
    images = []
    for i, (where, path, columns) in enumerate(table.rows):
        size = parse_size(columns.get("height"), columns.get("width"))
        boxes = _list_boxes(where, columns.get("objects"), label_of, problems)
        number = number_of.get(parse_id(image_ids[i]), i + 1)
        images.append(ListedImage(number, path, size, boxes))
    where, text = f"{os.fspath(root)}: {split}", "the image_id {} is there twice"
    problems += report_duplicates([i.image_id for i in images], "duplicate id", where, text)
    return Listing(images, names, ids, problems, source)


def _find_classes(root: Source, table: Table) -> tuple[Sequence[str], Sequence[int], str]:
    """Find the names and ids of the classes, and where the names come from."""
    names, source = table.names, f"{os.fspath(root)}: the feature of objects"
    if names is None and (file := Path(root) / CLASS_FILE).is_file():
        names, source = read_class_names(file), CLASS_FILE
    if names is None:
        found: set[int | str] = set()
        for objects in table.objects:
            with suppress(ValueError):  # broken rows are reported elsewhere
                entries = parse_objects(objects)
                found |= {entry["category"] for entry in entries if is_category(entry["category"])}
        names, source = sorted(map(str, found)), table.source
        if all(isinstance(category, int) for category in found):
            numbers = sorted(map(int, found))
            return [*map(str, numbers)], numbers, source
    return names, range(len(names)), source


def _list_boxes(
    where: str, objects: Any, label_of: Mapping[Any, int], problems: list[Problem]
) -> list[ListedBox]:
    try:
        entries = parse_objects(objects)
    except ValueError as error:
        problems.append(Problem("broken entry", where, str(error)))
        return []
    boxes = []
    for i, entry in enumerate(entries):
        place, category = f"{where}: objects[{i}]", entry["category"]
        if not is_category(category):
            text = f"category {category!r} is neither a number nor a text"
            problems.append(Problem("broken entry", place, text))
        elif box := parse_box(place, entry, problems, label_of.get(category), repr(category)):
            boxes.append(box)
    return boxes


def parse_objects(objects: Any) -> list[dict[str, Any]]:
    """Convert ``objects``, lists by key or a list of objects, to annotations with COCO's keys.

    Raises:
        ValueError: says what is wrong.
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
    keys = {"category": CATEGORY_KEYS, "iscrowd": CROWD_KEYS}
    return [
        {**entry, **{key: first_of(entry, own) for key, own in keys.items()}} for entry in objects
    ]


def is_category(category: Any) -> bool:
    return isinstance(category, int | str) and not isinstance(category, bool)


# ----------------------------------------------------------------------------------- metadata


def _metadata_splits(source: Source) -> dict[str, tuple[Path, str]]:
    """Find the metadata file of each split, and how the file names of the split's rows begin.

    Rows of a file for all splits begin with the split, as in ``train/1.jpg``; others with "".
    """
    root = Path(source)
    if not root.is_dir():  # such as a name on the hub
        return {}
    if file := _metadata_file(root):
        folders = {_file_name(columns).partition("/")[0] for _, columns in _read_rows(file, [])}
        if folders and all(map(KNOWN_SPLIT.match, folders)):
            return {folder: (file, f"{folder}/") for folder in folders}
        return {ONLY_SPLIT: (file, "")}
    children = [child for child in root.iterdir() if child.is_dir()]
    files = {child.name: (file, "") for child in children if (file := _metadata_file(child))}
    if len(files) == 1 and not any(map(KNOWN_SPLIT.match, files)):
        return {ONLY_SPLIT: next(iter(files.values()))}
    return files


def _metadata_file(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA_FILES if (folder / name).is_file()), None)


def _file_name(columns: Mapping[str, Any]) -> str:
    """Get the image of a row of metadata; "" where it has none."""
    name = columns.get("file_name")
    return name.replace("\\", "/") if isinstance(name, str) else ""


def _read_metadata(
    root: Source, splits: Mapping[str, tuple[Path, str]], split: str, problems: list[Problem]
) -> Table:
    own, folder = splits[split]
    files = {file for file, _ in splits.values()}
    tables = {file: _read_rows(file, problems if file == own else []) for file in files}
    rows, finder = [], Finder([own.parent])
    for line, columns in tables[own]:
        name, where = _file_name(columns), f"{own.relative_to(Path(root))}:{line}"
        if not name or "objects" not in columns:
            missing = "objects" if name else "file_name"
            problems.append(Problem("broken entry", where, f"has no {missing!r}"))
        elif name.startswith(folder):
            path = finder.find(columns["file_name"]) or own.parent / name
            rows.append((where, path, columns))
    problems += report_duplicates([path for _, path, _ in rows], "image listed twice", own)
    objects = (columns.get("objects") for table in tables.values() for _, columns in table)
    return Table(rows, None, objects, own.name)


def _read_rows(file: Path, problems: list[Problem]) -> list[tuple[int, dict[str, Any]]]:
    """Read the rows of a metadata file with their line numbers; broken ones become problems."""
    rows = []
    for line, entry in (_read_csv if file.suffix == ".csv" else _read_lines)(file):
        try:
            if isinstance(entry, str):
                entry = _parse_json(entry)
                if not isinstance(entry, dict):
                    raise ValueError("not a JSON object")
            else:
                if entry.get("objects"):
                    entry["objects"] = _parse_json(entry["objects"], "'objects' is ")
                if (entry.get("image_id") or "").isdecimal():  # may begin with zeros
                    entry["image_id"] = int(entry["image_id"])
            rows.append((line, entry))
        except ValueError as error:
            problems.append(Problem("broken entry", f"{file}:{line}", str(error)))
    return rows


def _read_lines(file: Path) -> list[tuple[int, Any]]:
    lines = enumerate(read_text(file).split("\n"), start=1)
    return [(i, line) for i, line in lines if line.strip()]


def _read_csv(file: Path) -> list[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(read_text(file), newline=""))
    try:
        return [(reader.line_num, entry) for entry in reader]
    except csv.Error as error:
        raise unreadable(f"{file}:{reader.line_num + 1}", error) from error


def _parse_json(text: str, name: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}not JSON: {error}") from error
