"""The COCO layouts: a JSON file of images, annotations and categories for each split."""

import json
import mmap
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sepc_zoo.data.annotations import Annotations, Federation, ListedImage, Listing
from sepc_zoo.data.formats.layout import (
    ONLY_SPLIT,
    Finder,
    Source,
    choose_split,
    fold,
    is_image,
    number_ids,
    parse_box,
    parse_id,
    parse_size,
    report_duplicates,
    split_of,
    split_word,
    walk,
)
from sepc_zoo.data.problems import Kind, Problem, unreadable
from sepc_zoo.files import write_json

PREFIX = "instances_"
FREQUENCIES = ("r", "c", "f")  # rare, common and frequent classes of LVIS
ANNOTATION_FOLDER = "annotations"
PLACES = (f"{ANNOTATION_FOLDER}/*.json", "*.json", "*/*.json", f"{ANNOTATION_FOLDER}/*/*.json")
MAX_FILES = 50  # JSON files of a folder, above which each is of an image
ID = int | float | str
KEYS: dict[str, dict[str, Any]] = {
    "images": {"id": ID, "file_name": str},
    "categories": {"id": ID, "name": str},
    "annotations": {"image_id": ID, "category_id": ID},
}

Entry = tuple[str, dict[str, Any]]  # place, for messages, and content


def coco_splits(root: Source) -> list[str]:
    """List the splits of a folder, such as ``train2017``; none for another layout."""
    return sorted(_find_files(Path(root)))


def list_coco(root: Source, split: str) -> Listing:
    """List one split of a folder, unchecked; "train" finds ``train2017`` if there is no ``train``.

    The files are ``annotations/instances_<split>.json``, or others with the tables of COCO: in
    ``annotations``, in the folder itself (or ``root`` is the file), or in a folder of each split.
    The images are in a folder named by the split, beside the file, or anywhere below the folder.

    Raises:
        DataError: no such split, or more than one that could be meant.
    """
    root, files = Path(root), _find_files(Path(root))
    name = choose_split(split, list(files), root, "an annotation file of {}")
    folder = root if root.is_dir() else root.parent
    return _list_file(files[name], Finder(_image_folders(folder, files[name], name)))


def list_coco_file(json_path: Source, image_folder: Source) -> Listing:
    """List a COCO instances file whose ``file_name`` are relative to ``image_folder``, unchecked.

    Labels follow the rising category ids. Crowds and images without boxes are kept.

    Raises:
        DataError: the file is no COCO instances file.
    """
    return _list_file(Path(json_path), Finder([Path(image_folder)]))


def _find_files(root: Path) -> dict[str, Path]:
    """Find the annotation file of each split."""
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
    """Whether a file speaks of the tables of COCO; it is searched, not parsed."""
    if file.suffix != ".json" or not file.is_file() or not file.stat().st_size:
        return False
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as text:
        return all(text.find(f'"{table}"'.encode()) >= 0 for table in KEYS)


def _image_folders(root: Path, file: Path, split: str) -> list[Path]:
    """Find the folders that may have the images of a split, the likeliest first.

    They are those named by the split, or by no split.
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


def _list_file(json_path: Path, finder: Finder) -> Listing:
    problems: list[Problem] = []
    tables = _read_tables(json_path, problems)
    for table, keys in KEYS.items():
        for _, entry in tables[table]:
            entry.update({key: parse_id(entry[key]) for key, kind in keys.items() if kind is ID})
    used = {annotation["category_id"] for _, annotation in tables["annotations"]}
    categories = _drop_root([category for _, category in tables["categories"]], used)
    numbers = number_ids(category["id"] for category in categories)
    categories = sorted(categories, key=lambda category: numbers[category["id"]])
    names_of: dict[Any, set[str]] = {}
    for category in categories:
        names_of.setdefault(category["id"], set()).add(category["name"])
    # A box of an id with two meanings has no class.
    label_of = {c["id"]: i for i, c in enumerate(categories) if len(names_of[c["id"]]) == 1}
    text_of = {i: f"{i} ({' or '.join(map(repr, sorted(own)))})" for i, own in names_of.items()}

    listed: dict[Any, list[ListedImage]] = {}  # images of each id, every file once
    image_numbers = number_ids(entry["id"] for _, entry in tables["images"])
    if text := next((i for i, number in image_numbers.items() if i != number), None):
        text = f"an id is {text!r}, no whole number of 63 bits; images are numbered from 1"
        problems.append(Problem("ids given anew", f"{json_path.name}: images", text))
    for _, entry in tables["images"]:
        name = entry["file_name"]
        path = finder.find(name) or finder.bases[0] / name
        size = parse_size(entry.get("height"), entry.get("width"))
        same_id = listed.setdefault(entry["id"], [])
        if all(image.path != path for image in same_id):
            same_id.append(ListedImage(image_numbers[entry["id"]], path, size, []))
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
    names = [category["name"] for category in categories]
    ids = [numbers[category["id"]] for category in categories]
    return Listing(images, names, ids, problems, json_path.name, federation)


def _drop_root(categories: list[dict[str, Any]], used: set[Any]) -> list[dict[str, Any]]:
    """Leave out categories without boxes that only group others, as Roboflow writes."""
    groups = {category.get("supercategory") for category in categories}
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
    except (ValueError, RecursionError) as error:
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
        for key in wrong:
            what = "text" if keys[key] is str else "number or text"
            problems.append(Problem("broken entry", where, f"{key!r} is missing or no {what}"))
        if not wrong:
            good.append((where, entry))
    ids = [parse_id(entry["id"]) for _, entry in good if "id" in entry]
    where, text = f"{json_path.name}: {table}", "the id {} is there twice"
    kind: Kind = "annotation id twice" if table == "annotations" else "duplicate id"
    problems += report_duplicates(ids, kind, where, text)
    return good
