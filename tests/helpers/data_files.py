"""Small data sets for the tests of readers, and what is wrong with them."""

import json
import os

import pytest
from PIL import Image

from sepc_zoo.data import DataError, read_data
from sepc_zoo.data.formats.reader import find_data
from sepc_zoo.data.images import IMAGE_SUFFIXES

XML_BOX = """<object><name>cat</name><bndbox><xmin>17</xmin><ymin>13</ymin><xmax>48</xmax>
<ymax>36</ymax></bndbox></object>"""
XML = f"<annotation>{XML_BOX}</annotation>"
YOLO = "0 0.5 0.5 0.5 0.5"
BOX = [16, 12, 48, 36]  # of all of these, in an image of 64 x 48
XYWH = [16, 12, 32, 24]


def write_image(path, size=(64, 48), **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path, **kwargs)


def problems_of(root, split="train", **kwargs):
    with pytest.raises(DataError) as caught:
        read_data(root, split, **kwargs)
    return tuple(map(str, caught.value.problems))


def coco_tables(*names, boxes=1, **more):
    """Tables of COCO with a cat in each image."""
    ids = range(1, len(names) + 1)
    tables = {
        "images": [{"id": i, "file_name": n} for i, n in zip(ids, names, strict=True)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": XYWH} for i in ids if boxes
        ],
        "categories": [{"id": 1, "name": "cat"}],
    }
    return tables | more


def write_tree(root, files):
    """Write files by path: dicts as JSON, None as an image."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None and path.suffix.lower() in IMAGE_SUFFIXES:
            write_image(path)
        else:
            text = json.dumps(content) if isinstance(content, dict) else content
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def boxes_by_split(root):
    """The boxes of each image of each split of a data set, images by their paths."""
    found = {}
    for split in find_data(root).splits:
        records = read_data(root, split).records
        paths = [os.path.relpath(record.path, root) for record in records]
        found[split] = {p: r.boxes.tolist() for p, r in zip(paths, records, strict=True)}
    return found
