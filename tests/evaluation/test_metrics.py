"""The figures equal pycocotools' own on the same data."""

import contextlib
import io
import json
import warnings
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from torchmetrics.detection import MeanAveragePrecision
from torchvision.ops import box_convert

from sepc_zoo.data import Annotations, Record
from sepc_zoo.evaluation import mean_ap
from sepc_zoo.evaluation.metrics import (
    IOU_THRESHOLDS,
    RECALL_THRESHOLDS,
    evaluate,
    metrics_table,
)
from sepc_zoo.evaluation.results import collect_detections
from sepc_zoo.inference.detections import coco_results
from sepc_zoo.metric_names import METRICS

K = 6
NAMES = [f"class {i}" for i in range(K)]


def run_pycocotools(truth, results):
    """Compute the twelve figures, and those of each category in an evaluation of its own."""
    with contextlib.redirect_stdout(io.StringIO()):
        gt, dt = COCO(), COCO()
        gt.dataset = truth
        dt.dataset = truth | {
            "annotations": [
                result | {"id": i, "area": result["bbox"][2] * result["bbox"][3], "iscrowd": 0}
                for i, result in enumerate(results, start=1)
            ]
        }
        gt.createIndex()
        dt.createIndex()
        categories = sorted(c["id"] for c in truth["categories"])
        stats = []
        for chosen in [categories, *([c] for c in categories)]:
            evaluation = COCOeval(gt, dt, "bbox")
            evaluation.params.catIds = chosen
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            stats.append(evaluation.stats.tolist())
    return stats[0], [(*s[:6], s[8]) for s in stats[1:]]


def as_coco(targets, num_classes):
    annotations = []
    for target in targets:
        for i, box in enumerate(target["boxes"].double().tolist()):
            annotation = {
                "id": len(annotations) + 1,
                "image_id": int(target["image_id"]),
                "category_id": int(target["labels"][i]),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                "iscrowd": int(target["iscrowd"][i]),
                "area": float(target["area"][i]),
            }
            annotations.append(annotation)
    return {
        "images": [{"id": int(target["image_id"])} for target in targets],
        "categories": [{"id": i, "name": str(i)} for i in range(num_classes)],
        "annotations": annotations,
    }


def as_results(detections, targets, num_classes=K):
    return [
        row
        for found, target in zip(detections, targets, strict=True)
        for row in coco_results(int(target["image_id"]), found, range(num_classes))
    ]


def compute(detections, targets, names=NAMES):
    records = tuple(record_of(target) for target in targets)
    annotations = Annotations(records, tuple(names), tuple(range(len(names))))
    rows = as_results(detections, targets, len(names))
    return evaluate(collect_detections(rows, annotations), annotations).metrics


def record_of(target):
    boxes = target["boxes"].reshape(-1, 4)
    bbox = box_convert(boxes.double(), "xyxy", "xywh")
    return Record(
        image_id=int(target["image_id"]),
        path=Path("photo.jpg"),
        size=(1, 1),
        boxes=boxes,
        labels=target["labels"],
        iscrowd=target.get("iscrowd", torch.zeros(len(boxes))),
        area=target.get("area", bbox[:, 2:].prod(dim=1)),
        bbox=bbox,
    )


def assert_same(metrics, expected, expected_per_class):
    assert [metrics[key] for key in METRICS] == pytest.approx(expected, abs=1e-6)
    per_class = [tuple(figures.values()) for figures in metrics["per_class"].values()]
    for ours, theirs in zip(per_class, expected_per_class, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)


def assert_equal_to_pycocotools(detections, targets, names=NAMES):
    metrics = compute(detections, targets, names)
    truth = as_coco(targets, len(names))
    assert_same(metrics, *run_pycocotools(truth, as_results(detections, targets)))
    return metrics


def random_boxes(count, generator):
    """Boxes of all sizes on a coarse grid: many overlaps are equal, some are 1/2."""
    corner = torch.randint(0, 20, (count, 2), generator=generator) * 8.0
    side = 8.0 * 2 ** torch.randint(0, 5, (count, 2), generator=generator)
    return torch.cat([corner, corner + side], dim=1)


def random_image(image_id, seed, num_objects, num_detections):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(num_objects, generator)
    sides = boxes[:, 2:] - boxes[:, :2]
    target = {
        "image_id": torch.tensor(image_id),
        "boxes": boxes,
        "labels": torch.randint(0, K - 1, (num_objects,), generator=generator),
        "iscrowd": (torch.rand(num_objects, generator=generator) < 0.15).long(),
        "area": sides.prod(dim=1) * torch.rand(num_objects, generator=generator),
    }
    found = {
        "boxes": random_boxes(num_detections, generator),
        # few distinct scores: ties within and between images
        "scores": torch.randint(1, 12, (num_detections,), generator=generator) / 12,
        "labels": torch.randint(0, K, (num_detections,), generator=generator),
    }
    near = min(num_objects, num_detections) * 2 // 3  # most objects are detected, a little shifted
    found["boxes"][:near] = boxes[:near] + torch.randint(0, 3, (near, 4), generator=generator)
    found["labels"][:near] = target["labels"][:near]
    found["scores"][:near] += 0.5
    return found, target


def unzip(images):
    return [found for found, _ in images], [target for _, target in images]


@pytest.fixture
def data():
    """Images with and without objects, detections, or either, listed out of order."""
    counts = [(12, 30), (0, 10), (7, 0), (0, 0), (1, 1), (25, 350), (9, 9), (40, 60)]
    ids = [5, 900, 3, 12, 77, 1, 42, 8]
    return unzip([random_image(i, i, *n) for i, n in zip(ids, counts, strict=True)])


def drop_all(detections):
    return [{k: v[:0] for k, v in found.items()} for found in detections]


def test_equal_to_pycocotools_on_difficult_data(data):
    metrics = assert_equal_to_pycocotools(*data)
    assert 0.05 < metrics["AP"] < 0.95  # neither extreme


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pycocotools_on_random_images(seed):
    images = [random_image(i, 100 * seed + i, 15, 40) for i in range(10)]
    assert_equal_to_pycocotools(*unzip(images))


def test_recalls_that_fall_on_a_threshold():
    """With 100 objects every recall is a multiple of 0.01."""
    corner = torch.arange(100.0)[:, None] * 20
    boxes = torch.cat([corner, corner, corner + 10, corner + 10], dim=1)
    keep = torch.arange(100) % 3 > 0
    found = {
        "boxes": boxes + 1000 * (~keep)[:, None],
        "scores": torch.linspace(1, 0.1, 100),
        "labels": torch.zeros(100).long(),
    }
    target = {"image_id": torch.tensor(1), "boxes": boxes, "labels": torch.zeros(100).long()}
    target |= {"iscrowd": torch.zeros(100), "area": torch.full((100,), 100.0)}
    assert_equal_to_pycocotools([found], [target], ["thing"])


def test_detections_after_the_hundredth_are_cut_without_a_warning():
    found, target = random_image(1, 0, 50, 400)
    found["labels"][:] = target["labels"][:] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal_to_pycocotools([found], [target])


def test_size_follows_the_annotated_area(data):
    detections, targets = data
    tiny = [target | {"area": torch.zeros(len(target["boxes"]))} for target in targets]
    metrics = assert_equal_to_pycocotools(detections, tiny)
    assert metrics["APm"] == metrics["APl"] == -1


def test_area_and_crowds_may_be_unknown(data):
    detections, targets = data
    known = [
        target
        | {
            "area": (target["boxes"][:, 2:] - target["boxes"][:, :2]).prod(dim=1),
            "iscrowd": torch.zeros_like(target["labels"]),
        }
        for target in targets
    ]
    plain = [{k: target[k] for k in ("image_id", "boxes", "labels")} for target in targets]
    assert compute(detections, plain) == compute(detections, known)


def test_no_detections_at_all(data):
    detections, targets = data
    metrics = assert_equal_to_pycocotools(drop_all(detections), targets)
    assert metrics["AP"] == 0


def test_no_objects(data):
    detections, targets = data
    empty = [{k: v if v.ndim == 0 else v[:0] for k, v in target.items()} for target in targets]
    metrics = assert_equal_to_pycocotools(detections, empty)
    assert {metrics[key] for key in METRICS} == {-1}


def test_no_images():
    metrics = compute([], [])
    assert {metrics[key] for key in METRICS} == {-1}
    assert list(metrics["per_class"]) == NAMES


def test_a_single_class(data):
    detections, targets = (
        [item | {"labels": torch.zeros_like(item["labels"])} for item in items] for items in data
    )
    metrics = assert_equal_to_pycocotools(detections, targets, ["thing"])
    assert metrics["per_class"]["thing"]["AP"] == pytest.approx(metrics["AP"], abs=1e-6)


def test_every_class_is_reported(data):
    metrics = compute(*data, names=[*NAMES, "unicorn"])
    assert list(metrics["per_class"]) == [*NAMES, "unicorn"]
    assert set(metrics["per_class"]["unicorn"].values()) == {-1}


def test_perfect_detections_score_one(data):
    targets = data[1]
    perfect = [
        {
            "boxes": target["boxes"],
            "labels": torch.arange(len(target["boxes"])),
            "scores": torch.ones(len(target["boxes"])),
        }
        for target in targets
    ]
    truths = [p | {"image_id": t["image_id"]} for p, t in zip(perfect, targets, strict=True)]
    metrics = compute(perfect, truths, [str(i) for i in range(40)])
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == pytest.approx(1)


def test_half_precision_detections_are_accepted(data):
    detections, targets = data
    half = [
        found | {"boxes": found["boxes"].bfloat16(), "scores": found["scores"].bfloat16()}
        for found in detections
    ]
    assert_equal_to_pycocotools(half, targets)


def test_equal_to_torchmetrics_fed_image_by_image(data):
    """With images by id, areas over 0, and thresholds in float64."""
    detections, targets = data
    plain = MeanAveragePrecision(
        iou_thresholds=IOU_THRESHOLDS.tolist(),
        rec_thresholds=RECALL_THRESHOLDS.tolist(),
        backend=mean_ap.best_backend(),
    )
    plain.warn_on_many_detections = False
    order = sorted(range(len(targets)), key=lambda i: int(targets[i]["image_id"]))
    double = [d | {"boxes": d["boxes"].double()} for d in detections]
    plain.update([double[i] for i in order], [targets[i] for i in order])
    result, metrics = plain.compute(), compute(detections, targets)
    for name, metric in METRICS.items():
        assert metrics[name] == pytest.approx(float(result[metric.result_key]), abs=1e-6)


def test_both_backends_agree(data, monkeypatch):
    fast = compute(*data)
    monkeypatch.setattr(mean_ap, "find_spec", lambda _: None)
    slow = compute(*data)
    assert [fast[key] for key in METRICS] == pytest.approx([slow[key] for key in METRICS])


def test_nothing_is_printed(data, capsys):
    compute(*data)
    assert capsys.readouterr() == ("", "")


def test_equal_to_pycocotools_on_coco(shared_data):
    """Real annotations under COCO's own ids, read from their file by pycocotools."""
    truth = json.loads((shared_data / "coco_by_sa/annotations/instances_val2017.json").read_text())
    category_ids = sorted(category["id"] for category in truth["categories"])
    by_image = defaultdict(list)
    for annotation in truth["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    detections, targets, results = [], [], []
    for image in truth["images"]:
        found, target = real_image(image["id"], by_image[image["id"]], category_ids)
        detections.append(found)
        targets.append(target)
        results += coco_results(image["id"], found, category_ids)
    metrics = compute(detections, targets, [str(i) for i in category_ids])
    assert_same(metrics, *run_pycocotools(truth, results))


def real_image(image_id, annotations, category_ids):
    """Targets of an image, and detections: its boxes a little moved, some with a wrong label."""
    generator = torch.Generator().manual_seed(image_id)
    boxes = torch.tensor([a["bbox"] for a in annotations]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    labels = torch.tensor([category_ids.index(a["category_id"]) for a in annotations]).long()
    target = {
        "image_id": torch.tensor(image_id),
        "boxes": boxes,
        "labels": labels,
        "iscrowd": torch.tensor([a["iscrowd"] for a in annotations]),
        "area": torch.tensor([a["area"] for a in annotations]),
    }
    moves = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2) * 0.1
    wrong = torch.rand(len(labels), generator=generator) < 0.2
    found = {
        "boxes": boxes + moves * torch.randn(boxes.shape, generator=generator),
        "scores": torch.rand(len(labels), generator=generator),
        "labels": torch.where(wrong, (labels + 1) % len(category_ids), labels),
    }
    return found, target


def test_table_shows_all_figures_and_classes(data):
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(metrics_table(compute(*data)))
    text = console.export_text()
    assert all(name in text for name in (*METRICS, *NAMES))
    assert "-1" not in text


def test_the_table_shows_class_names_as_they_are():
    metrics = compute([], [], ["[/a]", "[red]"])
    console = Console(width=120, record=True)
    console.print(metrics_table(metrics))
    text = console.export_text()
    assert "[/a]" in text
    assert "[red]" in text
