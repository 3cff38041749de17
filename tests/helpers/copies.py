"""Copies of a data set in every layout, by independent and simple writers."""

import json
import os
import shutil
from pathlib import Path

import yaml

from sepc_zoo.data import Annotations


def write_copy(annotations: dict[str, Annotations], layout: str, root: Path) -> Path:
    """Write the splits of a data set in another layout; not every layout holds crowds and areas."""
    WRITERS[layout](annotations, root)
    return root


def write_coco_copy(annotations, root):
    for split, data in annotations.items():
        folder = link_images(data, root / split)
        images = [
            {"id": i, "file_name": name(r), "height": r.size[0], "width": r.size[1]}
            for i, r in enumerate(data.records, start=1)
        ]
        boxes = [
            {"image_id": i, "category_id": label, "bbox": xywh(box)}
            for i, record in enumerate(data.records, start=1)
            for box, label in boxes_of(record)
        ]
        boxes = [{"id": i, **box} for i, box in enumerate(boxes)]
        categories = [{"id": i, "name": text} for i, text in enumerate(data.label_names)]
        file = folder.parent / "annotations" / f"instances_{split}.json"
        file.parent.mkdir(exist_ok=True)
        content = {"images": images, "annotations": boxes, "categories": categories}
        file.write_text(json.dumps(content))


def write_voc_copy(annotations, root):
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for split, data in annotations.items():
        link_images(data, root / "JPEGImages")
        for record in data.records:
            objects = "".join(
                f"<object><name>{data.label_names[label]}</name><bndbox><xmin>{x1 + 1!r}</xmin>"
                f"<ymin>{y1 + 1!r}</ymin><xmax>{x2!r}</xmax><ymax>{y2!r}</ymax></bndbox></object>"
                for (x1, y1, x2, y2), label in boxes_of(record)
            )
            text = f"<annotation><filename>{name(record)}</filename>{objects}</annotation>"
            (root / "Annotations" / f"{record.path.stem}.xml").write_text(text)
        stems = "\n".join(record.path.stem for record in data.records)
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(stems)


def write_yolo_copy(annotations, root):
    for split, data in annotations.items():
        link_images(data, root / "images" / split)
        folder = root / "labels" / split
        folder.mkdir(parents=True)
        for record in data.records:
            lines = [yolo_line(box, label, record.size) for box, label in boxes_of(record)]
            if lines:
                (folder / f"{record.path.stem}.txt").write_text("\n".join(lines) + "\n")
    splits = {split: f"images/{split}" for split in annotations}
    names = list(next(iter(annotations.values())).label_names)
    (root / "data.yaml").write_text(yaml.safe_dump({**splits, "nc": len(names), "names": names}))


def yolo_line(box, label, size):
    (x1, y1, x2, y2), (h, w) = box, size
    return (
        f"{label} {(x1 + x2) / 2 / w!r} {(y1 + y2) / 2 / h!r} {(x2 - x1) / w!r} {(y2 - y1) / h!r}"
    )


def write_metadata_copy(annotations, root):
    for split, data in annotations.items():
        folder = link_images(data, root / split)
        rows = [{"file_name": name(record), "objects": objects(record)} for record in data.records]
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "classes.txt").write_text("\n".join(data.label_names))


def write_parquet_copy(annotations, root):
    (root / "data").mkdir(parents=True)
    for split, data in annotations.items():
        as_dataset(data).to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")


def write_saved_copy(annotations, root):
    import datasets

    copies = {split: as_dataset(data) for split, data in annotations.items()}
    datasets.DatasetDict(copies).save_to_disk(root)


def as_dataset(data):
    import datasets
    from datasets import ClassLabel, Features, List, Value

    objects_feature = {
        "bbox": List(List(Value("float64"), 4)),
        "category": List(ClassLabel(names=list(data.label_names))),
    }
    features = Features({"image": datasets.Image(), "objects": objects_feature})
    rows = [
        {
            "image": {"bytes": record.path.read_bytes(), "path": record.path.name},
            "objects": objects(record),
        }
        for record in data.records
    ]
    return datasets.Dataset.from_list(rows, features=features)


def objects(record):
    boxes = boxes_of(record)
    return {"bbox": [xywh(box) for box, _ in boxes], "category": [label for _, label in boxes]}


def boxes_of(record):
    return list(zip(record.boxes.tolist(), record.labels.tolist(), strict=True))


def xywh(box):
    x1, y1, x2, y2 = box
    return [x1, y1, x2 - x1, y2 - y1]


def name(record):
    return record.path.name


def link_images(data, folder):
    folder.mkdir(parents=True, exist_ok=True)
    for record in data.records:
        copy = folder / record.path.name
        copy.unlink(missing_ok=True)  # a link, through which a copy would overwrite its original
        try:
            os.link(record.path, copy)
        except OSError:  # another file system
            shutil.copy(record.path, copy)
    return folder


WRITERS = {
    "coco": write_coco_copy,
    "voc": write_voc_copy,
    "yolo": write_yolo_copy,
    "metadata": write_metadata_copy,
    "parquet": write_parquet_copy,
    "saved": write_saved_copy,
}
