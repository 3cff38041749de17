"""VOC's AP against the loop that its development kit describes."""

from itertools import pairwise

import numpy as np
import pytest
from made_up_splits import make_annotations, random_split, result

from sepc_zoo.evaluation.results import collect_detections
from sepc_zoo.evaluation.voc import voc_ap

BOX, FAR = (10.0, 10.0, 40.0, 40.0), (200.0, 10.0, 40.0, 40.0)


def compute(annotations, rows):
    return voc_ap(collect_detections(rows, annotations), annotations)


def overlap(a, b):
    sides = [min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1)]
    both = max(sides[0], 0) * max(sides[1], 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def naive_voc_ap(annotations, rows, label):
    """AP as area and with 11 points, detection by detection."""
    objects = {
        record.image_id: [
            {"box": box, "difficult": bool(crowd), "found": False}
            for box, own, crowd in zip(
                record.bbox.tolist(), record.labels.tolist(), record.iscrowd.tolist(), strict=True
            )
            if own == label
        ]
        for record in annotations.records
    }
    total = sum(not own["difficult"] for image in objects.values() for own in image)
    precision, recall, correct, wrong = [], [], 0, 0
    own_rows = [row for row in rows if row["category_id"] == label + 1]
    for row in sorted(own_rows, key=lambda row: -row["score"]):
        best = max(
            objects[row["image_id"]], key=lambda own: overlap(row["bbox"], own["box"]), default=None
        )
        if best is not None and overlap(row["bbox"], best["box"]) >= 0.5:
            if best["difficult"]:
                continue
            correct += not best["found"]
            wrong += best["found"]
            best["found"] = True
        else:
            wrong += 1
        precision.append(correct / (correct + wrong))
        recall.append(correct / total)

    def highest(at):
        return max((p for p, r in zip(precision, recall, strict=True) if r >= at), default=0)

    steps = [0, *sorted(set(recall))]
    area = sum((b - a) * highest(b) for a, b in pairwise(steps))
    return area, sum(highest(at) for at in np.linspace(0, 1, 11)) / 11


@pytest.mark.parametrize("crowds", [0, 0.2])
@pytest.mark.parametrize("seed", range(4))
def test_equal_to_the_naive_loop(seed, crowds):
    annotations, rows = random_split(seed, images=8, crowds=crowds)
    figures = compute(annotations, rows)
    naive = np.array([naive_voc_ap(annotations, rows, label) for label in range(4)])
    ours = [tuple(own.values()) for own in figures["per_class"].values()]
    assert np.array(ours) == pytest.approx(naive)
    assert (figures["AP"], figures["AP_11_points"]) == pytest.approx(tuple(naive.mean(axis=0)))


def test_half_of_the_objects_found_gives_a_half_and_six_of_eleven_points():
    figures = compute(make_annotations([[(0, BOX), (0, FAR)]], 1), [result(1, 0, BOX, 0.5)])
    assert figures["AP"] == pytest.approx(0.5)
    assert figures["AP_11_points"] == pytest.approx(6 / 11)


def test_a_detection_does_not_take_a_second_choice():
    """In COCO, the second detection matches the object that it overlaps less."""
    objects = [(0, BOX), (0, (20.0, 10.0, 40.0, 40.0))]
    rows = [result(1, 0, BOX, 0.9), result(1, 0, (12.0, 10.0, 40.0, 40.0), 0.8)]
    assert compute(make_annotations([objects], 1), rows)["AP"] == pytest.approx(0.5)


def test_classes_without_objects_are_undefined_and_left_out_of_the_mean():
    rows = [result(1, 0, BOX, 0.5), result(1, 1, FAR, 0.9)]
    figures = compute(make_annotations([[(0, BOX)]], 2), rows)
    assert figures["per_class"]["class 1"] == {"AP": -1, "AP_11_points": -1}
    assert figures["AP"] == figures["AP_11_points"] == 1
    for nothing in ([], rows[:1]):
        assert compute(make_annotations([[]], 1), nothing)["AP"] == -1
