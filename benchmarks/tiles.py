"""Recall of small objects on large images, with and without tiles.

Pastes the images of a validation split into mosaics, each resized to fit a cell; a tile has the
height of a cell, so that the model sees objects in it as large as in training. Sizes are COCO's in
pixels of the mosaic: small is up to 32 x 32. Writes ``tiles.csv``.

    python -m benchmarks.tiles --model runs/bccd/last --data bccd

A data set with more classes than a short run learns is written with one class for all objects:

    python -m benchmarks.tiles --data coco --one-class objects
"""

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sepc_zoo.cli import main as sepc_zoo
from sepc_zoo.data import Annotations, read_data
from sepc_zoo.data.annotations import Record, Records
from sepc_zoo.data.formats.coco import write_coco
from sepc_zoo.training.csv_file import CsvFile

CELL = (240, 320)  # height and width of an image in a mosaic
COUNT = 3  # images along a side of a mosaic
FIGURES = ("AR100", "ARs", "ARm", "AP", "APs", "APm")
WAYS = {
    "whole image": (),
    "whole image, three times the input size": ("--tta-scales", str(COUNT)),
    "tiles": ("--tile", str(min(CELL))),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", help="model folder, trained on the data")
    parser.add_argument("--data", required=True, help="data set with a split val")
    parser.add_argument("--one-class", type=Path, metavar="DIR", help="only write the data there")
    args = parser.parse_args()
    if args.one_class:
        for split in ("train", "val"):
            write_with_one_class(read_data(args.data, split), args.one_class, split)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "val").mkdir()
        source = read_data(args.data, "val")
        records = Records.of(list(mosaics(source, folder / "val")))
        write_coco(replace(source, records=records), folder / "annotations/instances_val.json")
        for way, flags in WAYS.items():
            start = time.process_time()
            where = ["--data", name, "--output", f"{name}/out", "--no-report", "--device", "cpu"]
            sepc_zoo(["validate", "--model", args.model, *where, "--workers", "0", *flags])
            seconds = round((time.process_time() - start) / len(records), 1)
            metrics = json.loads((folder / "out/metrics.json").read_text())
            figures = {figure: f"{metrics[figure]:.3f}" for figure in FIGURES}
            key = {"data": Path(args.data).name, "way": way}
            CsvFile(Path(__file__).with_suffix(".csv")).append(
                key | figures | {"cpu_seconds": seconds}
            )
            print(way, figures, seconds, flush=True)


def write_with_one_class(source: Annotations, folder: Path, split: str) -> None:
    """Copy a split, all of whose objects are of one class."""
    records = replace(source.records, labels=np.zeros_like(source.records.labels))
    merged = replace(source, records=records, label_names=("object",), category_ids=(1,))
    (folder / split).mkdir(parents=True)
    for record in records:
        shutil.copy(record.path, folder / split)
    write_coco(merged, folder / f"annotations/instances_{split}.json")


def mosaics(source: Annotations, folder: Path) -> Iterator[Record]:
    """Paste images in their order; those that are left over are not used."""
    height, width = CELL
    size = COUNT * height, COUNT * width
    number = COUNT**2
    for first in range(0, len(source.records) - number + 1, number):
        picture, parts = Image.new("RGB", size[::-1]), []
        for i in range(number):
            record = source.records[first + i]
            x, y = i % COUNT * width, i // COUNT * height
            scale = min(height / record.size[0], width / record.size[1])
            fitted = round(record.size[1] * scale), round(record.size[0] * scale)
            with Image.open(record.path) as image:
                picture.paste(image.convert("RGB").resize(fitted), (x, y))
            boxes = record.boxes * scale + torch.tensor([x, y] * 2)
            bbox = record.bbox * scale + torch.tensor([x, y, 0, 0])
            parts.append(replace(record, boxes=boxes, bbox=bbox, area=record.area * scale**2))
        path = folder / f"{first:06d}.png"
        picture.save(path)
        columns = {
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("boxes", "labels", "iscrowd", "area", "bbox")
        }
        yield Record(image_id=first + 1, path=path, size=size, **columns)


if __name__ == "__main__":
    main()
