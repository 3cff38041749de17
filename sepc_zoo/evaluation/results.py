"""What was found in a split and what is annotated there, as arrays; COCO results from and to it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sepc_zoo.data import Annotations, DataError
from sepc_zoo.data.annotations import find_duplicates

Row = dict[str, Any]  # image_id, category_id, bbox (x, y, width, height), score


@dataclass(frozen=True, eq=False)
class Truth:
    """The G annotated boxes of a split, image after image."""

    image: NDArray[np.int64]  # (G,), which of the split's records
    bbox: NDArray[np.float64]  # (G, 4), x, y, width, height
    labels: NDArray[np.int64]  # (G,)
    iscrowd: NDArray[np.bool_]  # (G,)
    area: NDArray[np.float64]  # (G,), pixels

    def __len__(self) -> int:
        return len(self.image)


@dataclass(frozen=True, eq=False)
class Found:
    """The D detections of a split, in the order of their file."""

    image: NDArray[np.int64]  # (D,), which of the split's records
    bbox: NDArray[np.float64]  # (D, 4), x, y, width, height
    labels: NDArray[np.int64]  # (D,)
    scores: NDArray[np.float64]  # (D,)

    def __len__(self) -> int:
        return len(self.image)


def truth_of(annotations: Annotations) -> Truth:
    """All boxes of a split, to the last digit as annotated."""
    records = annotations.records
    counts = [len(record.labels) for record in records]
    return Truth(
        np.repeat(np.arange(len(records)), counts),
        _joined([record.bbox.double() for record in records]).reshape(-1, 4),
        _joined([record.labels for record in records]).astype(np.int64),
        _joined([record.iscrowd for record in records]).astype(bool),
        _joined([record.area.double() for record in records]),
    )


def found_in(rows: Sequence[Row], annotations: Annotations, where: str = "results") -> Found:
    """COCO results of a split, each checked against it.

    Raises:
        DataError: with a line for every entry that is none, or whose image or category the data set
            lacks; ``where`` names the file.
    """
    record_of = {record.image_id: i for i, record in enumerate(annotations.records)}
    label_of = {i: label for label, i in enumerate(annotations.category_ids) if i is not None}
    checks = (_problem(row, record_of, label_of) for row in rows)
    problems = [f"{where}: entry {i}: {problem}" for i, problem in enumerate(checks) if problem]
    if problems:
        raise DataError(problems)
    return Found(
        np.array([record_of[row["image_id"]] for row in rows], dtype=np.int64),
        np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(-1, 4),
        np.array([label_of[row["category_id"]] for row in rows], dtype=np.int64),
        np.array([row["score"] for row in rows], dtype=np.float64),
    )


def read_results(path: Path, annotations: Annotations) -> tuple[list[Row], int]:
    """The results of a file, as yet unchecked, and how many more it has of photos elsewhere.

    The file is a list of COCO results, or what ``predict`` writes: a dict of ``annotations``, whose
    ids mean what ``images`` and ``categories`` there say by the names of files and classes. Only
    such a file may have photos that the split lacks; their detections are left out.

    Raises:
        DataError: it is no such file, or all its photos are elsewhere.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError([f"{path}: {error}"]) from error
    rows = content.get("annotations") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise DataError([f"{path}: expected a list of COCO results"])
    if not isinstance(content, dict):
        return rows, 0
    try:
        image_of, category_of = _own_ids(content, annotations)
        own = [
            row
            | {"image_id": image_of.get(row["image_id"], row["image_id"])}
            | {"category_id": category_of.get(row["category_id"], row["category_id"])}
            for row in rows
        ]
    except (KeyError, TypeError) as error:
        raise DataError([f"{path}: malformed: {type(error).__name__} {error}"]) from error
    if image_of and not any(isinstance(image_id, int) for image_id in image_of.values()):
        raise DataError([f"{path}: the split has none of its {len(image_of)} photos"])
    kept = [row for row in own if row["image_id"] is not None]
    return kept, len(rows) - len(kept)


def by_image(image: NDArray[np.int64], images: int) -> list[NDArray[np.int64]]:
    """For each of a number of images the indices that belong to it, in their order."""
    order = np.argsort(image, kind="stable")
    return np.split(order, np.searchsorted(image[order], np.arange(1, images)))[:images]


def _joined(columns: Sequence[torch.Tensor]) -> NDArray[Any]:
    return torch.cat([*columns]).numpy() if columns else np.empty(0)


def _own_ids(
    content: Mapping[str, Any], annotations: Annotations
) -> tuple[dict[int, int | None], dict[int, Any]]:
    """The data set's own ids for a file's: of images by file name, of categories by name.

    An image that the split lacks has None, a category that the data set lacks its name.
    """
    images, categories = content.get("images", []), content.get("categories", [])
    names = [record.path.name for record in annotations.records]
    if images and (doubles := find_duplicates(names)):
        raise DataError(
            [f"the split has several photos {doubles[0]}; results of it must be a plain list"]
        )
    own_image = {record.path.name: record.image_id for record in annotations.records}
    own_category = dict(zip(annotations.label_names, annotations.category_ids, strict=True))
    return (
        {image["id"]: own_image.get(Path(image["file_name"]).name) for image in images},
        {category["id"]: own_category.get(n := category["name"], n) for category in categories},
    )


def _problem(row: Any, images: Mapping[int, int], labels: Mapping[int, int]) -> str:
    if not isinstance(row, dict) or not {"image_id", "category_id", "bbox", "score"} <= set(row):
        return "needs image_id, category_id, bbox and score"
    image_id, category_id, box = row["image_id"], row["category_id"], row["bbox"]
    if not isinstance(image_id, int) or image_id not in images:
        return f"the split has no image {image_id!r}"
    if not isinstance(category_id, int) or category_id not in labels:
        return f"the data set has no category {category_id!r}"
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        return f"bbox {box!r} is not [x, y, width, height]"
    if not _is_finite(row["score"]):
        return f"score {row['score']!r} is no number"
    return ""


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
