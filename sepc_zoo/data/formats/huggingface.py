"""Hugging Face's object detection layout: images with ``objects: {bbox, category}``."""

import csv
import io
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sepc_zoo.data.formats.huggingface_rows import (
    CLASS_FILE,
    Classes,
    Row,
    gather_classes,
    list_image,
    named_classes,
)
from sepc_zoo.data.formats.huggingface_tables import read_tables, table_splits
from sepc_zoo.data.formats.layout import ONLY_SPLIT, Finder, Source, choose_split, report_duplicates
from sepc_zoo.data.formats.parsing import number_ids, parse_id, read_class_names, read_text
from sepc_zoo.data.listing import Listing
from sepc_zoo.data.problems import Problem, unreadable

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
KNOWN_SPLIT = re.compile("train|val|dev|test|eval", re.IGNORECASE)


def huggingface_splits(root: Source) -> list[str]:
    """List the splits of a folder, or of ``hf-hub:org/name``; none for another layout.

    A data set of the hub is downloaded, or comes from the cache; a folder is not read.

    Raises:
        DataError: the hub has no such data set or cannot be reached, or a broken metadata file.
    """
    return sorted(_metadata_splits(Path(root)) or table_splits(root))


def list_huggingface(root: Source, split: str) -> Listing:
    """List one split of a data set in Hugging Face's object detection layout, unchecked.

    ``root`` is a folder of images with ``metadata.jsonl`` or ``metadata.csv`` (one in each split's
    folder, or one for all), a folder of parquet files or of ``save_to_disk``, or
    ``hf-hub:org/name[@revision]``; the last three need ``pip install "sepc_zoo[datasets]"``. The
    split "val" finds ``validation`` too; without splits all is "train".

    A row has an image, perhaps ``image_id``, ``width`` and ``height``, and ``objects`` with
    ``bbox`` (x, y, width, height in pixels), ``category`` or ``categories``, perhaps ``area`` and
    ``iscrowd``. The classes are the ``ClassLabel`` feature's or those of a ``classes.txt`` in the
    folder, else the categories of all splits, sorted: texts are their own names, numbers become
    "0", "1" and so on. Images inside the tables are written out once, to the cache of ``datasets``.

    Raises:
        DataError: no such split, the library is missing, or files that cannot be read.
    """
    name = os.fspath(root)
    split = choose_split(split, huggingface_splits(root), name, "split {}")
    problems: list[Problem] = []
    if metadata := _metadata_splits(Path(root)):
        rows, classes = _read_metadata(Path(root), metadata, split, problems)
    else:
        rows, classes = read_tables(root, split, problems)
    ids = [row.columns.get("image_id") for row in rows]
    numbers = {} if None in ids else number_ids(map(parse_id, ids))
    images = [
        list_image(row, numbers.get(parse_id(i), position), classes, problems)
        for position, (row, i) in enumerate(zip(rows, ids, strict=True), start=1)
    ]
    ids = [image.image_id for image in images]
    where, text = f"{name}: {split}", "the image_id {} is there twice"
    problems += report_duplicates(ids, "duplicate id", where, text)
    return Listing(images, classes.names, classes.ids, problems, classes.source)


def _metadata_splits(root: Path) -> dict[str, tuple[Path, str]]:
    """Find the metadata file of each split, and the folder in which its rows have their images.

    A file for all splits names the images as ``train/1.jpg``; the folder is "" for all of its rows.
    """
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
    root: Path, splits: Mapping[str, tuple[Path, str]], split: str, problems: list[Problem]
) -> tuple[list[Row], Classes]:
    own_file, folder = splits[split]
    files = {file for file, _ in splits.values()}
    tables = {file: _read_rows(file, problems if file == own_file else []) for file in files}
    rows, finder = [], Finder([own_file.parent])
    for line, columns in tables[own_file]:
        name = _file_name(columns)
        where = f"{own_file.relative_to(root)}:{line}"
        if not name or "objects" not in columns:
            missing = "objects" if name else "file_name"
            problems.append(Problem("broken entry", where, f"has no {missing!r}"))
        elif name.startswith(folder):
            rows.append(
                Row(where, finder.find(columns["file_name"]) or own_file.parent / name, columns)
            )
    problems += report_duplicates([row.path for row in rows], "image listed twice", own_file)
    if (root / CLASS_FILE).is_file():
        return rows, named_classes(read_class_names(root / CLASS_FILE), CLASS_FILE)
    everything = (columns for table in tables.values() for _, columns in table)
    return rows, gather_classes(everything, own_file.name)


def _read_rows(file: Path, problems: list[Problem]) -> list[tuple[int, dict[str, Any]]]:
    """Read the rows of a metadata file with their line numbers; broken ones become problems."""
    text = read_text(file)
    entries: list[tuple[int, Any]]
    if file.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            entries = [(reader.line_num, entry) for entry in reader]
        except csv.Error as error:
            raise unreadable(f"{file}:{reader.line_num + 1}", error) from error
    else:
        entries = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
    rows = []
    for line, entry in entries:
        try:
            rows.append((line, _parse_row(entry)))
        except ValueError as error:
            problems.append(Problem("broken entry", f"{file}:{line}", str(error)))
    return rows


def _parse_row(entry: str | Mapping[str, str]) -> dict[str, Any]:
    """Parse a line of JSON, or a row of CSV with JSON in its cell ``objects``."""
    if isinstance(entry, str):
        row = _parse_json(entry)
        if not isinstance(row, dict):
            raise ValueError("not a JSON object")
        return row
    row = dict(entry)
    for key in ("image_id", "height", "width"):
        if (entry.get(key) or "").isdecimal():
            row[key] = int(entry[key])
    if entry.get("objects"):
        row["objects"] = _parse_json(entry["objects"], "'objects' is ")
    return row


def _parse_json(text: str, name: str = "") -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}not JSON: {error}") from error
