"""The figures equal pycocotools' own on the same data."""

import contextlib
import io
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_up_splits import make_annotations, result
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console
from torchmetrics.detection import MeanAveragePrecision

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


def run_pycocotools(annotations, rows):
    """Compute the twelve figures, and those of each category in an evaluation of its own."""
    objects = [
        {"image_id": record.image_id, "category_id": label + 1, "bbox": box}
        | {"iscrowd": crowd, "area": area}
        for record in annotations.records
        for label, box, crowd, area in zip(
            *(getattr(record, name).tolist() for name in ("labels", "bbox", "iscrowd", "area")),
            strict=True,
        )
    ]
    found = [row | {"area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0} for row in rows]
    common = {
        "images": [{"id": record.image_id} for record in annotations.records],
        "categories": [{"id": i} for i in annotations.category_ids],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        tables = COCO(), COCO()
        for table, entries in zip(tables, (objects, found), strict=True):
            own = [entry | {"id": i} for i, entry in enumerate(entries, start=1)]
            table.dataset = common | {"annotations": own}
            table.createIndex()
        stats = []
        for chosen in [annotations.category_ids, *([i] for i in annotations.category_ids)]:
            evaluation = COCOeval(*tables, "bbox")
            evaluation.params.catIds = chosen
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            stats.append(evaluation.stats.tolist())
    return stats[0], [(*s[:6], s[8]) for s in stats[1:]]


def compute(annotations, rows):
    return evaluate(collect_detections(rows, annotations), annotations).metrics


def assert_equal_to_pycocotools(annotations, rows):
    metrics = compute(annotations, rows)
    expected, expected_per_class = run_pycocotools(annotations, rows)
    assert [metrics[key] for key in METRICS] == pytest.approx(expected, abs=1e-6)
    per_class = [tuple(figures.values()) for figures in metrics["per_class"].values()]
    for ours, theirs in zip(per_class, expected_per_class, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
    return metrics


def random_boxes(count, rng):
    """Boxes of all sizes on a coarse grid: many overlaps are equal, some are 1/2."""
    sides = 8.0 * 2 ** rng.integers(0, 5, (count, 2))
    return np.concatenate([8.0 * rng.integers(0, 20, (count, 2)), sides], axis=1)


def random_data(seed, counts, classes=K):
    """Images with these numbers of objects and of detections; the last class has no object.

    Few scores are distinct: there are ties within and between images. The annotated area of an
    object is a share of its box.
    """
    rng = np.random.default_rng(seed)
    truth, rows = [], []
    for i, (num_objects, num_detections) in enumerate(counts, start=1):
        boxes, found = random_boxes(num_objects, rng), random_boxes(num_detections, rng)
        labels = rng.integers(max(1, classes - 1), size=num_objects)
        own, scores = (rng.integers(n, size=num_detections) for n in (classes, 12))
        near = min(num_objects, num_detections) * 2 // 3  # most objects are detected, a bit shifted
        found[:near] = boxes[:near] + rng.integers(0, 3, (near, 4))
        own[:near] = labels[:near]
        crowd = rng.random(num_objects) < 0.15
        truth.append(list(zip(labels.tolist(), boxes.tolist(), crowd.tolist(), strict=True)))
        scores = scores / 16 + 0.5 * (np.arange(num_detections) < near)
        rows += [result(i, *row) for row in zip(own.tolist(), found, scores, strict=True)]

    def share_of(area):
        return area * torch.from_numpy(rng.random(len(area)))

    return with_areas(make_annotations(truth, classes), share_of), rows


def with_areas(annotations, area_of):
    """The split with other annotated areas, from those of each image."""
    records = tuple(replace(record, area=area_of(record.area)) for record in annotations.records)
    return replace(annotations, records=records)


@pytest.fixture(scope="module")
def data():
    """Images with and without objects, detections, or either, listed out of order."""
    counts = [(12, 30), (0, 10), (7, 0), (0, 0), (1, 1), (25, 350), (9, 9), (40, 60)]
    ids = [5, 900, 3, 12, 77, 1, 42, 8]
    annotations, rows = random_data(0, counts)
    records = zip(annotations.records, ids, strict=True)
    records = tuple(replace(record, image_id=number) for record, number in records)
    rows = [row | {"image_id": ids[row["image_id"] - 1]} for row in rows]
    return replace(annotations, records=records), rows


def test_equal_to_pycocotools_on_difficult_data(data):
    metrics = assert_equal_to_pycocotools(*data)
    assert 0.05 < metrics["AP"] < 0.95  # neither extreme


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pycocotools_on_random_images(seed):
    assert_equal_to_pycocotools(*random_data(seed, [(15, 40)] * 10))


def test_recalls_that_fall_on_a_threshold():
    """With 100 objects every recall is a multiple of 0.01."""
    boxes = [(20.0 * i, 20.0 * i, 10.0, 10.0) for i in range(100)]
    far = (5000.0, 5000.0, 10.0, 10.0)
    rows = [result(1, 0, box if i % 3 else far, 1 - i / 200) for i, box in enumerate(boxes)]
    assert_equal_to_pycocotools(make_annotations([[(0, box) for box in boxes]], 1), rows)


def test_detections_after_the_hundredth_are_cut_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_equal_to_pycocotools(*random_data(0, [(50, 400)], classes=1))


def test_size_follows_the_annotated_area(data):
    annotations, rows = data
    tiny = with_areas(annotations, torch.zeros_like)
    metrics = assert_equal_to_pycocotools(tiny, rows)
    assert metrics["APm"] == metrics["APl"] == -1


def test_no_detections_at_all(data):
    assert assert_equal_to_pycocotools(data[0], [])["AP"] == 0


def test_no_objects():
    metrics = assert_equal_to_pycocotools(*random_data(0, [(0, 10), (0, 0)]))
    assert {metrics[key] for key in METRICS} == {-1}


def test_no_images():
    metrics = compute(make_annotations([], K), [])
    assert {metrics[key] for key in METRICS} == {-1}
    assert list(metrics["per_class"]) == NAMES


def test_a_single_class():
    metrics = assert_equal_to_pycocotools(*random_data(1, [(15, 40)] * 5, classes=1))
    assert metrics["per_class"]["class 0"]["AP"] == pytest.approx(metrics["AP"], abs=1e-6)


def test_every_class_is_reported(data):
    annotations, rows = data
    names, ids = annotations.label_names, annotations.category_ids
    metrics = compute(
        replace(annotations, label_names=(*names, "unicorn"), category_ids=(*ids, 99)), rows
    )
    assert list(metrics["per_class"]) == [*NAMES, "unicorn"]
    assert set(metrics["per_class"]["unicorn"].values()) == {-1}


def test_perfect_detections_score_one():
    boxes = random_boxes(40, np.random.default_rng(0))
    truth = [list(enumerate(boxes[:count].tolist())) for count in (12, 0, 40)]
    rows = [result(i, *entry, 1) for i, own in enumerate(truth, start=1) for entry in own]
    metrics = compute(make_annotations(truth, 40), rows)
    assert metrics["AP"] == metrics["AP50"] == metrics["AR100"] == pytest.approx(1)


def test_half_precision_detections_are_accepted():
    found = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "scores": torch.tensor([0.3])}
    half = {name: value.bfloat16() for name, value in found.items()}
    rows = coco_results(1, half | {"labels": torch.tensor([0])}, (1,))
    split = make_annotations([[(0, (8.0, 8.0, 32.0, 32.0))]], 1)
    assert assert_equal_to_pycocotools(split, rows)["AP"] == pytest.approx(1)


def test_equal_to_torchmetrics_fed_image_by_image(data):
    """With images by id, areas over 0, and thresholds in float64."""
    annotations, rows = data
    plain = MeanAveragePrecision(
        box_format="xywh",
        iou_thresholds=IOU_THRESHOLDS.tolist(),
        rec_thresholds=RECALL_THRESHOLDS.tolist(),
        backend=mean_ap.best_backend(),
    )
    plain.warn_on_many_detections = False
    for record in sorted(annotations.records, key=lambda record: record.image_id):
        own = [row for row in rows if row["image_id"] == record.image_id]
        boxes = torch.tensor([row["bbox"] for row in own], dtype=torch.float64).reshape(-1, 4)
        found = {"boxes": boxes, "scores": torch.tensor([row["score"] for row in own])}
        found["labels"] = torch.tensor([row["category_id"] - 1 for row in own], dtype=torch.int64)
        target = {name: getattr(record, name) for name in ("labels", "iscrowd", "area")}
        plain.update([found], [target | {"boxes": record.bbox}])
    expected, metrics = plain.compute(), compute(annotations, rows)
    for name, metric in METRICS.items():
        assert metrics[name] == pytest.approx(float(expected[metric.result_key]), abs=1e-6)


def test_both_backends_agree(data, monkeypatch):
    fast = compute(*data)
    monkeypatch.setattr(mean_ap, "find_spec", lambda _: None)
    slow = compute(*data)
    assert [fast[key] for key in METRICS] == pytest.approx([slow[key] for key in METRICS])


def test_nothing_is_printed(data, capsys):
    compute(*data)
    assert capsys.readouterr() == ("", "")


def table_text(metrics):
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(metrics_table(metrics))
    return console.export_text()


def test_table_shows_all_figures_and_classes(data):
    text = table_text(compute(*data))
    assert all(name in text for name in (*METRICS, *NAMES))
    assert "-1" not in text


def test_the_table_shows_class_names_as_they_are():
    text = table_text(compute(replace(make_annotations([], 2), label_names=("[/a]", "[red]")), []))
    assert "[/a]" in text
    assert "[red]" in text
