"""Overfitting sanity check: every method and neck on eight COCO images.

It passes only if training, coding, matching, inference and metric agree. Writes a row per model to
``benchmarks/overfit.csv``; models that are listed there are not trained again.

    python benchmarks/overfit.py --data coco --backbone-checkpoint mobilenetv2.safetensors
"""

import argparse
import csv
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sepc_zoo.config import METHOD_TYPES
from sepc_zoo.data import Annotations, Record, read_data
from sepc_zoo.data.formats.coco import write_coco
from sepc_zoo.registry import NECKS
from sepc_zoo.training.trainer import TrainOptions, train

TABLE = Path(__file__).with_name("overfit.csv")
IMAGES = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="COCO folder with a split train")
    parser.add_argument(
        "--backbone-checkpoint", required=True, help="timm's weights of MobileNetV2"
    )
    parser.add_argument("--steps", type=int, default=350)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument(
        "--models", nargs="*", default=[f"{m}_mnv2_{n}" for m in METHOD_TYPES for n in NECKS]
    )
    args = parser.parse_args()
    done = {row["model"] for row in read_table()}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_subset(read_data(args.data, "train"), data)
        for model in args.models:
            if model not in done:
                write_table([*read_table(), overfit(model, data, args, Path(folder) / model)])


def write_subset(annotations: Annotations, data: Path) -> None:
    """Write the first images with one to eight plain boxes, and their classes."""
    records = [r for r in annotations.records if 1 <= len(r.boxes) <= 8 and is_plain(r)]
    (data / "train").mkdir(parents=True)
    for record in records[:IMAGES]:
        shutil.copy(record.path, data / "train")
    labels = sorted({label for record in records[:IMAGES] for label in record.labels.tolist()})
    new_label = {label: i for i, label in enumerate(labels)}
    subset = Annotations(
        records=tuple(
            replace(r, labels=torch.tensor([new_label[label] for label in r.labels.tolist()]))
            for r in records[:IMAGES]
        ),
        label_names=tuple(annotations.label_names[label] for label in labels),
        category_ids=tuple(annotations.category_ids[label] for label in labels),
    )
    write_coco(subset, data / "annotations" / "instances_train.json")


def is_plain(record: Record) -> bool:
    """Whether a record has no crowd and no side under 32 pixels (14 after the resize)."""
    sides = record.boxes[:, 2:] - record.boxes[:, :2]
    return not record.iscrowd.any() and bool((sides >= 32).all())


def overfit(model: str, data: Path, args: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Train on the images and evaluate on the same ones."""
    options = TrainOptions(
        recipe="paper",
        data=str(data),
        model=model,
        output=str(output),
        val_split="train",
        max_steps=args.steps,
        val_interval=args.steps,  # only at the end
        batch_size=4,
        image_size=(192, 288),
        model_kwargs={"channels": 96},
        backbone_checkpoint=args.backbone_checkpoint,
        backbone_kwargs={"pad_type": "same", "bn_eps": 1e-3},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        opt="adamw",
        lr=args.lr,
        weight_decay=0.0,
        sched="cosine",
        hflip=0.0,
        freeze_stages=1,
        freeze_bn=True,
        device="cpu",
    )
    start = time.perf_counter()
    metrics = train(options)
    seconds = round(time.perf_counter() - start)
    figures = {key: f"{metrics[key]:.3f}" for key in ("AP", "AP50", "AP75")}
    print(model, figures, f"{seconds} s", flush=True)
    return {"model": model, "steps": args.steps, "lr": args.lr} | figures | {"seconds": seconds}


def read_table() -> list[dict[str, Any]]:
    if not TABLE.exists():
        return []
    with TABLE.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(rows: list[dict[str, Any]]) -> None:
    with TABLE.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
