"""Fine-tune a detector onto new classes: what is left of the old ones?

A detector learns discs and squares; then images where only triangles and stars are labelled, though
discs and squares are in them too. AP of both pairs on images where all four are labelled. Writes
``forgetting.csv``.

    python -m benchmarks.forgetting --backbone-checkpoint mobilenetv2.safetensors
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from benchmarks.peers import CHANNELS
from benchmarks.study import BACKBONE, BATCH_SIZE, DATA, shapes
from sepc_zoo import cli
from sepc_zoo.data import Annotations, read_data
from sepc_zoo.data.formats.coco import write_coco
from sepc_zoo.training.csv_file import CsvFile
from sepc_zoo.training.options import TrainOptions
from sepc_zoo.training.trainer import train

TABLE = Path(__file__).with_suffix(".csv")
Names = tuple[str, ...]
BOX_COLUMNS = ("boxes", "labels", "iscrowd", "area", "bbox")
OLD, NEW = ("disc", "square"), ("triangle", "star")
LABELLED = "sepc-zoo label"
WAYS: dict[str, dict[str, Any]] = {
    "new classes only": {},
    LABELLED: {},
    "--keep-classes": {"keep_classes": True},
    "--keep-classes --lr 5e-5": {"keep_classes": True, "lr": 5e-5},
    "--keep-classes --freeze neck": {"keep_classes": True, "freeze": "neck"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone-checkpoint", help="timm's weights of MobileNetV2")
    parser.add_argument("--model", default="retinanet_mnv2_sepc_lite")
    parser.add_argument("--steps", type=int, default=600, help="on the old classes")
    parser.add_argument("--new-steps", type=int, default=300)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    for seed in args.seeds:
        measure(args, seed, CsvFile(TABLE))


def measure(args: argparse.Namespace, seed: int, table: CsvFile) -> None:
    """Train on the old classes, then on the new ones in each way."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        every = shapes(folder / "all")
        old_data = subset(every, folder / "old", OLD, OLD)
        common: dict[str, Any] = {
            "val_interval": 10**6,  # only at the end
            "batch_size": BATCH_SIZE,
            "image_size": DATA["shapes"].image_size,
            "workers": 0,
            "device": "cpu",
            "seed": seed,
            "log_with": (),
        }
        before = train(
            TrainOptions(
                data=str(old_data),
                model=args.model,
                output=str(folder / "first"),
                max_steps=args.steps,
                model_kwargs={"channels": CHANNELS, "anchors": {"base_scale": 2}},
                backbone_checkpoint=args.backbone_checkpoint,
                **BACKBONE,
                **common,
            )
        )
        table.append(row("before", seed, before))
        for i, (way, changes) in enumerate(WAYS.items()):
            kept = () if way == "new classes only" else OLD
            data = subset(every, folder / f"data-{i}", NEW, (*kept, *NEW))
            old_model = str(folder / "first" / "last")
            if way == LABELLED:
                unlabelled, data = str(data), folder / "labelled"
                cli.main(["label", unlabelled, "--model", old_model, "--output", str(data)])
            after = train(
                TrainOptions(
                    data=str(data),
                    model=f"local-dir:{old_model}",
                    output=str(folder / f"run-{i}"),
                    max_steps=args.new_steps,
                    **common | changes,
                )
            )
            table.append(row(way, seed, after))


def subset(source: Path, folder: Path, train_names: Names, val_names: Names) -> Path:
    """Write the same images with the boxes of some classes only."""
    for split, names in (("train", train_names), ("val", val_names)):
        annotations = with_classes(read_data(str(source), split), names)
        folder.mkdir(exist_ok=True)
        (folder / split).symlink_to(source / split)
        write_coco(annotations, folder / "annotations" / f"instances_{split}.json")
    return folder


def with_classes(annotations: Annotations, names: Names) -> Annotations:
    old = [annotations.label_names.index(name) for name in names]
    records = []
    for record in annotations.records:
        kept = [i for i, label in enumerate(record.labels.tolist()) if label in old]
        columns = {name: getattr(record, name)[kept] for name in BOX_COLUMNS}
        labels = [old.index(label) for label in columns["labels"].tolist()]
        records.append(replace(record, **columns | {"labels": torch.tensor(labels).long()}))
    ids = tuple(annotations.category_ids[label] for label in old)
    return replace(annotations, records=tuple(records), label_names=names, category_ids=ids)


def row(way: str, seed: int, metrics: dict[str, Any]) -> dict[str, Any]:
    classes = metrics["per_class"]
    figures = {
        title: mean(classes[name]["AP"] for name in names) if names[0] in classes else None
        for title, names in (("old", OLD), ("new", NEW))
    }
    print(way, seed, figures, flush=True)
    rounded = {name: "" if ap is None else f"{ap:.3f}" for name, ap in figures.items()}
    return {"way": way, "seed": seed} | rounded


if __name__ == "__main__":
    main()
