"""LVIS's figures: classes by frequency, and images in which only some classes are annotated."""

import contextlib
import io
import json

import numpy as np
import pytest
from faster_coco_eval import COCO, COCOeval_faster
from made_up_splits import make_annotations, result

from sepc_zoo.data.formats.coco import list_coco_file
from sepc_zoo.data.listing import Federation
from sepc_zoo.evaluation.bootstrap import Resampler
from sepc_zoo.evaluation.metrics import count_frequencies, evaluate, frequency_metrics
from sepc_zoo.evaluation.results import collect_detections, collect_targets
from sepc_zoo.metric_names import AP_METRICS

BOX, FAR = (10.0, 10.0, 40.0, 40.0), (200.0, 10.0, 40.0, 40.0)
FREQUENCY = {1: "r", 2: "c", 3: "c", 4: "f", 5: "f", 6: "r"}


def figures(annotations, rows):
    return evaluate(collect_detections(rows, annotations), annotations).metrics


def random_lvis(seed, images=15, classes=6):
    """A split in which a third of the classes are annotated in an image, some in part only."""
    rng = np.random.default_rng(seed)
    truth, absent, not_exhaustive, rows = [], {}, {}, []
    for i in range(1, images + 1):
        present, negative, unknown = np.split(rng.permutation(classes), [2, 4])
        absent[i] = (negative + 1).tolist()
        not_exhaustive[i] = [int(present[0]) + 1] if rng.random() < 0.5 else []
        truth.append([])
        for _ in range(8):
            box = np.array([*rng.uniform(0, 300, 2), *np.exp(rng.uniform(2.5, 5.5, 2))])
            truth[-1].append((int(rng.choice(present)), box.tolist()))
        for label in (*present, *negative, *unknown):
            for _ in range(12):
                box = np.array(truth[-1][int(rng.integers(8))][1])
                noise = rng.normal(0, 0.1, 4)
                moved = [*(box[:2] + noise[:2] * box[2:]), *(box[2:] * np.exp(noise[2:]))]
                rows.append(result(i, int(label), moved, rng.random()))
    federation = Federation(FREQUENCY, absent, not_exhaustive)
    return make_annotations(truth, classes, federation), rows


def evaluate_with_faster_coco_eval(annotations, rows):
    """AP, APr, APc, APf of its own implementation of LVIS's rules."""
    federation = annotations.federation
    images = [
        {
            "id": i,
            "neg_category_ids": federation.absent[i],
            "not_exhaustive_category_ids": federation.not_exhaustive[i],
        }
        for i in (record.image_id for record in annotations.records)
    ]
    categories = [{"id": i, "name": str(i), "frequency": f} for i, f in FREQUENCY.items()]
    boxes = [
        {"image_id": record.image_id, "category_id": label + 1, "bbox": box, "iscrowd": 0}
        for record in annotations.records
        for label, box in zip(record.labels.tolist(), record.bbox.tolist(), strict=True)
    ]
    tables = []
    for entries in (boxes, rows):
        areas = [entry["bbox"][2] * entry["bbox"][3] for entry in entries]
        own = [
            entry | {"id": i, "area": area}
            for i, (entry, area) in enumerate(zip(entries, areas, strict=True), start=1)
        ]
        tables.append(COCO())
        tables[-1].dataset = {"images": images, "categories": categories, "annotations": own}
    with contextlib.redirect_stdout(io.StringIO()):
        for table in tables:
            table.createIndex()
        evaluation = COCOeval_faster(*tables, "bbox", lvis_style=True)
        evaluation.params.maxDets = [300]
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]
    chosen = [[*FREQUENCY], *([i for i, own in FREQUENCY.items() if own == f] for f in "rcf")]
    tables = [precision[:, :, np.array(ids) - 1] for ids in chosen]
    return [table[table > -1].mean() for table in tables]


@pytest.mark.parametrize("seed", range(3))
def test_figures_equal_those_of_another_implementation(seed):
    annotations, rows = random_lvis(seed)
    metrics = figures(annotations, rows)
    ours = [metrics[key] for key in ("AP", "APr", "APc", "APf")]
    assert ours == pytest.approx(evaluate_with_faster_coco_eval(annotations, rows), abs=1e-6)
    assert 0.02 < metrics["AP"] < 0.98


def test_bootstrap_follows_the_same_rules():
    annotations, rows = random_lvis(0)
    metrics = figures(annotations, rows)
    resampler = Resampler(collect_detections(rows, annotations), annotations)
    values = resampler.figures(np.ones(15, dtype=int))[:6]
    assert values == pytest.approx([metrics[key] for key in AP_METRICS], abs=1e-6)


def test_a_class_is_judged_only_where_it_is_annotated():
    """The same wrong detection costs AP where its class is known to be absent."""
    rows = [result(1, 0, BOX, 0.5), result(2, 0, FAR, 0.9)]
    images, nothing = [[(0, BOX)], []], {1: [], 2: []}
    known = make_annotations(images, 1, Federation({}, {1: [], 2: [1]}, nothing))
    unknown = make_annotations(images, 1, Federation({}, nothing, nothing))
    assert figures(known, rows)["AP"] == pytest.approx(0.5)
    assert figures(unknown, rows)["AP"] == pytest.approx(1)


def test_unmatched_detections_of_a_class_that_is_not_annotated_exhaustively_are_ignored():
    rows = [result(1, 0, BOX, 0.5), result(1, 0, FAR, 0.9)]
    for listed, ap in (([], 0.5), ([1], 1)):
        federation = Federation({}, {1: []}, {1: listed})
        split = make_annotations([[(0, BOX)]], 1, federation)
        assert figures(split, rows)["AP"] == pytest.approx(ap)
        assert collect_targets(split).iscrowd.sum() == len(listed)


def test_only_the_300_best_detections_of_an_image_count():
    rows = [result(1, 1, FAR, 0.9)] * 300 + [result(1, 0, BOX, 0.8)]
    split = make_annotations([[(0, BOX), (1, FAR)]], 2, Federation({}, {1: []}, {}))
    found = collect_detections(rows, split)
    assert len(found) == 300
    metrics = figures(split, rows)
    assert (metrics["AP"], metrics["AR1"]) == (pytest.approx(0.5), -1)
    assert figures(make_annotations([[(0, BOX), (1, FAR)]], 2), rows)["AP"] == pytest.approx(1)


def test_frequencies_alone_leave_coco_s_rules():
    rows = [result(1, 0, BOX, 0.5), result(2, 0, FAR, 0.9)]
    split = make_annotations([[(0, BOX)], []], 1, Federation({1: "c"}, {}, {}))
    metrics = figures(split, rows)
    assert metrics["AP"] == metrics["APc"] == pytest.approx(0.5)
    assert metrics["APr"] == metrics["APf"] == -1


def test_classes_are_rare_up_to_10_images_and_common_up_to_100():
    counts = {0: 0, 1: 10, 2: 11, 3: 100, 4: 101}
    images = [[(k, BOX) for k, n in counts.items() if i < n for _ in "ab"] for i in range(101)]
    assert count_frequencies(make_annotations(images, 5)) == ["r", "r", "c", "c", "f"]


def test_ap_of_a_group_is_the_mean_of_its_classes():
    precision = np.stack([np.full((10, 101, 4), v) for v in (0.2, 0.4, 0.9, -1)], axis=2)
    metrics = frequency_metrics(precision, ["r", "r", "c", "c"])
    assert metrics == {"APr": pytest.approx(0.3), "APc": pytest.approx(0.9), "APf": -1}


def write_lvis(folder, **image):
    content = {
        "images": [{"id": 7, "file_name": "7.jpg", "height": 9, "width": 9, **image}],
        "categories": [{"id": 4, "name": "cat", "frequency": "r"}, {"id": 5, "name": "dog"}],
        "annotations": [],
    }
    (folder / "lvis.json").write_text(json.dumps(content))
    return list_coco_file(folder / "lvis.json", folder)


def test_a_file_of_lvis_is_read(tmp_path):
    listing = write_lvis(tmp_path, neg_category_ids=[5], not_exhaustive_category_ids=[4])
    assert listing.federation == Federation({4: "r"}, {7: [5]}, {7: [4]})
    assert listing.problems == []


@pytest.mark.parametrize("value", [5, ["5"], None])
def test_lists_that_are_none_are_problems(value, tmp_path):
    (problem,) = write_lvis(tmp_path, neg_category_ids=value).problems
    assert "'neg_category_ids' is no list of category ids" in problem.text
    assert "id 7" in problem.where
