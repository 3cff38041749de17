"""COCO mAP of a model, or of saved detections, on a data set."""

import argparse
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torchvision.ops import box_convert

from sepc_zoo.commands.arguments import (
    add_loader_arguments,
    add_views_arguments,
    model_with_weights,
    views_of,
)
from sepc_zoo.config import ConfigError
from sepc_zoo.data import Annotations, DataError, make_target, read_data
from sepc_zoo.engine.accelerator import make_accelerator
from sepc_zoo.engine.evaluate import CocoMetrics, metrics_table
from sepc_zoo.engine.log import told_dropped
from sepc_zoo.engine.validate import validate_model, validation_loader
from sepc_zoo.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", metavar="NAME_OR_DIR", help="model folder, hf-hub:org/repo or published name"
    )
    parser.add_argument(
        "--from-json", metavar="FILE", help="detections in COCO's results format, in its stead"
    )
    parser.add_argument("--data", required=True, metavar="DIR", help="data set, COCO or VOC")
    parser.add_argument("--split", default="val", help="%(default)s")
    parser.add_argument("--output", default="validation", metavar="DIR", help="%(default)s")
    add_loader_arguments(parser)
    add_views_arguments(parser)
    parser.add_argument("--amp", choices=["bf16", "fp16"], help="mixed precision")
    parser.add_argument("--cpu", action="store_true", help="leave the GPU alone")
    parser.add_argument(
        "--drop-bad-boxes", action="store_true", help="leave out boxes without area"
    )


def run(args: argparse.Namespace) -> int:
    output = Path(args.output)
    if args.model is None and args.from_json is None:
        raise ConfigError("--model or --from-json is missing")
    if args.from_json is not None:
        annotations = read_data(args.data, args.split, None, args.drop_bad_boxes)
        metrics = evaluate_file(Path(args.from_json), annotations)
    else:
        accelerator = make_accelerator(args.amp, args.cpu)
        views = views_of(args)
        model = model_with_weights(args.model)
        names = model.config.label_names
        annotations = read_data(args.data, args.split, names, args.drop_bad_boxes)
        loader = validation_loader(annotations, model, args.batch_size, args.workers, views)
        model.to(accelerator.device)
        metrics, results = validate_model(accelerator, model, loader, annotations)
        if not accelerator.is_main_process:
            return 0
        write_json(output / "detections.json", results, indent=None)
    write_json(output / "metrics.json", metrics)
    for line in told_dropped(annotations):
        print(line)
    Console().print(metrics_table(metrics))
    print(f"{len(annotations.records)} images; metrics.json is in {output}")
    return 0


def evaluate_file(path: Path, annotations: Annotations) -> dict[str, Any]:
    """Metrics of saved COCO results.

    Raises:
        DataError: the file has no results, or of images or categories that the data set lacks.
    """
    found = read_results(path, annotations)
    metrics = CocoMetrics()
    for record in annotations.records:
        rows = found[record.image_id]
        boxes = torch.tensor([row["bbox"] for row in rows], dtype=torch.float64).reshape(-1, 4)
        labels = [annotations.category_ids.index(row["category_id"]) for row in rows]
        detection = {
            "boxes": box_convert(boxes, "xywh", "xyxy"),
            "scores": torch.tensor([row["score"] for row in rows], dtype=torch.float64),
            "labels": torch.tensor(labels, dtype=torch.int64),
        }
        metrics.update([detection], [make_target(record)])
    return metrics.compute(annotations.label_names)


def read_results(path: Path, annotations: Annotations) -> dict[int, list[dict[str, Any]]]:
    """COCO results by image, each checked against the data set."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError([f"{path}: {error}"]) from error
    rows = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError([f"{path}: expected a list of COCO results"])
    known = {record.image_id for record in annotations.records}
    found: dict[int, list[dict[str, Any]]] = defaultdict(list)
    problems = []
    for i, row in enumerate(rows):
        problem = _problem(row, known, annotations.category_ids)
        if problem:
            problems.append(f"{path}: entry {i}: {problem}")
        else:
            found[row["image_id"]].append(row)
    if problems:
        raise DataError(problems)
    return found


def _problem(row: Any, images: set[int], category_ids: tuple[int | None, ...]) -> str:
    if not isinstance(row, dict) or not {"image_id", "category_id", "bbox", "score"} <= set(row):
        return "needs image_id, category_id, bbox and score"
    image_id, category_id, box = row["image_id"], row["category_id"], row["bbox"]
    if not isinstance(image_id, int) or image_id not in images:
        return f"the split has no image {image_id!r}"
    if not isinstance(category_id, int) or category_id not in category_ids:
        return f"the data set has no category {category_id!r}"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox {box!r} is not [x, y, width, height]"
    if not _is_finite(row["score"]):
        return f"score {row['score']!r} is no number"
    return ""


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
