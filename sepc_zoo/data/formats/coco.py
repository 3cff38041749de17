"""The COCO layouts: a JSON file of images, annotations and categories for each split."""

import mmap
from collections import defaultdict
from collections.abc import Container
from functools import partial
from pathlib import Path
from typing import Any

from sepc_zoo.data.annotations import Annotations, Size
from sepc_zoo.data.formats.coco_file import KEYS, CocoFile, Id
from sepc_zoo.data.formats.layout import (
    ONLY_SPLIT,
    Finder,
    fold,
    is_image,
    split_of,
    split_word,
    walk,
)
from sepc_zoo.data.formats.parsing import number_ids, parse_size
from sepc_zoo.data.listing import Federation, ListedImage, Listing, Splits
from sepc_zoo.data.problems import Problem
from sepc_zoo.files import write_json

PREFIX = "instances_"
FEDERATION = ("neg_category_ids", "not_exhaustive_category_ids")  # keys of LVIS
FREQUENCIES = ("r", "c", "f")  # rare, common and frequent classes of LVIS
ANNOTATION_FOLDER = "annotations"
PLACES = (f"{ANNOTATION_FOLDER}/*.json", "*.json", "*/*.json", f"{ANNOTATION_FOLDER}/*/*.json")
MAX_FILES = 50  # a folder with more JSON files has one for each image


def coco_splits(root: Path) -> Splits:
    """Find the splits of a folder, such as ``train2017``; none for another layout.

    The files are ``annotations/instances_<split>.json``, or others with the tables of COCO: in
    ``annotations``, in the folder itself (or ``root`` is the file), or in a folder of each split.
    The images are in a folder named by the split, beside the file, or anywhere below the folder.
    """
    return {
        name: partial(_list_split, root, file, name) for name, file in _find_files(root).items()
    }


def _list_split(root: Path, file: Path, name: str) -> Listing:
    folder = root if root.is_dir() else root.parent
    return list_coco_file(file, *_image_folders(folder, file, name))


def _find_files(root: Path) -> dict[str, Path]:
    by_folder: dict[Path, list[Path]] = defaultdict(list)
    for file in dict.fromkeys(file for place in PLACES for file in sorted(root.glob(place))):
        by_folder[file.parent].append(file)
    found = [file for files in by_folder.values() if len(files) <= MAX_FILES for file in files]
    named = [file for file in found if file.name.startswith(PREFIX)]
    files = named or [file for file in [*found, root] if _has_tables(file)]
    splits: dict[str, Path] = {}
    for file in files:
        parts = file.parts[len(root.parts) :]
        name = file.stem.removeprefix(PREFIX) if named else split_of(parts) or file.stem
        splits[file.stem if name in splits else name] = file
    if len(splits) == 1 and not any(map(split_word, splits)):
        return {ONLY_SPLIT: files[0]}
    return splits


def _has_tables(file: Path) -> bool:
    """Whether a file names the tables of COCO; it is searched, not parsed."""
    if file.suffix != ".json" or not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return all(text.find(f'"{table}"'.encode()) >= 0 for table in KEYS)


def _image_folders(root: Path, file: Path, split: str) -> list[Path]:
    """Find the folders that may have the images of a split, the likeliest first.

    They are the folders named by the split, or else those named by no split.
    """
    with_images = (f for f, names in walk(root) if any(map(is_image, names)))
    above = {parent for folder in with_images for parent in (folder, *folder.parents)}
    folders = sorted((f for f in above if f.is_relative_to(root)), key=lambda f: (len(f.parts), f))
    parts = {folder: folder.relative_to(root).parts for folder in folders}
    exact = [f for f in folders if any(fold(part) == fold(split) for part in parts[f])]
    alike = [f for f in folders if split_of(parts[f]) == (split_word(split) or split)]
    others = [f for f in folders if split_of(parts[f]) is None]
    beside = [] if file.parent in (root, root / ANNOTATION_FOLDER) else [file.parent]
    return [*beside, *(exact or alike or others), root]


def list_coco_file(json_path: Path, *image_folders: Path) -> Listing:
    """List a COCO instances file, unchecked.

    Each ``file_name`` is relative to one of the folders. Labels follow the category ids in rising
    order. Crowds and images without boxes are kept.

    Raises:
        DataError: the file is no COCO instances file.
    """
    file, finder = CocoFile(json_path), Finder(image_folders)
    listed: dict[tuple[Id, Path], Size | None] = {}  # an image listed twice counts once
    facts: dict[str, dict[Id, Any]] = {key: {} for key in FEDERATION}
    for where, entry in file.entries("images"):
        name, image_id = entry["file_name"], entry["id"]
        path = finder.find(name) or finder.bases[0] / name
        listed.setdefault((image_id, path), parse_size(entry.get("height"), entry.get("width")))
        for key in facts.keys() & entry:
            facts[key][image_id] = entry[key]
            if not isinstance(entry[key], list) or not all(isinstance(i, int) for i in entry[key]):
                text = f"{key!r} is no list of category ids"
                file.problems["images"].append(Problem("broken entry", where, text))
    number_of = number_ids(i for i, _ in listed)
    if odd := [i for i, number in number_of.items() if i != number]:
        text = f"an id is {odd[0]!r}, no whole number of 63 bits; images are numbered from 1"
        where = f"{json_path.name}: images"
        file.problems["images"].append(Problem("ids given anew", where, text))
    images = [ListedImage(number_of[i], path, size, []) for (i, path), size in listed.items()]
    categories = _drop_root([c for _, c in file.entries("categories")], file.category_ids)
    id_of = number_ids(category["id"] for category in categories)
    categories.sort(key=lambda category: id_of[category["id"]])
    frequency = {c["id"]: c["frequency"] for c in categories if c.get("frequency") in FREQUENCIES}
    numbered = [{number_of[i]: ids for i, ids in own.items()} for own in facts.values()]
    federation = Federation(frequency, *numbered)
    with_boxes = file.give_boxes([i for i, _ in listed], images, categories)
    return Listing(
        with_boxes,
        [category["name"] for category in categories],
        [id_of[category["id"]] for category in categories],
        [problem for own in file.problems.values() for problem in own],
        json_path.name,
        federation if any(federation) else None,
    )


def _drop_root(categories: list[dict[str, Any]], used: Container[Any]) -> list[dict[str, Any]]:
    """Leave out categories without boxes that only group others, as Roboflow writes."""
    groups = [category.get("supercategory") for category in categories]  # of any type
    return [
        category
        for category in categories
        if category["id"] in used
        or category["name"] not in groups
        or category.get("supercategory") not in (None, "", "none")
    ]


def write_coco(annotations: Annotations, json_path: str | Path) -> None:
    """Write annotations as a COCO instances file; the file appears complete or not at all.

    Images are named by their file names, so the file belongs to the one folder that holds them.
    Classes without a category id are left out. ``list_coco_file`` gives the same records back.
    """
    images: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for record in annotations.records:
        height, width = record.size
        name = record.path.name
        images.append({"id": record.image_id, "file_name": name, "height": height, "width": width})
        columns = record.bbox, record.labels, record.iscrowd, record.area
        for bbox, label, iscrowd, area in zip(*(c.tolist() for c in columns), strict=True):
            category_id = annotations.category_ids[label]
            ids = {"id": len(entries) + 1, "image_id": record.image_id, "category_id": category_id}
            entries.append(ids | {"bbox": bbox, "area": area, "iscrowd": iscrowd})
    classes = zip(annotations.category_ids, annotations.label_names, strict=True)
    categories = [{"id": i, "name": name} for i, name in classes if i is not None]
    content = {"images": images, "annotations": entries, "categories": categories}
    write_json(json_path, content, indent=None)
