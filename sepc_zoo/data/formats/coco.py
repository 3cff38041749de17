"""The COCO layout: ``annotations/instances_<split>*.json`` beside ``<split>*/``."""

import json
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

from sepc_zoo.data.annotations import Annotations, Federation, ListedImage, Listing
from sepc_zoo.data.formats.layout import Source, choose_split, parse_box, report_duplicates
from sepc_zoo.data.problems import Problem, unreadable
from sepc_zoo.files import write_json

PREFIX = "instances_"
FREQUENCIES = ("r", "c", "f")  # rare, common and frequent classes of LVIS
KEYS = {
    "images": {"id": int, "file_name": str, "height": int, "width": int},
    "categories": {"id": int, "name": str},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
}

Entry = tuple[str, dict[str, Any]]  # place, for messages, and content


def coco_splits(root: Source) -> list[str]:
    """List the splits of a folder, such as ``train2017``; none for another layout."""
    files = (Path(root) / "annotations").glob(f"{PREFIX}*.json")
    return sorted(file.stem.removeprefix(PREFIX) for file in files)


def list_coco(root: Source, split: str) -> Listing:
    """List one split of a folder, unchecked; "train" finds ``train2017`` if there is no ``train``.

    Raises:
        DataError: no such split, or more than one that could be meant.
    """
    root = Path(root)
    name = choose_split(split, coco_splits(root), root / "annotations", f"{PREFIX}{{}}.json")
    folders = [path.name for path in root.iterdir() if path.is_dir()]
    folder = name if name in folders else choose_split(split, folders, root, "{}/")
    return list_coco_file(root / "annotations" / f"{PREFIX}{name}.json", root / folder)


def list_coco_file(json_path: Source, image_folder: Source) -> Listing:
    """List a COCO instances file whose ``file_name`` are relative to ``image_folder``, unchecked.

    Labels follow the rising category ids. Crowds and images without boxes are kept.

    Raises:
        DataError: the file is no COCO instances file.
    """
    json_path = Path(json_path)
    problems: list[Problem] = []
    tables = _read_tables(json_path, problems)
    categories = sorted((category for _, category in tables["categories"]), key=itemgetter("id"))
    names_of: dict[int, set[str]] = {}
    for category in categories:
        names_of.setdefault(category["id"], set()).add(category["name"])
    # A box of an id with two meanings has no class.
    label_of = {c["id"]: i for i, c in enumerate(categories) if len(names_of[c["id"]]) == 1}
    text_of = {i: f"{i} ({' or '.join(map(repr, sorted(own)))})" for i, own in names_of.items()}

    listed: dict[int, list[ListedImage]] = {}  # images of each id, every file once
    for _, entry in tables["images"]:
        path, size = Path(image_folder) / entry["file_name"], (entry["height"], entry["width"])
        same_id = listed.setdefault(entry["id"], [])
        if all(image.path != path for image in same_id):
            same_id.append(ListedImage(entry["id"], path, size, []))
    for where, annotation in tables["annotations"]:
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if image_id not in listed:
            text = f"there is no image with the id {image_id}"
            problems.append(Problem("broken entry", where, text))
            continue
        category_text = text_of.get(category_id, str(category_id))
        box = parse_box(where, annotation, label_of.get(category_id), category_text)
        if isinstance(box, Problem):
            problems.append(box)
        else:
            listed[image_id][0].boxes.append(box)
    images = _drop_ambiguous(listed, json_path.name, problems)
    federation = _read_federation(tables, problems)
    names, ids = ([category[key] for category in categories] for key in ("name", "id"))
    return Listing(images, names, ids, problems, json_path.name, federation)


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


def _read_federation(
    tables: Mapping[str, list[Entry]], problems: list[Problem]
) -> Federation | None:
    """Read what a file of LVIS says about classes in images; None for another file."""
    lists: dict[str, dict[int, list[int]]] = {}
    for key in ("neg_category_ids", "not_exhaustive_category_ids"):
        given = [(where, image) for where, image in tables["images"] if key in image]
        lists[key] = {image["id"]: image[key] for _, image in given}
        problems += [
            Problem("broken entry", where, f"{key!r} is no list of category ids")
            for where, image in given
            if not isinstance(image[key], list) or not all(isinstance(i, int) for i in image[key])
        ]
    categories = (category for _, category in tables["categories"])
    frequency = {c["id"]: c["frequency"] for c in categories if c.get("frequency") in FREQUENCIES}
    return Federation(frequency, *lists.values()) if frequency or any(lists.values()) else None


def _drop_ambiguous(
    listed: Mapping[int, list[ListedImage]], source: str, problems: list[Problem]
) -> list[ListedImage]:
    """Leave out images that share an id with boxes, because their image is unknown.

    All boxes of an id are expected with the first of its images.
    """
    chosen = []
    for image_id, images in listed.items():
        first, *others = images
        if not others or not first.boxes:
            chosen += images
            continue
        text = (
            f"{' and '.join(image.path.name for image in images)} share the id {image_id}, and "
            f"which of them its {len(first.boxes)} boxes belong to is unknown"
        )
        problems.append(Problem("broken entry", f"{source}: images", text))
    return chosen


def _read_tables(json_path: Path, problems: list[Problem]) -> dict[str, list[Entry]]:
    """Read the well-formed entries of each table; the others become problems."""
    try:
        content = json.loads(json_path.read_bytes())
    except OSError as error:
        raise unreadable(json_path, error.strerror) from error
    except ValueError as error:
        raise unreadable(json_path, f"not JSON: {error}") from error
    if not isinstance(content, dict):
        raise unreadable(json_path, "not a COCO instances file, which is a JSON object")
    return {table: _read_table(content, table, json_path, problems) for table in KEYS}


def _read_table(
    content: Mapping[str, Any], table: str, json_path: Path, problems: list[Problem]
) -> list[Entry]:
    entries, keys = content.get(table), KEYS[table]
    if not isinstance(entries, list):
        problems.append(Problem("broken entry", str(json_path), f"has no list {table!r}"))
        return []
    good = []
    for i, entry in enumerate(entries):
        where = f"{json_path.name}: {table}[{i}]"
        if not isinstance(entry, dict):
            problems.append(Problem("broken entry", where, "is not an object"))
            continue
        if "id" in entry:
            where += f" (id {entry['id']})"
        wrong = [key for key, kind in keys.items() if not isinstance(entry.get(key), kind)]
        problems += [
            Problem("broken entry", where, f"{key!r} is missing or no {keys[key].__name__}")
            for key in wrong
        ]
        if not wrong:
            good.append((where, entry))
    ids = [str(entry["id"]) for _, entry in good if "id" in entry]
    where, text = f"{json_path.name}: {table}", "the id {} is there twice"
    problems += report_duplicates(ids, "duplicate id", where, text)
    return good
