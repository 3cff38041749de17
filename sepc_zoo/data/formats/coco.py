"""The COCO layout: ``annotations/instances_<split>*.json`` beside ``<split>*/``."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sepc_zoo.data.annotations import (
    Annotations,
    DataError,
    ListedBox,
    ListedImage,
    Listing,
    build_annotations,
    find_duplicates,
)
from sepc_zoo.data.formats.layout import choose_split
from sepc_zoo.files import write_json

PREFIX = "instances_"

IMAGE_KEYS = {"id": int, "file_name": str, "height": int, "width": int}
CATEGORY_KEYS = {"id": int, "name": str}
ANNOTATION_KEYS = {"image_id": int, "category_id": int, "bbox": list}


def coco_splits(root: str | os.PathLike[str]) -> list[str]:
    """The splits of a folder in the COCO layout, as ``train2017``; empty for another layout."""
    files = (Path(root) / "annotations").glob(f"{PREFIX}*.json")
    return sorted(file.stem.removeprefix(PREFIX) for file in files)


def read_coco(
    root: str | os.PathLike[str],
    split: str,
    label_names: Sequence[str] | None = None,
    drop_bad_boxes: bool = False,
) -> Annotations:
    """Read one split of a folder in the COCO layout; the split "train" finds ``train2017`` too.

    For the rest see ``read_coco_file``.

    Raises:
        DataError: no such split, more than one that could be meant, or broken files or entries.
    """
    return build_annotations(list_coco(root, split), label_names, drop_bad_boxes)


def list_coco(root: str | os.PathLike[str], split: str) -> Listing:
    """One split of a folder in the COCO layout, unchecked; "train" finds ``train2017`` too.

    An exact match goes before a longer name.

    Raises:
        DataError: no such split, or more than one that could be meant.
    """
    root = Path(root)
    name = choose_split(split, coco_splits(root), f"{root / 'annotations'}: {PREFIX}", ".json")
    folders = [path.name for path in root.iterdir() if path.is_dir()]
    folder = name if name in folders else choose_split(split, folders, f"{root}{os.sep}", os.sep)
    json_path = root / "annotations" / f"{PREFIX}{name}.json"
    return list_coco_file(json_path, root / folder)


def read_coco_file(
    json_path: str | os.PathLike[str],
    image_folder: str | os.PathLike[str],
    label_names: Sequence[str] | None = None,
    drop_bad_boxes: bool = False,
) -> Annotations:
    """Read a COCO instances file whose ``file_name`` are relative to ``image_folder``.

    Labels follow the rising category ids, or ``label_names`` where these are given: then categories
    are found by name, and names that the file does not have get the category id None. Crowds are
    kept as ``iscrowd`` 1, so are images without boxes. The area is the annotation's, or width times
    height. With ``drop_bad_boxes``, boxes that are empty, outside their image or not finite are
    left out.

    Raises:
        DataError: lists every broken image file and every broken entry.
    """
    return build_annotations(list_coco_file(json_path, image_folder), label_names, drop_bad_boxes)


def list_coco_file(
    json_path: str | os.PathLike[str], image_folder: str | os.PathLike[str]
) -> Listing:
    """A COCO instances file, unchecked.

    Raises:
        DataError: it is no such file.
    """
    json_path = Path(json_path)
    problems: list[str] = []
    images, categories, annotations = _read_tables(json_path, problems)
    categories = sorted(categories, key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    category_ids = [category["id"] for category in categories]
    names_of: dict[int, list[str]] = {}
    for category_id, name in zip(category_ids, names, strict=True):
        names_of.setdefault(category_id, []).append(name)
    # A box of an id with two meanings has no class.
    label_of = {i: label for label, i in enumerate(category_ids) if len({*names_of[i]}) == 1}
    category_text = {i: f"{i} ({' or '.join(map(repr, own))})" for i, own in names_of.items()}

    listed = _list_images(images, Path(image_folder))
    for where, annotation in annotations:
        if (image_id := annotation["image_id"]) not in listed:
            problems.append(f"{where}: there is no image with the id {image_id}")
        elif not (problem := number_problem(annotation)):
            category_id = annotation["category_id"]
            category = category_text.get(category_id, str(category_id))
            box = list_box(where, annotation, label_of.get(category_id), category)
            listed[image_id][0].boxes.append(box)
        else:
            problems.append(f"{where}: {problem}")
    chosen = _without_doubtful(listed, json_path.name, problems)
    return Listing(chosen, names, category_ids, problems, json_path.name)


def _list_images(images: Sequence[dict], folder: Path) -> dict[int, list[ListedImage]]:
    """The images by id, each file once; several where they share an id."""
    listed: dict[int, dict[Path, ListedImage]] = {}
    for image in images:
        path, size = folder / image["file_name"], (image["height"], image["width"])
        entry = ListedImage(image["id"], path, size, [])
        listed.setdefault(image["id"], {}).setdefault(path, entry)
    return {image_id: list(files.values()) for image_id, files in listed.items()}


def _without_doubtful(
    listed: Mapping[int, list[ListedImage]], source: str, problems: list[str]
) -> list[ListedImage]:
    """The images, but for those that share an id which has boxes: these go to ``problems``.

    All boxes of an id are expected with the first of its images.
    """
    chosen = []
    for image_id, images in listed.items():
        if len(images) == 1 or not images[0].boxes:
            chosen += images
            continue
        names = " and ".join(image.path.name for image in images)
        problems.append(
            f"{source}: images: {names} share the id {image_id}, and which of them its "
            f"{len(images[0].boxes)} boxes belong to cannot be told"
        )
    return chosen


def write_coco(annotations: Annotations, json_path: str | Path) -> None:
    """Write annotations as a COCO instances file; the file appears complete or not at all.

    Images go by their file names, so the file belongs to the one folder that holds them. Classes
    without a category id are left out. ``read_coco_file`` gives the same records back.
    """
    images: list[dict[str, Any]] = []
    entries: list[dict[str, Any]] = []
    for record in annotations.records:
        height, width = record.size
        name = record.path.name
        images.append({"id": record.image_id, "file_name": name, "height": height, "width": width})
        columns = record.bbox, record.labels, record.iscrowd, record.area
        for bbox, label, iscrowd, area in zip(*(c.tolist() for c in columns), strict=True):
            entries.append(
                {
                    "id": len(entries) + 1,
                    "image_id": record.image_id,
                    "category_id": annotations.category_ids[label],
                    "bbox": bbox,
                    "area": area,
                    "iscrowd": iscrowd,
                }
            )
    classes = zip(annotations.category_ids, annotations.label_names, strict=True)
    categories = [{"id": i, "name": name} for i, name in classes if i is not None]
    content = {"images": images, "annotations": entries, "categories": categories}
    write_json(json_path, content, indent=None)


def _read_tables(
    json_path: Path, problems: list[str]
) -> tuple[list[dict], list[dict], list[tuple[str, dict]]]:
    """The well-formed images, categories and (place, annotation) of a file.

    The others go to ``problems``.
    """
    try:
        content = json.loads(json_path.read_bytes())
    except OSError as error:
        raise DataError([f"{json_path}: {error.strerror}"]) from error
    except ValueError as error:
        raise DataError([f"{json_path}: not JSON: {error}"]) from error
    if not isinstance(content, dict):
        raise DataError([f"{json_path}: not a COCO instances file, which is a JSON object"])

    tables = ("images", IMAGE_KEYS), ("categories", CATEGORY_KEYS), ("annotations", ANNOTATION_KEYS)
    images, categories, annotations = (
        _read_table(content, table, keys, json_path, problems) for table, keys in tables
    )
    return [image for _, image in images], [category for _, category in categories], annotations


def _read_table(
    content: dict, table: str, keys: Mapping[str, type], json_path: Path, problems: list[str]
) -> list[tuple[str, dict]]:
    entries = content.get(table)
    if not isinstance(entries, list):
        problems.append(f"{json_path}: has no list {table!r}")
        return []
    good = []
    for i, entry in enumerate(entries):
        where = f"{json_path.name}: {table}[{i}]"
        if not isinstance(entry, dict):
            problems.append(f"{where}: is not an object")
            continue
        if "id" in entry:
            where += f" (id {entry['id']})"
        wrong = [key for key, kind in keys.items() if not isinstance(entry.get(key), kind)]
        problems += [f"{where}: {key!r} is missing or no {keys[key].__name__}" for key in wrong]
        if not wrong:
            good.append((where, entry))
    ids = [str(entry["id"]) for _, entry in good if "id" in entry]
    problems += [
        f"{json_path.name}: {table}: the id {i} is there twice" for i in find_duplicates(ids)
    ]
    return good


def number_problem(annotation: dict) -> str:
    """What is wrong with the ``bbox`` and ``area`` of an annotation; "" where nothing is."""
    bbox, area = annotation["bbox"], annotation.get("area")
    if len(bbox) != 4 or not all(map(_is_number, bbox)):
        return f"'bbox' {bbox} is not four numbers"
    if area is not None and not (_is_number(area) and math.isfinite(area)):
        return f"'area' {area!r} is not a finite number"
    return ""


def _is_number(value: Any) -> bool:
    """JSON has whole numbers of any length, which no coordinate needs."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 2**63)


def list_box(where: str, annotation: dict, label: int | None, category: str) -> ListedBox:
    """A box from an annotation without a ``number_problem``: ``bbox`` is xywh in pixels."""
    x, y, width, height = annotation["bbox"]
    area = annotation.get("area")
    iscrowd = int(bool(annotation.get("iscrowd", 0)))
    area = width * height if area is None else area
    xyxy = x, y, x + width, y + height
    return ListedBox(where, xyxy, label, category, iscrowd, area, (x, y, width, height))
