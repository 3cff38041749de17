"""The COCO layout: ``annotations/instances_<split>*.json`` beside ``<split>*/``."""

from operator import itemgetter
from pathlib import Path
from typing import Any

from sepc_zoo.data.annotations import Annotations, Federation, ListedImage, Listing
from sepc_zoo.data.formats.coco_file import CocoFile
from sepc_zoo.data.formats.layout import Source, choose_split
from sepc_zoo.data.problems import Problem
from sepc_zoo.files import write_json

PREFIX = "instances_"
FEDERATION = {"neg_category_ids": "absent", "not_exhaustive_category_ids": "not_exhaustive"}
FREQUENCIES = ("r", "c", "f")  # rare, common and frequent classes of LVIS


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
    file = CocoFile(json_path, problems)
    listed: dict[int, list[ListedImage]] = {}  # images of each id, every file once
    known: dict[str, dict[int, list[int]]] = {name: {} for name in FEDERATION.values()}
    for where, entry in file.entries("images"):
        path, size = Path(image_folder) / entry["file_name"], (entry["height"], entry["width"])
        same_id = listed.setdefault(entry["id"], [])
        if all(image.path != path for image in same_id):
            same_id.append(ListedImage(entry["id"], path, size, []))
        for key in FEDERATION.keys() & entry:
            ids = known[FEDERATION[key]][entry["id"]] = entry[key]
            if not isinstance(ids, list) or not all(isinstance(i, int) for i in ids):
                text = f"{key!r} is no list of category ids"
                problems.append(Problem("broken entry", where, text))
    categories = sorted((entry for _, entry in file.entries("categories")), key=itemgetter("id"))
    frequency = {c["id"]: c["frequency"] for c in categories if c.get("frequency") in FREQUENCIES}
    is_federated = frequency or any(known.values())
    federation = Federation(frequency, **known) if is_federated else None
    names, ids = ([category[key] for category in categories] for key in ("name", "id"))
    images = file.boxes(listed, categories)
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
