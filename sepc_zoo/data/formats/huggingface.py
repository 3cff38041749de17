"""Hugging Face's object detection layout: images with ``objects: {bbox, category}``."""

import csv
import glob
import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from huggingface_hub.errors import HfHubHTTPError

from sepc_zoo.data.annotations import ListedBox, ListedImage, Listing
from sepc_zoo.data.formats.layout import (
    ONLY_SPLIT,
    Finder,
    Source,
    choose_split,
    number_ids,
    parse_box,
    parse_id,
    parse_size,
    read_class_names,
    read_text,
    report_duplicates,
)
from sepc_zoo.data.problems import DataError, Problem, unreadable
from sepc_zoo.files import write_atomically

HUB_PREFIX = "hf-hub:"
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
CLASS_FILE = "classes.txt"
PARQUET_PATTERNS = ("*.parquet", "*/*.parquet")
SAVED_FILE = "state.json"  # written by save_to_disk into each folder
CACHE_FOLDER = "sepc_zoo"  # folder for images in the cache of ``datasets``
CATEGORY_KEYS = ("category", "categories", "category_id", "label", "labels")
KEYS = ("image_id", "width", "height", "objects")
CROWD_KEYS = ("iscrowd", "is_crowd")
KNOWN_SPLIT = re.compile("train|val|dev|test|eval", re.IGNORECASE)
SHARD = re.compile(r"(.+?)-[0-9]+-of-[0-9]+")  # train-00000-of-00002.parquet


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


def huggingface_splits(root: Source) -> list[str]:
    """List the splits of a folder, or of ``hf-hub:org/name``; none for another layout.

    A data set of the hub is downloaded, or comes from the cache; a folder is not read.

    Raises:
        DataError: the hub has no such data set or cannot be reached, or a broken metadata file.
    """
    if is_hub_name(root):
        return sorted(_load_from_hub(os.fspath(root)))
    return sorted(_metadata_splits(Path(root)) or _table_splits(Path(root)))


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
    if metadata := {} if is_hub_name(root) else _metadata_splits(Path(root)):
        rows, classes = _read_metadata(Path(root), metadata, split, problems)
    else:
        rows, classes = _read_tables(root, split, problems)
    ids = [row.columns.get("image_id") for row in rows]
    numbers = {} if None in ids else number_ids(map(parse_id, ids))
    images = [
        _list_image(row, numbers.get(parse_id(i), position), classes, problems)
        for position, (row, i) in enumerate(zip(rows, ids, strict=True), start=1)
    ]
    ids = [image.image_id for image in images]
    where, text = f"{name}: {split}", "the image_id {} is there twice"
    problems += report_duplicates(ids, "duplicate id", where, text)
    return Listing(images, classes.names, classes.ids, problems, classes.source)


def is_hub_name(root: Source) -> bool:
    """Whether ``root`` is a data set of the hub rather than a folder."""
    return os.fspath(root).startswith(HUB_PREFIX)


def _list_image(row: Row, image_id: int, classes: Classes, problems: list[Problem]) -> ListedImage:
    size = parse_size(row.columns.get("height"), row.columns.get("width"))
    boxes: list[ListedBox] = []
    try:
        for i, entry in enumerate(_parse_objects(row.columns.get("objects"))):
            box = _list_box(f"{row.where}: objects[{i}]", entry, classes)
            if isinstance(box, Problem):
                problems.append(box)
            else:
                boxes.append(box)
    except ValueError as error:
        problems.append(Problem("broken entry", row.where, str(error)))
    return ListedImage(image_id, row.path, size, boxes)


def _list_box(where: str, entry: Mapping[str, Any], classes: Classes) -> ListedBox | Problem:
    category = entry["category"]
    if not _is_category(category):
        text = f"category {category!r} is neither a number nor a text"
        return Problem("broken entry", where, text)
    return parse_box(where, entry, classes.label_of.get(category), repr(category))


def _parse_objects(objects: Any) -> list[dict[str, Any]]:
    """Turn ``objects``, lists by key or a list of objects, into annotations with COCO's keys.

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
    return [
        {**entry, "category": _first(entry, CATEGORY_KEYS), "iscrowd": _first(entry, CROWD_KEYS)}
        for entry in objects
    ]


def _first(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if key in entry), None)


def _is_category(category: Any) -> bool:
    return isinstance(category, int | str) and not isinstance(category, bool)


def _named_classes(names: Sequence[str], source: str) -> Classes:
    numbers = range(len(names))
    label_of: dict[Any, int] = dict(zip([*names, *numbers], [*numbers, *numbers], strict=True))
    return Classes(list(names), list(numbers), label_of, source)


def _gather_classes(rows: Iterable[Mapping[str, Any]], source: str) -> Classes:
    """Sort the categories of all rows; broken rows are reported elsewhere."""
    found: set[Any] = set()
    for columns in rows:
        with suppress(ValueError):
            objects = _parse_objects(columns.get("objects"))
            found |= {entry["category"] for entry in objects if _is_category(entry["category"])}
    if all(isinstance(category, int) for category in found):
        ids = sorted(found)
        label_of = {category: label for label, category in enumerate(ids)}
        return Classes([str(category) for category in ids], ids, label_of, source)
    return _named_classes(sorted(map(str, found)), source)


# ----------------------------------------------------------------------------------- metadata


def _metadata_splits(root: Path) -> dict[str, tuple[Path, str]]:
    """Find the metadata file of each split, and the folder in which its rows have their images.

    A file for all splits names the images as ``train/1.jpg``; the folder is "" for all of its rows.
    """
    if not root.is_dir():
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
        return rows, _named_classes(read_class_names(root / CLASS_FILE), CLASS_FILE)
    everything = (columns for table in tables.values() for _, columns in table)
    return rows, _gather_classes(everything, own_file.name)


def _read_rows(file: Path, problems: list[Problem]) -> list[tuple[int, dict[str, Any]]]:
    """Read the rows of a metadata file with their line numbers; broken ones become problems.

    Raises:
        DataError: not a text file, or not CSV.
    """
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


# ------------------------------------------------------------------------------------- tables


def _table_splits(root: Path) -> dict[str, list[Path]]:
    """Find the parquet files of each split, or its one folder of ``save_to_disk``."""
    if not root.is_dir():
        return {}
    if (root / SAVED_FILE).is_file():
        return {ONLY_SPLIT: [root]}
    splits = {path.parent.name: [path.parent] for path in root.glob(f"*/{SAVED_FILE}")}
    if not splits:
        for file in sorted(file for pattern in PARQUET_PATTERNS for file in root.glob(pattern)):
            splits.setdefault(_parquet_split(file), []).append(file)
    return splits


def _parquet_split(file: Path) -> str:
    """Get ``train`` of ``train-00000-of-00002.parquet``, ``train.parquet``, ``train/0.parquet``."""
    if shard := SHARD.match(file.stem):
        return shard[1]
    return file.parent.name if file.stem.isdecimal() else file.stem


def _read_tables(root: Source, split: str, problems: list[Problem]) -> tuple[list[Row], Classes]:
    """Read the rows of a split and its classes with the ``datasets`` library."""
    with _library(root) as datasets:
        dataset = _load(datasets, root, split)
        features = dataset.features
        images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
        image_key = "image" if "image" in features else next(iter(images), None)
        if image_key is None or "objects" not in features:
            raise unreadable(root, f"no columns image and objects, but {', '.join(features)}")
        dataset = dataset.select_columns([key for key in (image_key, *KEYS) if key in features])
        if image_key in images:
            dataset = dataset.cast_column(image_key, datasets.Image(decode=False))
        name = os.fspath(root) if is_hub_name(root) else str(Path(root).resolve())
        own = f"{Path(name).name}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"
        cache = Path(datasets.config.HF_DATASETS_CACHE) / CACHE_FOLDER / own
        rows = []
        for i, columns in enumerate(dataset):
            path = _image_path(columns.pop(image_key), Path(root), cache / f"{split}-{i:06d}")
            if path is not None:
                rows.append(Row(f"{split}: row {i}", path, columns))
            else:
                problems.append(Problem("broken entry", f"{split}: row {i}", "has no image"))
        return rows, _table_classes(datasets, root, features["objects"])


def _load(datasets: ModuleType, root: Source, split: str) -> Any:
    """Load a split as an iterable of rows with ``features``; only the hub's is copied."""
    if is_hub_name(root):
        return _load_from_hub(os.fspath(root))[split]
    files = _table_splits(Path(root))[split]
    if files[0].is_dir():
        return datasets.load_from_disk(str(files[0]))
    names = [glob.escape(str(file)) for file in files]
    return datasets.load_dataset(
        "parquet", data_files={ONLY_SPLIT: names}, split=ONLY_SPLIT, streaming=True
    )


@cache
def _load_from_hub(name: str) -> Any:
    """Load all splits of ``hf-hub:org/name[@revision]``; download those that are not cached."""
    repo_id, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    hint = (
        "Check the name, or log in with `hf auth login`. Without network, HF_HUB_OFFLINE=1 finds "
        "what was downloaded before."
    )
    with _library(name, hint) as datasets:
        return datasets.load_dataset(repo_id, revision=revision or None)


def _image_path(image: Any, root: Path, stem: Path) -> Path | None:
    """Find the file of an image that is bytes, a path, or a dict of these; bytes are written out.

    The name has a part of the bytes' hash, so that data that changes is written again.
    """
    is_dict = isinstance(image, Mapping)
    content, name = (image.get("bytes"), image.get("path")) if is_dict else (image, image)
    if isinstance(content, bytes):
        suffix = Path(name).suffix if isinstance(name, str) else ""
        file = stem.with_name(f"{stem.name}-{hashlib.sha256(content).hexdigest()[:16]}{suffix}")
        if not file.exists():
            write_atomically(file, lambda path: path.write_bytes(content))
        return file
    return root / name if isinstance(name, str) else None


def _table_classes(datasets: ModuleType, root: Source, feature: Any) -> Classes:
    """Find the classes of a table whose ``objects`` are of this feature."""
    inner = getattr(feature, "feature", feature)  # the feature inside a list of objects
    category = _first(inner, CATEGORY_KEYS) if isinstance(inner, Mapping) else None
    category = getattr(category, "feature", category)  # the feature inside a list of categories
    if (names := getattr(category, "names", None)) is not None:
        return _named_classes(names, f"{os.fspath(root)}: the feature of objects")
    if not is_hub_name(root) and (file := Path(root) / CLASS_FILE).is_file():
        return _named_classes(read_class_names(file), CLASS_FILE)
    tables = (_load(datasets, root, other) for other in huggingface_splits(root))
    rows = (row for table in tables for row in table.select_columns(["objects"]))
    return _gather_classes(rows, os.fspath(root))


@contextmanager
def _library(root: Source, hint: str = "") -> Iterator[ModuleType]:
    """Import ``datasets``; turn its errors into a DataError that names the data set."""
    name = os.fspath(root)
    try:
        import datasets
    except ImportError as error:
        text = "reading parquet, save_to_disk or the hub needs the library datasets"
        raise unreadable(name, f'{text}: pip install "sepc_zoo[datasets]"') from error
    try:
        yield datasets
    except DataError:
        raise
    except (OSError, ValueError, TypeError, HfHubHTTPError, datasets.exceptions.DatasetsError) as e:
        raise unreadable(name, e, hint) from e
