"""Time of a COCO evaluation: 5,000 synthetic images of 80 classes with 100 detections each.

Images have about seven boxes, as in COCO's val2017. Ours, from COCO results to all figures, is
compared with pycocotools and faster-coco-eval alone on the same data. They take turns, and the
twelve figures must be equal.

    python benchmarks/coco_eval.py
"""

import argparse
import contextlib
import io
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval
import torch

from sepc_zoo.data import Annotations, Record
from sepc_zoo.evaluation.metrics import evaluate
from sepc_zoo.evaluation.results import collect_detections
from sepc_zoo.metric_names import METRICS

TABLE = Path(__file__).with_suffix(".csv")
IMAGES, CLASSES, BOXES, DETECTIONS = 5000, 80, 7, 100
SIZE = np.array([640.0, 480.0])
TOLERANCE = 1e-6
Evaluator = Callable[[], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    truth, rows = make_synthetic(np.random.default_rng(0))
    annotations = as_annotations(truth)
    evaluators: dict[str, Evaluator] = {
        "pycocotools": library(pycocotools.coco.COCO, pycocotools.cocoeval.COCOeval, truth, rows),
        "faster-coco-eval": library(
            faster_coco_eval.COCO, faster_coco_eval.COCOeval_faster, truth, rows
        ),
        "sepc_zoo": lambda: ours(rows, annotations),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in evaluators}
    figures: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for name, evaluator in evaluators.items():
            wall, cpu = time.perf_counter(), time.process_time()
            figures[name] = evaluator()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    for name, ones in figures.items():
        np.testing.assert_allclose(ones, figures["pycocotools"], atol=TOLERANCE, err_msg=name)
    middle = {
        name: [statistics.median(column) for column in zip(*pairs, strict=True)]
        for name, pairs in times.items()
    }
    lines = ["evaluator,seconds,cpu_seconds,times_faster,AP,images,detections,rounds,cpu"]
    for name, (wall, cpu) in middle.items():
        ratio = middle["pycocotools"][1] / cpu
        cells = name, f"{wall:.1f}", f"{cpu:.1f}", f"{ratio:.2f}", f"{figures[name][0]:.6f}"
        facts = IMAGES, len(rows), args.rounds, platform.machine()
        lines.append(",".join(map(str, (*cells, *facts))))
    TABLE.write_text("\n".join(lines) + "\n")
    print(TABLE.read_text())


def ours(rows: list[dict[str, Any]], annotations: Annotations) -> list[float]:
    metrics = evaluate(collect_detections(rows, annotations), annotations).metrics
    return [metrics[key] for key in METRICS]


def library(coco: Any, evaluator: Any, truth: dict[str, Any], rows: list[Any]) -> Evaluator:
    """Compute the twelve figures with a library alone; the ground truth is indexed beforehand."""
    index = coco()
    index.dataset = truth
    index.createIndex()

    def run() -> list[float]:
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = evaluator(index, index.loadRes([dict(row) for row in rows]), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return [float(x) for x in evaluation.stats[:12]]

    return run


def make_synthetic(rng: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make an instances file and results: about three detections per box, the rest is noise."""
    truth: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for image_id in range(1, IMAGES + 1):
        count = int(rng.poisson(BOXES))
        boxes, labels = random_boxes(count, rng), rng.integers(1, CLASSES + 1, count)
        truth += [
            {
                "id": len(truth) + i,
                "image_id": image_id,
                "category_id": int(label),
                "bbox": box,
                "area": 0.6 * box[2] * box[3],  # area of the mask, as in COCO
                "iscrowd": int(rng.random() < 0.01),
            }
            for i, (box, label) in enumerate(zip(boxes.tolist(), labels, strict=True), start=1)
        ]
        near = np.repeat(np.arange(count), 3)[:DETECTIONS]
        sides = np.tile(boxes[near, 2:], 2)
        found = boxes[near] + sides * rng.normal(0, 0.1, (len(near), 4))
        noise = random_boxes(DETECTIONS - len(near), rng)
        found = np.concatenate([found, noise]).round(2)
        found[:, 2:] = found[:, 2:].clip(1)
        kinds = np.concatenate([labels[near], rng.integers(1, CLASSES + 1, len(noise))])
        scores = np.concatenate([rng.random(len(near)), rng.random(len(noise)) ** 3]).round(5)
        rows += [
            {"image_id": image_id, "category_id": int(kind), "bbox": box, "score": score}
            for kind, box, score in zip(kinds, found.tolist(), scores.tolist(), strict=True)
        ]
    images = [
        {"id": i, "width": int(SIZE[0]), "height": int(SIZE[1])} for i in range(1, IMAGES + 1)
    ]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)]
    return {"images": images, "categories": categories, "annotations": truth}, rows


def random_boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Boxes (x, y, width, height); a third of them each are small, medium and large."""
    sides = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2))).round(2)
    sides = np.minimum(sides, SIZE)
    return np.concatenate([(rng.random((count, 2)) * (SIZE - sides)).round(2), sides], axis=1)


def as_annotations(truth: dict[str, Any]) -> Annotations:
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in truth["images"]}
    for one in truth["annotations"]:
        by_image[one["image_id"]].append(one)
    records = []
    for image_id, ones in by_image.items():
        bbox = torch.tensor([one["bbox"] for one in ones], dtype=torch.float64).reshape(-1, 4)
        xyxy = torch.cat([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], dim=1).float()
        labels, crowds = (
            torch.tensor([one[key] for one in ones], dtype=torch.int64)
            for key in ("category_id", "iscrowd")
        )
        area = torch.tensor([one["area"] for one in ones], dtype=torch.float64)
        size = (int(SIZE[1]), int(SIZE[0]))
        path = Path(f"{image_id}.jpg")
        records.append(Record(image_id, path, size, xyxy, labels - 1, crowds, area, bbox))
    names, ids = zip(*((c["name"], c["id"]) for c in truth["categories"]), strict=True)
    return Annotations(tuple(records), names, ids)


if __name__ == "__main__":
    main()
