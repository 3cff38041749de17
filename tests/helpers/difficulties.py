"""Made-up detections on real annotations: every kind of difficulty that a COCO evaluation meets.

Each function makes COCO results of one kind, named as the function is, from an instances file's
content. They are repeatable: a generator of random numbers belongs to the kind.
"""
# ruff: noqa: ARG001 -- all kinds are called alike

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

Truth = dict[str, Any]
Rows = list[dict[str, Any]]
Kind = Callable[[Truth, np.random.Generator], Rows]

KINDS: dict[str, Kind] = {}
SMALL, MEDIUM = 32.0, 96.0  # sides of the squares where COCO's size ranges meet
EPS = 2.0**-52
THRESHOLDS = np.linspace(0.5, 0.95, 10).tolist()


def make_up(names: list[str], truth: Truth) -> Rows:
    """The detections of some kinds, one after the other."""
    seeds = {name: seed for seed, name in enumerate(KINDS)}
    return [row for name in names for row in KINDS[name](truth, np.random.default_rng(seeds[name]))]


def kind(function: Kind) -> Kind:
    KINDS[function.__name__] = function
    return function


def seen(annotation: dict[str, Any], score: float = 0.5, **changes: Any) -> dict[str, Any]:
    """A detection that is an annotated box, but for some changes."""
    row = {key: annotation[key] for key in ("image_id", "category_id", "bbox")}
    return row | {"score": float(score)} | changes


def objects(truth: Truth) -> Rows:
    return [annotation for annotation in truth["annotations"] if not annotation["iscrowd"]]


def crowds(truth: Truth) -> Rows:
    return [annotation for annotation in truth["annotations"] if annotation["iscrowd"]]


def jitter(box: list[float], rng: np.random.Generator, share: float = 0.1) -> list[float]:
    """A box moved and resized by about a share of its sides."""
    x, y, w, h = box
    dx, dy, dw, dh = rng.normal(0, share, 4)
    moved = x + dx * w, y + dy * h, w * np.exp(dw), h * np.exp(dh)
    return [round(float(value), 3) for value in moved]


def jittered(annotation: dict[str, Any], rng: np.random.Generator, share: float = 0.1) -> dict:
    return seen(annotation, rng.random(), bbox=jitter(annotation["bbox"], rng, share))


@kind
def perfect(truth, rng):
    return [seen(a, rng.random()) for a in objects(truth)]


@kind
def a_little_off(truth, rng):
    return [jittered(a, rng) for a in objects(truth)]


@kind
def poorly_localised(truth, rng):
    return [jittered(a, rng, 0.35) for a in objects(truth)]


@kind
def wrong_class(truth, rng):
    ids = [category["id"] for category in truth["categories"]]
    return [seen(a, rng.random(), category_id=int(rng.choice(ids))) for a in objects(truth)]


@kind
def crowd_hit_once(truth, rng):
    return [seen(a, 0.9, bbox=jitter(a["bbox"], rng)) for a in crowds(truth)]


@kind
def crowd_hit_many_times(truth, rng):
    """Boxes inside a crowd, at its border and over it, surer than any other detection."""
    rows = []
    for crowd in crowds(truth):
        x, y, w, h = crowd["bbox"]
        for _ in range(30):
            left, top, wide, high = x + rng.random() * w, y + rng.random() * h, w / 3, h / 2
            rows.append(seen(crowd, rng.uniform(0.8, 1), bbox=[left, top, wide, high]))
    return rows


@kind
def crowd_and_object_compete(truth, rng):
    """An object's box in an image whose crowd of the same class covers it too."""
    found = {(crowd["image_id"], crowd["category_id"]) for crowd in crowds(truth)}
    inside = [a for a in objects(truth) if (a["image_id"], a["category_id"]) in found]
    return [seen(a, score) for a in inside for score in (0.9, 0.8, 0.7)]


@kind
def ties_within_an_image(truth, rng):
    return [jittered(a, rng) | {"score": 0.5} for a in objects(truth) for _ in range(3)]


@kind
def ties_across_images(truth, rng):
    return [jittered(a, rng, 0.3) | {"score": a["image_id"] % 3 / 4} for a in objects(truth)]


@kind
def all_scores_equal(truth, rng):
    rows = perfect(truth, rng) + wrong_class(truth, rng) + poorly_localised(truth, rng)
    return [row | {"score": 0.25} for row in rows]


@kind
def scores_a_bit_apart(truth, rng):
    """Scores that differ by no more than float64 can tell."""
    rows = perfect(truth, rng) + poorly_localised(truth, rng)
    return [row | {"score": 0.5 + int(rng.integers(9)) * 2.0**-53} for row in rows]


@kind
def scores_of_zero_and_one(truth, rng):
    return [jittered(a, rng, 0.3) | {"score": float(rng.integers(2))} for a in objects(truth)]


@kind
def none_at_all(truth, rng):
    return []


@kind
def more_than_100_of_a_class(truth, rng):
    chosen = truth["annotations"][:: len(truth["annotations"]) // 8]
    rows = [jittered(a, rng, 0.2) for a in chosen for _ in range(130)]
    return [row | {"score": round(row["score"], 1)} for row in rows]  # ties at the hundredth


@kind
def more_than_100_in_an_image(truth, rng):
    ids = [category["id"] for category in truth["categories"]]
    chosen = objects(truth)[::100]
    return [jittered(a, rng) | {"category_id": i} for a in chosen for i in ids for _ in range(2)]


@kind
def classes_absent_from_the_truth(truth, rng):
    there = {annotation["category_id"] for annotation in truth["annotations"]}
    absent = [category["id"] for category in truth["categories"] if category["id"] not in there]
    return [seen(a, rng.random(), category_id=int(rng.choice(absent))) for a in objects(truth)]


@kind
def classes_absent_from_the_detections(truth, rng):
    return [jittered(a, rng) for a in objects(truth) if a["category_id"] % 3]


@kind
def a_single_class(truth, rng):
    return [jittered(a, rng) for a in objects(truth) if a["category_id"] == 1]


@kind
def images_without_boxes(truth, rng):
    empty = {image["id"] for image in truth["images"]}
    empty -= {annotation["image_id"] for annotation in truth["annotations"]}
    rows = [jittered(a, rng) | {"image_id": i} for a in objects(truth)[::9] for i in sorted(empty)]
    return perfect(truth, rng) + rows


@kind
def one_image_only(truth, rng):
    image_id = Counter(a["image_id"] for a in objects(truth)).most_common(1)[0][0]
    return [jittered(a, rng) for a in objects(truth) if a["image_id"] == image_id]


@kind
def duplicates(truth, rng):
    return [seen(a, 0.5) for a in objects(truth) for _ in range(3)]


@kind
def duplicates_that_are_surer(truth, rng):
    """The worse box comes first and takes the object away from the better one."""
    rows = [seen(a, 0.3) for a in objects(truth)]
    return rows + [jittered(a, rng, 0.05) | {"score": 0.6} for a in objects(truth)]


@kind
def neighbours_compete(truth, rng):
    """A box between two objects of a class overlaps both."""
    groups = defaultdict(list)
    for annotation in objects(truth):
        groups[annotation["image_id"], annotation["category_id"]].append(annotation)
    rows = []
    for group in groups.values():
        for a, b in pairwise(group):
            middle = ((np.array(a["bbox"]) + np.array(b["bbox"])) / 2).tolist()
            rows += [seen(a, rng.random(), bbox=middle), seen(b, 0.5), seen(a, 0.5)]
    return rows


@kind
def overlap_exactly_at_a_threshold(truth, rng):
    """Part of each box, as wide as a threshold; half of them where no digit is lost by it."""
    rows = []
    for i, annotation in enumerate(objects(truth)):
        x, y, w, h = annotation["bbox"]
        share = THRESHOLDS[i % 10] if i % 20 < 10 else 0.5
        rows.append(seen(annotation, rng.random(), bbox=[x, y, w * share, h]))
    return rows


@kind
def area_exactly_between_sizes(truth, rng):
    """Squares of 32 and 96 pixels, by the hair's breadth of float64 more, and less."""
    sides = [s for side in (SMALL, MEDIUM) for s in (side, np.nextafter(side, 0), side * (1 + EPS))]
    corners = [(a, a["bbox"][:2]) for a in objects(truth)]
    return [
        seen(a, rng.random(), bbox=[*corner, float(side), round(float(side))])
        for a, corner in corners
        for side in sides
    ]


@kind
def tiny_boxes(truth, rng):
    rows = [seen(a, 0.9, bbox=[*a["bbox"][:2], 0.01, 0.02]) for a in objects(truth)]
    return rows + perfect(truth, rng)


@kind
def boxes_without_area(truth, rng):
    sides = [(0.0, 0.0), (0.0, 20.0), (20.0, 0.0)]
    rows = [seen(a, 0.9, bbox=[*a["bbox"][:2], *side]) for a in objects(truth) for side in sides]
    return rows + perfect(truth, rng)


@kind
def boxes_out_of_the_image(truth, rng):
    rows = perfect(truth, rng)
    for annotation in objects(truth):
        x, y, w, h = annotation["bbox"]
        shift = float(rng.choice([-2000, -w, -w / 4, w / 4, 2000]))
        rows.append(seen(annotation, rng.random(), bbox=[x + shift, y - h / 5, w, h * 1.2]))
    return rows


@kind
def boxes_over_everything(truth, rng):
    rows = perfect(truth, rng)
    return rows + [seen(a, 0.99, bbox=[-1e5, -1e5, 1e6, 1e6]) for a in objects(truth)]


@kind
def whole_numbers(truth, rng):
    """As programs write them that round: integers without a point, also for the score."""
    return [seen(a, 1, bbox=[round(v) for v in a["bbox"]]) | {"score": 1} for a in objects(truth)]


@kind
def many_digits(truth, rng):
    return [seen(a, rng.random(), bbox=[v + 1 / 3 for v in a["bbox"]]) for a in objects(truth)]


@kind
def falling_image_ids(truth, rng):
    rows = ties_across_images(truth, rng)
    return sorted(rows, key=lambda row: -row["image_id"])


@kind
def shuffled(truth, rng):
    rows = ties_within_an_image(truth, rng)
    return [rows[i] for i in rng.permutation(len(rows))]
