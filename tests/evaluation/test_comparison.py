"""Two models on the same images."""

import pytest
from made_up_splits import make_annotations, random_split, result

from sepc_zoo.evaluation.comparison import compare_detections, comparison_tables, row_texts
from sepc_zoo.evaluation.metrics import evaluate
from sepc_zoo.evaluation.results import collect_detections
from sepc_zoo.metric_names import AP_METRICS

BOX, FAR = (10.0, 10.0, 40.0, 40.0), (200.0, 10.0, 40.0, 40.0)


def compare(annotations, first, second, count=50):
    both = [collect_detections(rows, annotations) for rows in (first, second)]
    return compare_detections(both, annotations, count, seed=0)


def worse(rows):
    """The same detections, with every fourth moved away and scored highest."""
    return [
        row | {"bbox": [1000.0, 1000.0, 9.0, 9.0], "score": 1 + row["score"]} if i % 4 == 0 else row
        for i, row in enumerate(rows)
    ]


def test_a_model_does_not_differ_from_itself():
    annotations, rows = random_split(0)
    content = compare(annotations, rows, rows).content
    for row in (*content["figures"].values(), *content["per_class"].values()):
        assert row["a"] == row["b"]
        assert (row["difference"], row["interval"], row["b_better"]) == (0, [0, 0], None)
    assert content["images"] == []


def test_figures_are_the_evaluations_and_differences_are_b_minus_a():
    annotations, rows = random_split(0)
    content = compare(annotations, worse(rows), rows).content
    metrics = evaluate(collect_detections(rows, annotations), annotations).metrics
    for key in AP_METRICS:
        row = content["figures"][key]
        assert row["b"] == metrics[key]
        assert row["difference"] == row["b"] - row["a"] > 0
        assert row["interval"][0] <= row["difference"] <= row["interval"][1]
    for name, row in content["per_class"].items():
        assert row["b"] == metrics["per_class"][name]["AP"]
    assert content["figures"]["AP"]["b_better"] == 1


def test_swapping_the_models_turns_the_signs():
    annotations, rows = random_split(1)
    forth = compare(annotations, worse(rows), rows).content["figures"]["AP"]
    back = compare(annotations, rows, worse(rows)).content["figures"]["AP"]
    assert back["difference"] == -forth["difference"]
    assert back["b_better"] == pytest.approx(1 - forth["b_better"])
    assert back["interval"] == pytest.approx([-value for value in reversed(forth["interval"])])


def test_pairing_makes_the_interval_narrower_than_that_of_a_model():
    """Both models are better and worse in the same images."""
    annotations, rows = random_split(2, images=30)
    second = [row | {"score": row["score"] ** 2} for row in rows[1:]]
    row = compare(annotations, rows, second, count=100).content["figures"]["AP"]
    assert row["interval"][1] - row["interval"][0] < 0.02


def test_images_that_differ_most_come_first():
    annotations = make_annotations([[(0, BOX)], [(0, BOX)], [(0, BOX), (0, FAR)]], 1)
    good = [result(i, 0, BOX, 0.9) for i in (1, 2, 3)] + [result(3, 0, FAR, 0.9)]
    bad = [result(1, 0, BOX, 0.9), result(2, 0, FAR, 0.9)]
    content = compare(annotations, good, bad).content
    entries = [(e["image_id"], e["errors_a"], e["errors_b"]) for e in content["images"]]
    assert entries == [(2, 0, 2), (3, 0, 2)]


def test_undefined_figures_have_no_difference():
    annotations = make_annotations([[(0, BOX)]], 2)
    content = compare(annotations, [], [result(1, 0, BOX, 0.9)]).content
    assert row_texts(content["per_class"]["class 1"]) == ["-"] * 5
    assert row_texts(content["figures"]["AP"])[:3] == ["0.000", "1.000", "+1.000"]
    figures, classes = comparison_tables(content)
    assert (figures.row_count, classes.row_count) == (6, 2)
