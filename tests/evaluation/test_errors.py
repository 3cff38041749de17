"""Kinds of errors: each is found, and costs what the code of the paper (tidecv 1.0.1) says."""

import pytest
from made_up_splits import make_annotations, random_split, result

from sepc_zoo.evaluation.diagnosis import MISTAKES, diagnose_split
from sepc_zoo.evaluation.errors import ERROR_KINDS, ErrorCosts, errors_line
from sepc_zoo.evaluation.metrics import evaluate
from sepc_zoo.evaluation.results import collect_detections

CAT, DOG = range(2)
LEFT, MIDDLE, RIGHT = ((x, 10.0, 40.0, 40.0) for x in (10.0, 110.0, 210.0))
OBJECTS = [(CAT, LEFT), (CAT, MIDDLE), (DOG, RIGHT)]
DETECTED = {
    "left": result(1, CAT, LEFT, 0.9),
    "middle": result(1, CAT, MIDDLE, 0.5),
    "right": result(1, DOG, RIGHT, 0.7),
}
# One error in an image of two cats and a dog; the other detections are correct.
ERRORS = {
    "classification": {"right": result(1, CAT, RIGHT, 0.7)},
    "localisation": {"middle": result(1, CAT, (135.0, 10.0, 40.0, 40.0), 0.5)},
    "both": {"more": result(1, CAT, (235.0, 10.0, 40.0, 40.0), 0.6)},
    "duplicate": {"more": result(1, CAT, LEFT, 0.6)},
    "background": {"more": result(1, CAT, (400.0, 400.0, 40.0, 40.0), 0.6)},
    "missed": {"right": None},
}
# For random_split(0), (1), (2) from tidecv: AP50, number and dAP of the first six kinds of
# ERROR_KINDS, and dAP of the last two.
TIDE = [
    (
        0.391765163,
        [36, 69, 28, 78, 26, 1],
        [0.114846651, 0.158130705, 0.024059622, 0.041845666, 0.013436228, 0.006490508],
        [0.479521965, 0.058376669],
    ),
    (
        0.401067621,
        [45, 69, 22, 85, 16, 1],
        [0.057900062, 0.177806849, 0.033846808, 0.029480872, 0.028107606, 0.007802936],
        [0.470219508, 0.062709738],
    ),
    (
        0.415373862,
        [39, 68, 27, 76, 28, 3],
        [0.068426537, 0.128790388, 0.025569177, 0.036062807, 0.034007831, 0.017810236],
        [0.441061782, 0.067492497],
    ),
]


def errors_of(annotations, rows):
    found = collect_detections(rows, annotations)
    return ErrorCosts(diagnose_split(found, annotations), len(annotations.label_names))


@pytest.mark.parametrize("kind", ERRORS)
def test_each_kind_is_found_and_mending_it_gives_an_ap_of_one(kind):
    rows = [row for row in (DETECTED | ERRORS[kind]).values() if row]
    errors = errors_of(make_annotations([OBJECTS], 2), rows)
    costs = errors.costs()
    assert {name: costs[name]["count"] for name in ERRORS} == dict.fromkeys(ERRORS, 0) | {kind: 1}
    before = errors.fixed_ap()
    assert before < 0.99
    assert costs[kind]["dAP"] == pytest.approx(1 - before)
    assert errors.fixed_ap(kind) == pytest.approx(1)
    others = set(ERRORS) - {kind}
    assert {name: costs[name]["dAP"] for name in others} == pytest.approx(dict.fromkeys(others, 0))


@pytest.mark.parametrize("seed", range(len(TIDE)))
def test_counts_and_costs_are_those_of_the_papers_code(seed):
    ap, counts, gains, special = TIDE[seed]
    errors = errors_of(*random_split(seed))
    costs = errors.costs()
    assert errors.fixed_ap() == pytest.approx(ap, abs=1e-8)
    assert [own["count"] for own in costs.values()][:6] == counts
    assert [own["dAP"] for own in costs.values()] == pytest.approx([*gains, *special], abs=1e-8)


@pytest.mark.parametrize("crowds", [0, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_without_any_errors_ap_is_one(seed, crowds):
    errors = errors_of(*random_split(seed, crowds=crowds))
    special = {"false_positives", "false_negatives"}  # contain the others, each in its way
    assert errors.fixed_ap(*{*ERROR_KINDS} - special) == pytest.approx(1)
    assert errors.fixed_ap(*special) == pytest.approx(1)


@pytest.mark.parametrize("crowds", [0, 0.2])
@pytest.mark.parametrize("seed", range(3))
def test_the_ap_before_is_the_evaluations(seed, crowds):
    annotations, rows = random_split(seed, crowds=crowds)
    metrics = evaluate(collect_detections(rows, annotations), annotations).metrics
    assert errors_of(annotations, rows).fixed_ap() == pytest.approx(metrics["AP50"], abs=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_each_incorrect_detection_and_each_lost_object_counts_once(seed):
    annotations, rows = random_split(seed)
    costs = errors_of(annotations, rows).costs()
    incorrect = sum(costs[name]["count"] for name in MISTAKES.values())
    objects = sum(len(record.labels) for record in annotations.records)
    lost = costs["false_negatives"]["count"]
    assert costs["false_positives"]["count"] == incorrect == len(rows) - (objects - lost)
    assert costs["missed"]["count"] <= lost


def test_only_the_best_detection_near_a_lost_object_is_mended():
    near = [result(1, CAT, (35.0, 10.0, 40.0, 40.0), score) for score in (0.8, 0.6)]
    errors = errors_of(make_annotations([[(CAT, LEFT)]], 1), near)
    assert errors.costs()["localisation"] == {"count": 2, "dAP": pytest.approx(1)}
    assert errors.costs()["missed"]["count"] == 0


def test_detections_in_a_crowd_are_no_errors():
    objects = [(CAT, LEFT), (CAT, (100.0, 0.0, 200.0, 200.0), True)]
    rows = [result(1, CAT, LEFT, 0.5), result(1, CAT, MIDDLE, 0.9)]
    costs = errors_of(make_annotations([objects], 1), rows).costs()
    assert all(own == {"count": 0, "dAP": 0} for own in costs.values())


@pytest.mark.parametrize("objects", [[], [(CAT, LEFT)]])
def test_without_detections_or_objects_nothing_fails(objects):
    annotations = make_annotations([objects], 2)
    empty = errors_of(annotations, []).costs()
    assert empty["missed"] == {"count": len(objects), "dAP": 0}
    far = errors_of(make_annotations([[]], 2), [result(1, CAT, LEFT, 0.5)]).costs()
    assert far["background"] == far["false_positives"] == {"count": 1, "dAP": 0}


def test_the_line_names_each_kind_as_the_paper_does():
    line = errors_line(errors_of(*random_split(0)).costs())
    assert "Cls 0.115, Loc 0.158" in line
    assert all(kind.short in line for kind in ERROR_KINDS.values())
