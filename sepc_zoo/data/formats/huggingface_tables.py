"""Parquet files, folders of ``save_to_disk`` and the hub, read with the ``datasets`` library."""

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from huggingface_hub.errors import HfHubHTTPError

from sepc_zoo.data.formats.layout import ONLY_SPLIT, Source
from sepc_zoo.data.problems import DataError, Problem, unreadable
from sepc_zoo.files import write_atomically
from sepc_zoo.registry import HUB_PREFIX

PARQUET_PATTERNS = ("*.parquet", "*/*.parquet")
SAVED_FILE = "state.json"  # written by save_to_disk into each folder
CACHE_FOLDER = "sepc_zoo"  # folder for images in the cache of ``datasets``
CATEGORY_KEYS = ("category", "categories", "category_id", "label", "labels")
KEYS = ("image_id", "width", "height", "objects")
SHARD = re.compile(r"(.+?)-[0-9]+-of-[0-9]+")  # train-00000-of-00002.parquet


class Table(NamedTuple):
    """A split with its boxes as they are written, and what its class names can be taken from."""

    rows: Sequence[tuple[str, Path, Mapping[str, Any]]]  # place, for messages; image; columns
    names: Sequence[str] | None  # class names by number; None: the table has none
    objects: Iterable[Any]  # objects of all splits; without names, their categories are the classes
    source: str  # folder or id of the data set, for messages


def is_hub_name(root: Source) -> bool:
    """Whether ``root`` is a data set of the hub rather than a folder."""
    return os.fspath(root).startswith(HUB_PREFIX)


def table_splits(root: Source) -> Mapping[str, Any]:
    """Find the splits, each with its parquet files, its one folder of ``save_to_disk`` or its rows.

    Raises:
        DataError: the hub has no such data set, or cannot be reached.
    """
    if is_hub_name(root):
        return _load_from_hub(os.fspath(root))
    folder = Path(root)
    if (folder / SAVED_FILE).is_file():
        return {ONLY_SPLIT: [folder]}
    splits = {path.parent.name: [path.parent] for path in folder.glob(f"*/{SAVED_FILE}")}
    if not splits:
        for file in sorted(file for pattern in PARQUET_PATTERNS for file in folder.glob(pattern)):
            splits.setdefault(_parquet_split(file), []).append(file)
    return splits


def _parquet_split(file: Path) -> str:
    """Get ``train`` of ``train-00000-of-00002.parquet``, ``train.parquet``, ``train/0.parquet``."""
    if shard := SHARD.match(file.stem):
        return shard[1]
    return file.parent.name if file.stem.isdecimal() else file.stem


def read_table(
    root: Source, tables: Mapping[str, Any], split: str, problems: list[Problem]
) -> Table:
    """Read a split with the ``datasets`` library; ``tables`` as ``table_splits`` returns them."""
    with _library(root) as datasets:
        dataset = _load(datasets, tables[split])
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
                rows.append((f"{split}: row {i}", path, columns))
            else:
                problems.append(Problem("broken entry", f"{split}: row {i}", "has no image"))
    names = _class_names(features["objects"])
    return Table(rows, names, _read_objects(root, tables), os.fspath(root))


def _class_names(feature: Any) -> Sequence[str] | None:
    """Find the names of classes in the feature of ``objects``; None where it has none."""
    inner = getattr(feature, "feature", feature)  # the feature inside a list of objects
    category = first_of(inner, CATEGORY_KEYS) if isinstance(inner, Mapping) else None
    category = getattr(category, "feature", category)  # the feature inside a list of categories
    return getattr(category, "names", None)


def _read_objects(root: Source, tables: Mapping[str, Any]) -> Iterator[Any]:
    with _library(root) as datasets:
        for table in tables.values():
            for row in _load(datasets, table).select_columns(["objects"]):
                yield row["objects"]


def first_of(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if key in entry), None)


def _load(datasets: ModuleType, files: Any) -> Any:
    """Load a split as an iterable of rows with ``features``, without copying local files."""
    if not isinstance(files, list):
        return files
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
    """Find the file of an image that is bytes, a path, or a dict of these; write bytes to a file.

    The file name includes a hash of the bytes, so that changed data is written again.
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
