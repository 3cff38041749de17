"""Matching equals pycocotools', and what follows from it in cases that can be counted by hand."""

import contextlib
import io
import json

import numpy as np
import pytest
from difficulties import KINDS
from difficulties import make_results as make_difficult_results
from made_up_splits import make_annotations, result
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sepc_zoo.data.annotations import build_annotations
from sepc_zoo.data.formats.coco import list_coco_file
from sepc_zoo.evaluation.diagnosis import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    CORRECT,
    DUPLICATE,
    IGNORED,
    LOCALISATION,
    MISTAKES,
    calibrate,
    confusion_matrix,
    diagnose_split,
    explain_miss,
    sweep_scores,
    worst_false_positives,
    worst_misses,
)
from sepc_zoo.evaluation.results import collect_detections

CAT, DOG, COW = range(3)
BOX = (10.0, 10.0, 40.0, 40.0)  # x, y, width, height
FAR = (200.0, 200.0, 40.0, 40.0)


def shifted(share, box=BOX):
    """A box moved to the right by a share of its width: IoU (1 - share) / (1 + share)."""
    return (box[0] + share * box[2], *box[1:])


def diagnosis_of(detections, objects, images=1):
    """Diagnose detections (image, label, box, score) of objects (image, label, box[, crowd])."""
    truth = [[entry for image, *entry in objects if image == i] for i in range(images)]
    annotations = make_annotations(truth, 3)
    rows = [result(image + 1, *entry) for image, *entry in detections]
    return diagnose_split(collect_detections(rows, annotations), annotations)


def kinds(*args, **kwargs):
    return diagnosis_of(*args, **kwargs).kind.tolist()


def random_case(seed, images=6, classes=3):
    """Boxes on a coarse grid and few distinct scores: many ties of overlap and score."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        sides = 8.0 * 2 ** rng.integers(0, 3, (count, 2))
        return np.concatenate([8.0 * rng.integers(0, 6, (count, 2)), sides], axis=1).tolist()

    objects = [
        (int(rng.integers(images)), int(rng.integers(classes)), box, bool(rng.random() < 0.1))
        for box in boxes(40)
    ]
    detections = [
        (int(rng.integers(images)), int(rng.integers(classes)), box, rng.integers(1, 8) / 8)
        for box in boxes(300)
    ]
    return diagnosis_of(detections, objects, images)


@pytest.mark.parametrize(
    "names",
    [
        # COCO ignores boxes of more than 1e5 x 1e5 pixels, the report counts them as mistakes
        [name for name in KINDS if name != "boxes_over_everything"],
        ["poorly_localised", "crowd_hit_many_times", "crowd_and_object_compete"],
        ["overlap_exactly_at_a_threshold", "wrong_class", "neighbours_compete"],
        ["more_than_100_of_a_class", "ties_across_images"],
    ],
)
def test_matching_equals_that_of_pycocotools(names, shared_data):
    """Each detection is matched, ignored or neither."""
    root = shared_data / "coco_by_sa"
    file = root / "annotations/instances_val2017.json"
    annotations = build_annotations(list_coco_file(file, root / "val2017"))
    rows = make_difficult_results(names, json.loads(file.read_text()))
    rows.sort(key=lambda row: row["image_id"])
    kind = diagnose_split(collect_detections(rows, annotations), annotations).kind
    with contextlib.redirect_stdout(io.StringIO()):
        ours = COCO(str(file))
        evaluation = COCOeval(ours, ours.loadRes(rows), "bbox")
        evaluation.params.iouThrs = [0.5]
        evaluation.evaluate()
    theirs = np.full(len(rows), IGNORED)  # detections after the hundredth are in no table
    for image in evaluation.evalImgs:
        if image is not None and image["aRng"] == evaluation.params.areaRng[0]:
            ids = np.array(image["dtIds"], dtype=int) - 1
            matched = np.where(image["dtMatches"][0] > 0, CORRECT, BACKGROUND)
            theirs[ids] = np.where(image["dtIgnore"][0], IGNORED, matched)
    mistakes = np.isin(kind, [*MISTAKES])
    assert np.array_equal(np.where(mistakes, BACKGROUND, kind), theirs)
    assert 150 < (kind == CORRECT).sum() < len(kind) - 150  # the comparison says something


def test_the_highest_score_matches_an_object_and_the_next_is_a_duplicate():
    detections = [(0, CAT, BOX, 0.5), (0, CAT, shifted(0.1), 0.9)]
    assert kinds(detections, [(0, CAT, BOX)]) == [DUPLICATE, CORRECT]


def test_a_detection_matches_the_object_with_the_highest_overlap():
    near, nearer = shifted(0.2), shifted(0.1)
    diagnosis = diagnosis_of([(0, CAT, BOX, 1)], [(0, CAT, near), (0, CAT, nearer)])
    assert diagnosis.match.tolist() == [1]
    assert diagnosis.iou.tolist() == pytest.approx([0.9 / 1.1])


def test_an_iou_of_one_half_is_a_match():
    half = (*BOX[:2], BOX[2] / 2, BOX[3])
    assert kinds([(0, CAT, half, 1)], [(0, CAT, BOX)]) == [CORRECT]


def test_mistakes_are_distinguished():
    objects = [(0, CAT, BOX), (0, DOG, FAR)]
    detections = [
        (0, CAT, BOX, 0.9),
        (0, CAT, shifted(0.1), 0.8),
        (0, DOG, BOX, 0.7),
        (0, DOG, shifted(0.6, FAR), 0.6),
        (0, COW, shifted(0.6, FAR), 0.5),
        (0, DOG, (100.0, 100.0, 5.0, 5.0), 0.4),
    ]
    expected = [CORRECT, DUPLICATE, CLASSIFICATION, LOCALISATION, BOTH, BACKGROUND]
    assert kinds(detections, objects) == expected
    nearest = diagnosis_of(detections, objects).nearest
    assert nearest.tolist() == [0, 0, 0, 1, 1, -1]


def test_boxes_of_different_images_do_not_match():
    assert kinds([(1, CAT, BOX, 1)], [(0, CAT, BOX)], images=3) == [BACKGROUND]


def test_detections_in_a_crowd_of_their_class_are_ignored():
    inside = (15.0, 15.0, 5.0, 5.0)
    detections = [(0, CAT, inside, 0.9), (0, CAT, BOX, 0.8), (0, DOG, inside, 0.7)]
    assert kinds(detections, [(0, CAT, BOX, True)]) == [IGNORED, IGNORED, BACKGROUND]


def test_an_object_matches_before_the_crowd_around_it():
    objects = [(0, CAT, (0.0, 0.0, 200.0, 200.0), True), (0, CAT, BOX)]
    detections = [(0, CAT, BOX, 0.9), (0, CAT, BOX, 0.8)]
    assert kinds(detections, objects) == [CORRECT, IGNORED]


def test_detections_after_the_hundredth_of_a_class_are_ignored():
    detections = [(0, CAT, FAR, 0.5)] * 100 + [(0, CAT, BOX, 0.4), (0, DOG, BOX, 0.4)]
    assert kinds(detections, [(0, CAT, BOX)])[99:] == [BACKGROUND, IGNORED, CLASSIFICATION]


@pytest.mark.parametrize("images", [0, 2])
def test_no_detections_and_no_objects(images):
    diagnosis = diagnosis_of([], [], images)
    assert diagnosis.kind.shape == (0,)
    assert confusion_matrix(diagnosis, 2, 0).sum() == 0
    assert sweep_scores(diagnosis).best() is None
    assert calibrate(diagnosis).error == 0
    assert worst_false_positives(diagnosis, 5) == worst_misses(diagnosis, 0, 5) == []


# confusion


def test_confusion_counts_objects_in_rows_and_detections_in_columns():
    objects = [(0, CAT, BOX), (0, DOG, FAR), (1, DOG, BOX), (1, COW, FAR)]
    detections = [
        (0, CAT, BOX, 0.9),
        (0, CAT, FAR, 0.8),  # a dog detected as a cat
        (1, COW, (100.0, 0.0, 9.0, 9.0), 0.7),  # no object here
        (1, COW, FAR, 0.1),  # below the threshold
    ]
    matrix = confusion_matrix(diagnosis_of(detections, objects, 2), 3, 0.5)
    assert matrix.tolist() == [[1, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]]


def test_a_matched_object_is_not_confused():
    detections = [(0, DOG, BOX, 0.9), (0, CAT, BOX, 0.5)]
    matrix = confusion_matrix(diagnosis_of(detections, [(0, CAT, BOX)]), 2, 0)
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_each_object_and_detection_is_in_the_matrix_once(seed):
    diagnosis = random_case(seed)
    matrix = confusion_matrix(diagnosis, 3, 0.4)
    real = diagnosis.targets.labels[~diagnosis.targets.iscrowd]
    kept = (diagnosis.detections.scores >= 0.4) & (diagnosis.kind != IGNORED)
    assert matrix[:3].sum(axis=1).tolist() == np.bincount(real, minlength=3).tolist()
    assert matrix[:, :3].sum(axis=0).tolist() == (
        np.bincount(diagnosis.detections.labels[kept], minlength=3).tolist()
    )
    assert matrix.trace() == (diagnosis.matched_by(0.4) >= 0).sum()


# scores


@pytest.mark.parametrize("label", [None, CAT, DOG])
@pytest.mark.parametrize("seed", range(3))
def test_no_threshold_has_a_higher_f1(seed, label):
    diagnosis = random_case(seed)
    scores, labels = diagnosis.detections.scores, diagnosis.detections.labels
    chosen = (diagnosis.kind != IGNORED) & ((labels == label) | (label is None))
    real = ~diagnosis.targets.iscrowd & ((diagnosis.targets.labels == label) | (label is None))

    def f1(threshold):
        kept = chosen & (scores >= threshold)
        return 2 * (diagnosis.kind[kept] == CORRECT).sum() / (kept.sum() + real.sum())

    best = sweep_scores(diagnosis, label).best()
    assert best.f1 == pytest.approx(f1(best.score)) == max(map(f1, np.unique(scores)))
    assert best.f1 == pytest.approx(
        2 * best.precision * best.recall / (best.precision + best.recall)
    )


def test_the_threshold_lies_halfway_to_the_next_lower_score():
    detections = [(0, CAT, BOX, 0.8), (0, CAT, FAR, 0.4)]
    diagnosis = diagnosis_of(detections, [(0, CAT, BOX)])
    assert sweep_scores(diagnosis).best() == pytest.approx((0.6, 1, 1, 1))


def test_scores_equal_to_the_share_of_correct_detections_have_no_error():
    """Of ten detections with a score of 0.7 seven are correct."""
    objects = [(i, CAT, BOX) for i in range(10)]
    detections = [(i, CAT, BOX if i < 7 else FAR, 0.7) for i in range(10)]
    calibration = calibrate(diagnosis_of(detections, objects, 10))
    assert calibration.error == pytest.approx(0)
    assert calibration.detections[7] == calibration.detections.sum() == 10


def test_the_calibration_error_is_weighted_by_the_number_of_detections():
    objects = [(i, CAT, BOX) for i in range(4)]
    detections = [(0, CAT, BOX, 1.0)] + [(i, CAT, FAR, 0.2) for i in range(1, 4)]
    calibration = calibrate(diagnosis_of(detections, objects, 4))
    assert calibration.error == pytest.approx(0.75 * 0.2)


@pytest.mark.parametrize("score", [-0.1, 1.1])
def test_scores_outside_0_to_1_have_no_calibration(score):
    assert calibrate(diagnosis_of([(0, CAT, BOX, score)], [(0, CAT, BOX)])) is None


# worst mistakes


def test_the_worst_false_positives_have_the_highest_scores_and_few_share_an_image():
    detections = [(0, CAT, FAR, 0.9)] * 3 + [(1, CAT, FAR, 0.5), (1, CAT, BOX, 1.0)]
    diagnosis = diagnosis_of(detections, [(1, CAT, BOX)], 2)
    assert worst_false_positives(diagnosis, 9) == [0, 1, 3]
    assert worst_false_positives(diagnosis, 1) == [0]


def test_the_worst_misses_are_the_largest_objects():
    sizes = [10.0, 30.0, 20.0, 40.0]
    objects = [(i, CAT, (0.0, 0.0, side, side)) for i, side in enumerate(sizes)]
    diagnosis = diagnosis_of([(3, CAT, objects[3][2], 0.5)], objects, 4)
    assert worst_misses(diagnosis, 0.5, 2) == [1, 2]
    assert worst_misses(diagnosis, 0.6, 2) == [3, 1]


def test_a_miss_is_explained_by_a_match_with_a_lower_score():
    detections = [(0, DOG, BOX, 0.9), (0, CAT, BOX, 0.2)]
    diagnosis = diagnosis_of(detections, [(0, CAT, BOX), (1, CAT, BOX)], 2)
    assert explain_miss(diagnosis, 0, min_score=0.5) == (1, 1.0)
    assert explain_miss(diagnosis, 1, min_score=0.5) == (-1, 0.0)


def test_a_miss_is_explained_by_the_highest_overlap_over_the_threshold():
    detections = [(0, DOG, shifted(0.1), 0.9), (0, COW, BOX, 0.2)]
    diagnosis = diagnosis_of(detections, [(0, CAT, BOX)])
    assert explain_miss(diagnosis, 0, min_score=0.5) == (0, pytest.approx(0.9 / 1.1))
