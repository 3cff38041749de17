"""Hugging Face's object detection layout: images with ``objects: {bbox, category}``.

Either a folder of images with ``metadata.jsonl`` or ``metadata.csv``, or what the ``datasets``
library reads: parquet files, a folder of ``save_to_disk``, a data set of the hub.
"""

import csv
import glob
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from huggingface_hub.errors import HfHubHTTPError

from sepc_zoo.data.annotations import (
    Annotations,
    DataError,
    ListedBox,
    ListedImage,
    Listing,
    build_annotations,
    find_duplicates,
)
from sepc_zoo.data.formats.coco import list_box, number_problem
from sepc_zoo.data.formats.layout import ONLY_SPLIT, choose_split, read_class_names, read_text
from sepc_zoo.files import write_atomically

HUB_PREFIX = "hf-hub:"
METADATA_FILES = ("metadata.jsonl", "metadata.csv")
CLASS_FILE = "classes.txt"
PARQUET_PATTERNS = ("*.parquet", "*/*.parquet")
SAVED_FILE = "state.json"  # in each folder of save_to_disk
CACHE_FOLDER = "sepc_zoo"  # for images, inside the cache of ``datasets``
CATEGORY_KEYS = ("category", "categories", "category_id", "label", "labels")
KEYS = ("image_id", "width", "height", "objects")
CROWD_KEYS = ("iscrowd", "is_crowd")
KNOWN_SPLIT = re.compile("train|val|dev|test|eval", re.IGNORECASE)
SHARD = re.compile(r"(.+?)-[0-9]+-of-[0-9]+")  # train-00000-of-00002.parquet

Category = int | str


class Row(NamedTuple):
    """A row of a split: an image and what is known of it."""

    where: str  # for messages
    path: Path
    columns: Mapping[str, Any]  # "objects", and where known "image_id", "width", "height"


class Classes(NamedTuple):
    """What categories mean."""

    names: list[str]
    ids: list[int]
    label_of: dict[Any, int]  # by category as it stands in a row, number or text
    source: str  # what names them, for messages


def huggingface_splits(root: str | os.PathLike[str]) -> list[str]:
    """The splits of a folder, or of ``hf-hub:org/name``; empty for another layout.

    A data set of the hub is downloaded, or comes from the cache; a folder is only looked at.

    Raises:
        DataError: the hub has no such data set or cannot be reached, or a broken metadata file.
    """
    if is_hub_name(root):
        return sorted(_load_from_hub(os.fspath(root)))
    return sorted(_metadata_splits(Path(root)) or _table_splits(Path(root)))


def read_huggingface(
    root: str | os.PathLike[str],
    split: str,
    label_names: Sequence[str] | None = None,
    drop_bad_boxes: bool = False,
) -> Annotations:
    """Read one split of a data set in Hugging Face's object detection layout.

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
        DataError: no such split, the library is missing, or lists every broken file and entry.
    """
    return build_annotations(list_huggingface(root, split), label_names, drop_bad_boxes)


def list_huggingface(root: str | os.PathLike[str], split: str) -> Listing:
    """One split of a data set in Hugging Face's layout, unchecked.

    Raises:
        DataError: no such split, the library is missing, or files that cannot be read.
    """
    split = choose_split(split, huggingface_splits(root), f"{os.fspath(root)}: split ")
    problems: list[str] = []
    if metadata := {} if is_hub_name(root) else _metadata_splits(Path(root)):
        rows, classes = _read_metadata(Path(root), metadata, split, problems)
    else:
        rows, classes = _read_tables(root, split, problems)
    images = [
        _list_image(row, position, classes, problems) for position, row in enumerate(rows, start=1)
    ]
    problems += [
        f"{os.fspath(root)}: {split}: the image_id {image_id} is there twice"
        for image_id in find_duplicates(image.image_id for image in images)
    ]
    return Listing(images, classes.names, classes.ids, problems, classes.source)


def is_hub_name(root: str | os.PathLike[str]) -> bool:
    """Whether ``root`` is a data set of the hub rather than a folder."""
    return os.fspath(root).startswith(HUB_PREFIX)


def _list_image(row: Row, position: int, classes: Classes, problems: list[str]) -> ListedImage:
    image_id, height, width = (row.columns.get(key) for key in ("image_id", "height", "width"))
    size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
    boxes: list[ListedBox] = []
    try:
        objects = _parse_objects(row.columns.get("objects"))
    except ValueError as error:
        problems.append(f"{row.where}: {error}")
        objects = []
    for i, entry in enumerate(objects):
        where, category = f"{row.where}: objects[{i}]", entry["category"]
        if not _is_category(category):
            problems.append(f"{where}: category {category!r} is neither a number nor a text")
        elif not isinstance(entry["bbox"], list):
            problems.append(f"{where}: has no 'bbox'")
        elif problem := number_problem(entry):
            problems.append(f"{where}: {problem}")
        else:
            label = classes.label_of.get(category)
            boxes.append(list_box(where, entry, label, repr(category)))
    return ListedImage(image_id if isinstance(image_id, int) else position, row.path, size, boxes)


def _parse_objects(objects: Any) -> list[dict[str, Any]]:
    """``objects`` as COCO's annotations, from a list for each key or from a list of objects.

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
        {
            "bbox": entry.get("bbox"),
            "category": _first(entry, CATEGORY_KEYS),
            "area": entry.get("area"),
            "iscrowd": _first(entry, CROWD_KEYS) or 0,
        }
        for entry in objects
    ]


def _first(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if key in entry), None)


def _is_category(category: Any) -> bool:
    return isinstance(category, int | str) and not isinstance(category, bool)


def _named_classes(names: Sequence[str], source: str) -> Classes:
    numbers = range(len(names))
    by_name = dict(zip(names, numbers, strict=True))
    by_number = dict(zip(numbers, numbers, strict=True))
    return Classes(list(names), list(numbers), by_name | by_number, source)


def _gather_classes(rows: Iterable[Mapping[str, Any]], source: str) -> Classes:
    """The categories that rows have, sorted; broken rows have none here and are told elsewhere."""
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


def _metadata_splits(root: Path) -> dict[str, tuple[Path, str]]:
    """The metadata file of each split, and the folder in which its rows have their images.

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
    """The image of a row of metadata; "" where it does not say."""
    name = columns.get("file_name")
    return name.replace("\\", "/") if isinstance(name, str) else ""


def _read_metadata(
    root: Path, splits: Mapping[str, tuple[Path, str]], split: str, problems: list[str]
) -> tuple[list[Row], Classes]:
    own_file, folder = splits[split]
    tables = {
        file: _read_rows(file, problems if file == own_file else [])
        for file in dict.fromkeys(file for file, _ in splits.values())
    }
    rows = []
    for line, columns in tables[own_file]:
        name = _file_name(columns)
        where = f"{own_file.relative_to(root)}:{line}"
        if not name:
            problems.append(f"{where}: has no 'file_name'")
        elif "objects" not in columns:
            problems.append(f"{where}: has no 'objects'")
        elif name.startswith(folder):
            rows.append(Row(where, own_file.parent / name, columns))
    names = [str(row.path) for row in rows]
    problems += [f"{own_file}: {name} is there twice" for name in find_duplicates(names)]
    if (root / CLASS_FILE).is_file():
        return rows, _named_classes(read_class_names(root / CLASS_FILE), CLASS_FILE)
    everything = (columns for table in tables.values() for _, columns in table)
    return rows, _gather_classes(everything, own_file.name)


def _read_rows(file: Path, problems: list[str]) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a metadata file with their lines; broken ones go to ``problems``.

    Raises:
        DataError: not a text file, or not CSV.
    """
    text = read_text(file)
    entries: list[tuple[int, Any]]
    parse: Callable[[Any], dict[str, Any]]
    if file.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""))
        try:
            parse, entries = _parse_csv_row, [(reader.line_num, entry) for entry in reader]
        except csv.Error as error:
            raise DataError([f"{file}:{reader.line_num + 1}: {error}"]) from error
    else:
        lines = enumerate(text.split("\n"), start=1)
        parse, entries = _parse_json_row, [(i, line) for i, line in lines if line.strip()]
    rows = []
    for line, entry in entries:
        try:
            rows.append((line, parse(entry)))
        except ValueError as error:
            problems.append(f"{file}:{line}: {error}")
    return rows


def _parse_json_row(line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(row, dict):
        raise ValueError("not a JSON object")
    return row


def _parse_csv_row(entry: Mapping[str, str]) -> dict[str, Any]:
    row: dict[str, Any] = dict(entry)
    for key in ("image_id", "height", "width"):
        if (entry.get(key) or "").isdecimal():
            row[key] = int(entry[key])
    if "objects" in entry:
        try:
            row["objects"] = json.loads(entry["objects"]) if entry["objects"] else None
        except ValueError as error:
            raise ValueError(f"'objects' is not JSON: {error}") from error
    return row


def _table_splits(root: Path) -> dict[str, list[Path]]:
    """The parquet files of each split, or its one folder of ``save_to_disk``."""
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
    """``train`` of ``train-00000-of-00002.parquet``, ``train.parquet``, ``train/0000.parquet``."""
    if shard := SHARD.match(file.stem):
        return shard[1]
    return file.parent.name if file.stem.isdecimal() else file.stem


def _read_tables(
    root: str | os.PathLike[str], split: str, problems: list[str]
) -> tuple[list[Row], Classes]:
    """The rows of a split and its classes, through the ``datasets`` library."""
    datasets = _import_datasets(root)
    with _telling(root):
        dataset = _load(root, split)
        features = dataset.features
        image_key = "image" if "image" in features else _find_image(features, datasets)
        if image_key is None or "objects" not in features:
            present = ", ".join(features)
            raise DataError([f"{os.fspath(root)}: no columns image and objects, but {present}"])
        dataset = dataset.select_columns([key for key in (image_key, *KEYS) if key in features])
        if isinstance(features[image_key], datasets.Image):
            dataset = dataset.cast_column(image_key, datasets.Image(decode=False))
        folder = Path(datasets.config.HF_DATASETS_CACHE) / CACHE_FOLDER / _cache_name(root)
        rows = []
        for i, columns in enumerate(dataset):
            path = _image_path(columns.pop(image_key), Path(root), folder / f"{split}-{i:06d}")
            if path is not None:
                rows.append(Row(f"{split}: row {i}", path, columns))
            else:
                problems.append(f"{split}: row {i}: has no image")
        return rows, _table_classes(root, features["objects"])


def _find_image(features: Mapping[str, Any], datasets: ModuleType) -> str | None:
    return next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)


def _load(root: str | os.PathLike[str], split: str) -> Any:
    """A split as an iterable of rows with ``features``; nothing but the hub's is copied."""
    if is_hub_name(root):
        return _load_from_hub(os.fspath(root))[split]
    datasets = _import_datasets(root)
    files = _table_splits(Path(root))[split]
    if files[0].is_dir():
        return datasets.load_from_disk(str(files[0]))
    names = [glob.escape(str(file)) for file in files]
    return datasets.load_dataset(
        "parquet", data_files={ONLY_SPLIT: names}, split=ONLY_SPLIT, streaming=True
    )


@cache
def _load_from_hub(name: str) -> Any:
    """All splits of ``hf-hub:org/name[@revision]``, downloaded where the cache has them not."""
    repo_id, _, revision = name.removeprefix(HUB_PREFIX).partition("@")
    hint = (
        "Check the name, or log in with `hf auth login`; without network, what was downloaded "
        "before is found with HF_HUB_OFFLINE=1."
    )
    with _telling(name, hint):
        return _import_datasets(name).load_dataset(repo_id, revision=revision or None)


def _image_path(image: Any, root: Path, stem: Path) -> Path | None:
    """The file of an image that is bytes, a path, or a dict of these; bytes are written out.

    The name has a part of the bytes' hash, so that data that changes is written again.
    """
    content, name = image, image
    if isinstance(image, Mapping):
        content, name = image.get("bytes"), image.get("path")
    if isinstance(content, bytes):
        suffix = Path(name).suffix if isinstance(name, str) else ""
        file = stem.with_name(f"{stem.name}-{hashlib.sha256(content).hexdigest()[:16]}{suffix}")
        if not file.exists():
            write_atomically(file, lambda path: path.write_bytes(content))
        return file
    return root / name if isinstance(name, str) else None


def _cache_name(root: str | os.PathLike[str]) -> str:
    name = os.fspath(root) if is_hub_name(root) else str(Path(root).resolve())
    return f"{Path(name).name}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


def _table_classes(root: str | os.PathLike[str], feature: Any) -> Classes:
    """The classes of a table whose ``objects`` are of this feature."""
    inner = getattr(feature, "feature", feature)  # of a list of objects
    category = _first(inner, CATEGORY_KEYS) if isinstance(inner, Mapping) else None
    category = getattr(category, "feature", category)  # of a list of categories
    if (names := getattr(category, "names", None)) is not None:
        return _named_classes(names, f"{os.fspath(root)}: the feature of objects")
    if not is_hub_name(root) and (file := Path(root) / CLASS_FILE).is_file():
        return _named_classes(read_class_names(file), CLASS_FILE)
    tables = (_load(root, split).select_columns(["objects"]) for split in huggingface_splits(root))
    return _gather_classes((row for table in tables for row in table), os.fspath(root))


def _import_datasets(root: str | os.PathLike[str]) -> ModuleType:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            [
                f"{os.fspath(root)}: reading parquet, save_to_disk or the hub needs the library "
                'datasets: pip install "sepc_zoo[datasets]"'
            ]
        ) from error
    return datasets


@contextmanager
def _telling(root: str | os.PathLike[str], hint: str = "") -> Iterator[None]:
    """Turn what the library raises inside into a DataError that names the data set."""
    datasets = _import_datasets(root)
    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, TypeError, HfHubHTTPError, datasets.exceptions.DatasetsError) as e:
        raise DataError([f"{os.fspath(root)}: {e}"], hint) from e
