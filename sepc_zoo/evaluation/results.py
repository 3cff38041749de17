"""Detections and annotations of a split as arrays, and reading of COCO results."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sepc_zoo.data.annotations import Annotations
from sepc_zoo.data.listing import Federation, find_duplicates
from sepc_zoo.data.problems import DataError, Problem, unreadable
from sepc_zoo.evaluation.average_precision import Bools, Floats, Ints

Boxes = TypeVar("Boxes", bound="SplitBoxes")
CocoResult = dict[str, Any]  # image_id, category_id, bbox (x, y, width, height), score
MAX_PER_CLASS = 100  # detections of a class in an image that COCO evaluates
MAX_PER_IMAGE = 300  # detections in an image that LVIS evaluates
EVERYWHERE = (-1e6, -1e6, 3e6, 3e6)  # a box that every image lies in
RESULT_KEYS = {"image_id", "category_id", "bbox", "score"}


@dataclass(frozen=True, eq=False)
class SplitBoxes:
    """The B boxes of a split."""

    image: Ints  # (B,), index of the record
    bbox: Floats  # (B, 4), x, y, width, height in pixels
    labels: Ints  # (B,)

    def __len__(self) -> int:
        return len(self.image)

    def only(self: Boxes, chosen: Bools | Ints) -> Boxes:
        """Choose boxes by a mask or by indices."""
        return type(self)(*(getattr(self, field.name)[chosen] for field in fields(self)))


@dataclass(frozen=True, eq=False)
class SplitTargets(SplitBoxes):
    """The annotated boxes of a split, image by image.

    A class of LVIS that is not annotated exhaustively in an image has a crowd ``EVERYWHERE`` there.
    """

    iscrowd: Bools  # (B,)
    area: Floats  # (B,), pixels


@dataclass(frozen=True, eq=False)
class SplitDetections(SplitBoxes):
    """The detections of a split by image id; those of an image in the order of their file."""

    scores: Floats  # (B,)

    @cached_property
    def rank(self) -> Ints:
        """Rank ``(B,)`` by falling score; equal scores keep their order."""
        return np.argsort(np.argsort(-self.scores, kind="stable"), kind="stable")


def collect_targets(annotations: Annotations) -> SplitTargets:
    """Join the boxes of all images, in float64 as annotated."""
    records = annotations.records
    crowd = records.iscrowd.astype(bool)
    targets = SplitTargets(records.image, records.bbox, records.labels, crowd, records.area)
    federation = federation_of(annotations)
    return _add_crowds(targets, annotations, federation) if federation else targets


def collect_detections(
    results: Sequence[CocoResult], annotations: Annotations, where: str = "results"
) -> SplitDetections:
    """Check the COCO results of a split and join them.

    As in LVIS's own evaluation, only the 300 best detections of an image count where the
    annotations are LVIS's, and only those of classes that are annotated in the image.

    Args:
        where: the file, for error messages.

    Raises:
        DataError: one line for each malformed entry and each unknown image or category.
    """
    record_of = {image_id: i for i, image_id in enumerate(annotations.records.image_ids.tolist())}
    label_of = {i: label for label, i in enumerate(annotations.category_ids) if i is not None}
    texts = (_problem(result, record_of, label_of) for result in results)
    problems = [
        Problem("broken entry", f"{where}: entry {i}", text) for i, text in enumerate(texts) if text
    ]
    if problems:
        raise DataError(problems)
    results = sorted(results, key=itemgetter("image_id"))  # breaks ties of scores
    detections = SplitDetections(
        np.array([record_of[result["image_id"]] for result in results], dtype=np.int64),
        np.array([result["bbox"] for result in results], dtype=np.float64).reshape(-1, 4),
        np.array([label_of[result["category_id"]] for result in results], dtype=np.int64),
        np.array([result["score"] for result in results], dtype=np.float64),
    )
    federation = federation_of(annotations)
    return _drop_unknown(detections, annotations, federation) if federation else detections


def max_per_class(annotations: Annotations) -> int:
    """Number of detections of a class in an image that are evaluated."""
    return MAX_PER_IMAGE if federation_of(annotations) else MAX_PER_CLASS


def federation_of(annotations: Annotations) -> Federation | None:
    """The classes that are annotated in each image; None: all of them."""
    federation = annotations.federation
    return federation if federation is not None and federation.absent else None


def best_of_groups(group: Ints, rank: Ints, limit: int) -> Bools:
    """Whether each box ``(B,)`` is among the ``limit`` of its group with the lowest rank."""
    order = np.lexsort((rank, group))
    _, starts, counts = np.unique(group[order], return_index=True, return_counts=True)
    best = np.empty(len(group), dtype=bool)
    best[order] = np.arange(len(group)) - np.repeat(starts, counts) < limit
    return best


def read_results(path: Path, annotations: Annotations) -> tuple[list[CocoResult], int]:
    """Read a file of detections; return the split's results, unchecked, and the number left out.

    The file is a list of COCO results, or what ``predict`` writes: a dict with ``annotations``,
    ``images`` and ``categories``, whose ids are translated by the names of files and classes. Only
    in such a file may images be unknown to the split; their detections are left out.

    Raises:
        DataError: the file has another format, or the split has none of its images.
    """
    try:
        content = json.loads(path.read_bytes())  # any Unicode encoding, with its mark or without
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) from error
    results = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(results, list):
        raise unreadable(path, "expected a list of COCO results")
    if not isinstance(content, dict):
        return results, 0
    try:
        image_of, category_of = _own_ids(content, annotations)
        ids = {"image_id": image_of, "category_id": category_of}
        own = [
            result | {key: known.get(result[key], result[key]) for key, known in ids.items()}
            for result in results
        ]
    except (KeyError, TypeError) as error:
        raise unreadable(path, f"malformed: {type(error).__name__} {error}") from error
    if image_of and not any(isinstance(image_id, int) for image_id in image_of.values()):
        raise unreadable(path, f"the split has none of its {len(image_of)} images")
    kept = [result for result in own if result["image_id"] is not None]
    return kept, len(results) - len(kept)


def indices_by_image(image: Ints, num_images: int) -> list[Ints]:
    """Indices of the boxes of each image, in their order."""
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, num_images)))[:num_images]


def _add_crowds(
    targets: SplitTargets, annotations: Annotations, federation: Federation
) -> SplitTargets:
    """Let unmatched detections be ignored where a class is not annotated exhaustively."""
    image, labels = _places(annotations, federation.not_exhaustive)
    count = len(image)
    box, area = np.tile(EVERYWHERE, (count, 1)), np.full(count, np.inf)
    crowds = SplitTargets(image, box, labels, np.ones(count, dtype=bool), area)
    columns = zip(vars(targets).values(), vars(crowds).values(), strict=True)
    both = SplitTargets(*map(np.concatenate, columns))
    return both.only(np.argsort(both.image, kind="stable"))


def _drop_unknown(
    detections: SplitDetections, annotations: Annotations, federation: Federation
) -> SplitDetections:
    """Keep the best detections of an image, and of those the classes that are annotated in it."""
    known = np.zeros((len(annotations.records), len(annotations.label_names)), dtype=bool)
    known[_places(annotations, federation.absent)] = True
    known[annotations.records.image, annotations.records.labels] = True
    best = best_of_groups(detections.image, detections.rank, MAX_PER_IMAGE)
    return detections.only(best & known[detections.image, detections.labels])


def _places(annotations: Annotations, categories: Mapping[int, Sequence[int]]) -> tuple[Ints, Ints]:
    """Indices of records ``(P,)`` and labels ``(P,)`` of the categories of each image."""
    label_of = {category: label for label, category in enumerate(annotations.category_ids)}
    places = [
        (i, label_of[category])
        for i, image_id in enumerate(annotations.records.image_ids.tolist())
        for category in categories.get(image_id, ())
        if category in label_of
    ]
    image, labels = np.array(places, dtype=np.int64).reshape(-1, 2).T
    return image, labels


def _own_ids(
    content: Mapping[str, Any], annotations: Annotations
) -> tuple[dict[int, int | None], dict[int, Any]]:
    """Map a file's ids to the data set's: of images by file name, of categories by name.

    An unknown image maps to None, an unknown category to its name.
    """
    images, categories = content.get("images", []), content.get("categories", [])
    records = annotations.records
    names = [records.path(i).name for i in range(len(records))]
    if images and (duplicates := find_duplicates(names)):
        text = f"the split has several images {duplicates[0]}"
        raise unreadable("", text, "Pass its detections as a plain list of COCO results.")
    own_image = dict(zip(names, records.image_ids.tolist(), strict=True))
    own_category = dict(zip(annotations.label_names, annotations.category_ids, strict=True))
    return (
        {image["id"]: own_image.get(Path(image["file_name"]).name) for image in images},
        {category["id"]: own_category.get(n := category["name"], n) for category in categories},
    )


def _problem(result: Any, images: Mapping[int, int], labels: Mapping[int, int]) -> str:
    if not isinstance(result, dict) or not result.keys() >= RESULT_KEYS:
        return "needs image_id, category_id, bbox and score"
    image_id, category_id, box = result["image_id"], result["category_id"], result["bbox"]
    if not isinstance(image_id, int) or image_id not in images:
        return f"the split has no image {image_id!r}"
    if not isinstance(category_id, int) or category_id not in labels:
        return f"the data set has no category {category_id!r}"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox {box!r} is not [x, y, width, height]"
    if min(box[2:]) < 0:
        return f"bbox {box!r} has a negative width or height"
    if not _is_finite(result["score"]):
        return f"score {result['score']!r} is not a finite number"
    return ""


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
