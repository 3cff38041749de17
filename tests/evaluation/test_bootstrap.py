"""Resampled AP is COCO's of repeated images, and its intervals are those of known cases."""

import json
import math

import numpy as np
import pytest
from difficulties import KINDS
from difficulties import make_results as make_difficult_results
from made_up_splits import make_annotations, random_split, result

from sepc_zoo.data import read_data
from sepc_zoo.evaluation.bootstrap import Resampler, bootstrap, interval, intervals
from sepc_zoo.evaluation.metrics import evaluate
from sepc_zoo.evaluation.results import collect_detections
from sepc_zoo.metric_names import AP_METRICS

BOX = (10.0, 10.0, 40.0, 40.0)


def resampler(annotations, rows):
    return Resampler(collect_detections(rows, annotations), annotations)


def table_of(annotations, rows):
    """AP ``(S, T, K)`` from the evaluation; NaN where undefined."""
    precision = evaluate(collect_detections(rows, annotations), annotations).precision
    ap = precision.mean(axis=1).transpose(2, 0, 1)
    return np.where(ap < 0, np.nan, ap)


def repeated(annotations, rows, weights):
    """The split with each image as often as its weight, under new ids."""
    truth, copies = [], []
    for record, weight in zip(annotations.records, weights, strict=True):
        columns = record.labels, record.bbox, record.iscrowd
        objects = list(zip(*(column.tolist() for column in columns), strict=True))
        own = [row for row in rows if row["image_id"] == record.image_id]
        for _ in range(weight):
            truth.append(objects)
            copies += [row | {"image_id": len(truth)} for row in own]
    return make_annotations(truth, len(annotations.label_names)), copies


@pytest.mark.parametrize("seed", range(4))
def test_resampled_ap_equals_that_of_the_repeated_images(seed):
    """At each IoU threshold, for each size and class."""
    annotations, rows = random_split(seed, images=10, crowds=0.15)
    rng = np.random.default_rng(seed)
    weights = np.bincount(rng.integers(10, size=10), minlength=10)
    ours = resampler(annotations, rows).table(weights)
    expected = table_of(*repeated(annotations, rows, weights))
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-9)
    assert 0.02 < np.nanmean(ours) < 0.98


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([*KINDS], marks=pytest.mark.slow),
        ["overlap_exactly_at_a_threshold", "crowd_and_object_compete", "ties_across_images"],
        ["area_exactly_between_sizes", "more_than_100_of_a_class", "neighbours_compete"],
    ],
)
def test_the_images_as_they_are_have_the_evaluations_ap(names, shared_data):
    annotations = read_data(shared_data / "coco_by_sa", "val")
    file = shared_data / "coco_by_sa/annotations/instances_val2017.json"
    rows = make_difficult_results(names, json.loads(file.read_text()))
    ones = np.ones(len(annotations.records), dtype=int)
    ours = resampler(annotations, rows).table(ones)
    np.testing.assert_allclose(ours, table_of(annotations, rows), rtol=0, atol=1e-9)


def test_figures_are_those_of_the_metrics():
    annotations, rows = random_split(0, crowds=0.1)
    metrics = evaluate(collect_detections(rows, annotations), annotations).metrics
    figures = resampler(annotations, rows).figures(np.ones(12, dtype=int))
    expected = [metrics[key] for key in AP_METRICS]
    expected += [own["AP"] for own in metrics["per_class"].values()]
    assert figures == pytest.approx(expected, abs=1e-6)


def test_the_same_seed_gives_the_same_samples():
    own = resampler(*random_split(0))
    first, again, other = (bootstrap([own], 3, seed) for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_all_models_get_the_same_images():
    annotations, rows = random_split(0)
    samples = bootstrap([resampler(annotations, rows), resampler(annotations, rows)], 5, 0)
    assert np.array_equal(samples[:, 0], samples[:, 1])
    assert len(np.unique(samples[:, 0, 0])) > 1


def proportion(correct):
    """One object in each image; a detection of it where ``correct``, and none elsewhere."""
    rows = [result(i, 0, BOX, 1 - i / 1e4) for i, hit in enumerate(correct, start=1) if hit]
    return make_annotations([[(0, BOX)]] * len(correct), 1), rows


def test_the_interval_of_a_proportion_is_the_binomials():
    """Without incorrect detections AP is the share of objects that are found."""
    samples = bootstrap([resampler(*proportion(np.arange(400) % 10 < 6))], 1000, 0)
    low, high = interval(samples[:, 0, 0])
    reach = 1.96 * math.sqrt(0.6 * 0.4 / 400)
    assert (low, high) == pytest.approx((0.6 - reach, 0.6 + reach), abs=0.012)


@pytest.mark.slow
def test_nineteen_of_twenty_intervals_contain_the_proportion():
    rng, inside = np.random.default_rng(0), 0
    for seed in range(100):
        own = resampler(*proportion(rng.random(200) < 0.7))
        low, high = interval(bootstrap([own], 100, seed)[:, 0, 0])
        inside += low <= 0.7 <= high
    assert 90 <= inside <= 99


def test_undefined_figures_have_no_interval():
    annotations = make_annotations([[(0, BOX)], [(0, BOX)]], 2)
    samples = bootstrap([resampler(annotations, [result(1, 0, BOX, 0.5)])], 20, 0)[:, 0]
    figures = intervals(samples, annotations.label_names)
    assert figures["per_class"]["class 1"] == figures["APl"] == [-1, -1]
    assert figures["per_class"]["class 0"] == figures["APm"] == figures["AP"]
    assert figures["AP"] == [0, 1]


def test_a_class_that_a_resample_lacks_is_left_out_of_it():
    annotations = make_annotations([[(0, BOX)], [(1, BOX)]], 2)
    own = resampler(annotations, [result(1, 0, BOX, 0.5)])
    assert own.figures(np.array([2, 0]))[0] == 1
    assert own.figures(np.array([0, 2]))[0] == 0
    assert own.figures(np.array([1, 1]))[0] == 0.5


def test_no_detections_have_an_ap_of_zero():
    own = resampler(make_annotations([[(0, BOX)]], 1), [])
    assert own.figures(np.array([1]))[0] == 0
