"""Synthetic detections for real annotations: every difficulty that a COCO evaluation meets.

Each function makes COCO results of the kind in its name from the content of an instances file. Each
kind has its own seed, so that results are reproducible.
"""
# ruff: noqa: ARG001 -- all kinds have the same arguments

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

Instances = dict[str, Any]
Rows = list[dict[str, Any]]
Kind = Callable[[Instances, np.random.Generator], Rows]

KINDS: dict[str, Kind] = {}
SMALL, MEDIUM = 32.0, 96.0  # sides of the squares where COCO's size ranges meet
EPS = 2.0**-52
THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()


def make_results(names: list[str], instances: Instances) -> Rows:
    """Join the detections of some kinds."""
    seeds = {name: seed for seed, name in enumerate(KINDS)}
    return [
        row for name in names for row in KINDS[name](instances, np.random.default_rng(seeds[name]))
    ]


def kind(function: Kind) -> Kind:
    KINDS[function.__name__] = function
    return function


def detected(annotation: dict[str, Any], score: float = 0.5, **changes: Any) -> dict[str, Any]:
    """A detection equal to an annotated box, with some changes."""
    row = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
    return row | {"score": float(score)} | changes


def objects(instances: Instances) -> Rows:
    return [annotation for annotation in instances["annotations"] if not annotation["iscrowd"]]


def crowds(instances: Instances) -> Rows:
    return [annotation for annotation in instances["annotations"] if annotation["iscrowd"]]


def jitter(box: list[float], rng: np.random.Generator, share: float = 0.1) -> list[float]:
    """Move and resize a box by about a share of its sides."""
    x, y, w, h = box
    dx, dy, dw, dh = rng.normal(0, share, 4)
    moved = x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)
    return [round(float(value), 3) for value in moved]


def jittered(annotation: dict[str, Any], rng: np.random.Generator, share: float = 0.1) -> dict:
    return detected(annotation, rng.random(), bbox=jitter(annotation["bbox"], rng, share))


@kind
def perfect(instances, rng):
    return [detected(a, rng.random()) for a in objects(instances)]


@kind
def a_little_off(instances, rng):
    return [jittered(a, rng) for a in objects(instances)]


@kind
def poorly_localised(instances, rng):
    return [jittered(a, rng, 0.35) for a in objects(instances)]


@kind
def wrong_class(instances, rng):
    ids = [category["id"] for category in instances["categories"]]
    return [detected(a, rng.random(), category_id=int(rng.choice(ids))) for a in objects(instances)]


@kind
def crowd_hit_once(instances, rng):
    return [detected(a, 0.9, bbox=jitter(a["bbox"], rng)) for a in crowds(instances)]


@kind
def crowd_hit_many_times(instances, rng):
    """Boxes inside a crowd, at its border and over it, with the highest scores."""
    rows = []
    for crowd in crowds(instances):
        x, y, w, h = crowd["bbox"]
        for _ in range(30):
            left, top, wide, high = x + rng.random() * w, y + rng.random() * h, w / 3, h / 2
            rows.append(detected(crowd, rng.uniform(0.8, 1), bbox=[left, top, wide, high]))
    return rows


@kind
def crowd_and_object_compete(instances, rng):
    """An object's box in an image whose crowd of the same class covers it too."""
    places = {(crowd["image_id"], crowd["category_id"]) for crowd in crowds(instances)}
    inside = [a for a in objects(instances) if (a["image_id"], a["category_id"]) in places]
    return [detected(a, score) for a in inside for score in (0.9, 0.8, 0.7)]


@kind
def ties_within_an_image(instances, rng):
    return [jittered(a, rng) | {"score": 0.5} for a in objects(instances) for _ in range(3)]


@kind
def ties_across_images(instances, rng):
    return [jittered(a, rng, 0.3) | {"score": a["image_id"] % 3 / 4} for a in objects(instances)]


@kind
def all_scores_equal(instances, rng):
    rows = perfect(instances, rng) + wrong_class(instances, rng) + poorly_localised(instances, rng)
    return [row | {"score": 0.25} for row in rows]


@kind
def scores_a_bit_apart(instances, rng):
    """Scores that differ by the smallest steps of float64."""
    rows = perfect(instances, rng) + poorly_localised(instances, rng)
    return [row | {"score": 0.5 + int(rng.integers(9)) * 2.0**-53} for row in rows]


@kind
def scores_of_zero_and_one(instances, rng):
    return [jittered(a, rng, 0.3) | {"score": float(rng.integers(2))} for a in objects(instances)]


@kind
def none_at_all(instances, rng):
    return []


@kind
def more_than_100_of_a_class(instances, rng):
    chosen = instances["annotations"][:: len(instances["annotations"]) // 8]
    rows = [jittered(a, rng, 0.2) for a in chosen for _ in range(130)]
    return [row | {"score": round(row["score"], 1)} for row in rows]  # ties at the hundredth


@kind
def more_than_100_in_an_image(instances, rng):
    ids = [category["id"] for category in instances["categories"]]
    chosen = objects(instances)[::100]
    return [jittered(a, rng) | {"category_id": i} for a in chosen for i in ids for _ in range(2)]


@kind
def classes_without_annotations(instances, rng):
    annotated = {annotation["category_id"] for annotation in instances["annotations"]}
    absent = [
        category["id"] for category in instances["categories"] if category["id"] not in annotated
    ]
    return [
        detected(a, rng.random(), category_id=int(rng.choice(absent))) for a in objects(instances)
    ]


@kind
def classes_without_detections(instances, rng):
    return [jittered(a, rng) for a in objects(instances) if a["category_id"] % 3]


@kind
def a_single_class(instances, rng):
    return [jittered(a, rng) for a in objects(instances) if a["category_id"] == 1]


@kind
def images_without_boxes(instances, rng):
    empty = {image["id"] for image in instances["images"]}
    empty -= {annotation["image_id"] for annotation in instances["annotations"]}
    rows = [
        jittered(a, rng) | {"image_id": i} for a in objects(instances)[::9] for i in sorted(empty)
    ]
    return perfect(instances, rng) + rows


@kind
def one_image_only(instances, rng):
    image_id = Counter(a["image_id"] for a in objects(instances)).most_common(1)[0][0]
    return [jittered(a, rng) for a in objects(instances) if a["image_id"] == image_id]


@kind
def duplicates(instances, rng):
    return [detected(a, 0.5) for a in objects(instances) for _ in range(3)]


@kind
def duplicates_with_higher_scores(instances, rng):
    """The worse box has the higher score and matches the object."""
    rows = [detected(a, 0.3) for a in objects(instances)]
    return rows + [jittered(a, rng, 0.05) | {"score": 0.6} for a in objects(instances)]


@kind
def neighbours_compete(instances, rng):
    """A box between two objects of a class overlaps both."""
    groups = defaultdict(list)
    for annotation in objects(instances):
        groups[annotation["image_id"], annotation["category_id"]].append(annotation)
    rows = []
    for group in groups.values():
        for a, b in pairwise(group):
            middle = ((np.array(a["bbox"]) + np.array(b["bbox"])) / 2).tolist()
            rows += [detected(a, rng.random(), bbox=middle), detected(b, 0.5), detected(a, 0.5)]
    return rows


@kind
def overlap_exactly_at_a_threshold(instances, rng):
    """Part of each box, as wide as a threshold; half of them are exact in binary."""
    rows = []
    for i, annotation in enumerate(objects(instances)):
        x, y, w, h = annotation["bbox"]
        share = THRESHOLDS[i % 10] if i % 20 < 10 else 0.5
        rows.append(detected(annotation, rng.random(), bbox=[x, y, w * share, h]))
    return rows


@kind
def area_exactly_between_sizes(instances, rng):
    """Squares of 32 and 96 pixels, and one step of float64 above and below."""
    sides = [s for side in (SMALL, MEDIUM) for s in (side, np.nextafter(side, 0), side * (1 + EPS))]
    corners = [(a, a["bbox"][:2]) for a in objects(instances)]
    return [
        detected(a, rng.random(), bbox=[*corner, float(side), round(float(side))])
        for a, corner in corners
        for side in sides
    ]


@kind
def tiny_boxes(instances, rng):
    rows = [detected(a, 0.9, bbox=[*a["bbox"][:2], 0.01, 0.02]) for a in objects(instances)]
    return rows + perfect(instances, rng)


@kind
def boxes_without_area(instances, rng):
    sides = [(0.0, 0.0), (0.0, 20.0), (20.0, 0.0)]
    rows = [
        detected(a, 0.9, bbox=[*a["bbox"][:2], *side]) for a in objects(instances) for side in sides
    ]
    return rows + perfect(instances, rng)


@kind
def boxes_out_of_the_image(instances, rng):
    rows = perfect(instances, rng)
    for annotation in objects(instances):
        x, y, w, h = annotation["bbox"]
        shift = float(rng.choice([-2000, -w, -w / 4, w / 4, 2000]))
        rows.append(detected(annotation, rng.random(), bbox=[x + shift, y - h / 5, w, h * 1.2]))
    return rows


@kind
def boxes_over_everything(instances, rng):
    rows = perfect(instances, rng)
    return rows + [detected(a, 0.99, bbox=[-1e5, -1e5, 1e6, 1e6]) for a in objects(instances)]


@kind
def whole_numbers(instances, rng):
    """Integers in JSON, as rounding programs write them, for the score too."""
    return [
        detected(a, 1, bbox=[round(v) for v in a["bbox"]]) | {"score": 1}
        for a in objects(instances)
    ]


@kind
def many_digits(instances, rng):
    return [
        detected(a, rng.random(), bbox=[v + 1 / 3 for v in a["bbox"]]) for a in objects(instances)
    ]


@kind
def falling_image_ids(instances, rng):
    rows = ties_across_images(instances, rng)
    return sorted(rows, key=lambda row: -row["image_id"])


@kind
def shuffled(instances, rng):
    rows = ties_within_an_image(instances, rng)
    return [rows[i] for i in rng.permutation(len(rows))]
