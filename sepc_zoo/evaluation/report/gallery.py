"""Pictures of the worst mistakes, each cut out of its image."""

import base64
import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL.Image import Image
from torchvision.ops import box_convert

from sepc_zoo.data.images import ImageError, read_image
from sepc_zoo.evaluation.diagnosis import (
    BACKGROUND,
    BOTH,
    CLASSIFICATION,
    DUPLICATE,
    LOCALISATION,
    explain_miss,
    worst_false_positives,
    worst_misses,
)
from sepc_zoo.evaluation.matching import MIN_IOU
from sepc_zoo.evaluation.report.context import ReportContext
from sepc_zoo.inference.drawing import close_up

MAX_PICTURES = 12  # pictures of each gallery
PICTURE_SIZE = (480, 360)  # width, height
JPEG_QUALITY = 80
DETECTED, ANNOTATED = (255, 138, 31), (0, 200, 240)  # colors of boxes, also in report.css

REASONS = {
    BACKGROUND: "background: no object is annotated here",
    BOTH: "both class and box: annotated as",
    CLASSIFICATION: "classification: annotated as",
    DUPLICATE: "duplicate: a higher score has matched the object",
    LOCALISATION: "localisation",
}


class Card(NamedTuple):
    """A picture of a mistake and its caption."""

    picture: str  # data URI; empty where the image cannot be read
    name: str  # detected or missed class, with the score of a detection
    reason: str
    other: str = ""  # the other class or detection
    iou: float | None = None
    file: str = ""  # name of the image


def false_positives(context: ReportContext) -> list[Card]:
    """Show the incorrect detections with the highest scores."""
    worst = worst_false_positives(context.diagnosis, MAX_PICTURES)
    return [_false_positive(context, i) for i in worst]


def misses(context: ReportContext) -> list[Card]:
    """Show the largest objects that are missed."""
    worst = worst_misses(context.diagnosis, context.diagnosis.min_score, MAX_PICTURES)
    return [_miss(context, i) for i in worst]


def _false_positive(context: ReportContext, i: int) -> Card:
    diagnosis, targets = context.diagnosis, context.targets
    image, label = int(context.detections.image[i]), context.detections.labels[i]
    kind, nearest = int(diagnosis.kind[i]), int(diagnosis.nearest[i])
    annotated = [nearest] if nearest >= 0 else []
    same_class = (targets.image == image) & (targets.labels == label)
    same_class &= np.isfinite(targets.area)  # no crowds EVERYWHERE
    around = np.setdiff1d(np.flatnonzero(same_class), annotated).tolist()
    return Card(
        _picture(context, image, [i], annotated, around),
        name=f"{context.names[label]} {context.detections.scores[i]:.3f}",
        reason=REASONS[kind],
        other=context.names[targets.labels[nearest]] if kind in (CLASSIFICATION, BOTH) else "",
        iou=float(diagnosis.iou[i]) if nearest >= 0 else None,
        file=context.annotations.records[image].path.name,
    )


def _miss(context: ReportContext, missed: int) -> Card:
    image, label = int(context.targets.image[missed]), context.targets.labels[missed]
    i, iou = explain_miss(context.diagnosis, missed, context.diagnosis.min_score)
    card = Card(
        _picture(context, image, [i] if i >= 0 else [], [missed]),
        name=context.names[label],
        reason="nothing detected here",
        file=context.annotations.records[image].path.name,
    )
    if i < 0:
        return card
    score = context.detections.scores[i]
    if context.diagnosis.match[i] == missed:
        return card._replace(reason=f"detected with a score of only {score:.3f}")
    is_confused = context.detections.labels[i] != label and iou >= MIN_IOU
    return card._replace(
        reason="detected as" if is_confused else "nearest detection:",
        other=f"{context.names[context.detections.labels[i]]} {score:.3f}",
        iou=iou,
    )


def _picture(
    context: ReportContext,
    image: int,
    detected: Sequence[int],
    annotated: Sequence[int],
    around: Sequence[int] = (),
) -> str:
    """Draw detections and objects, by their indices, as a data URI; empty if unreadable.

    Objects ``around`` may be cut off.
    """
    bbox = [context.targets.bbox[[*around, *annotated]], context.detections.bbox[[*detected]]]
    colors = [ANNOTATED] * (len(around) + len(annotated)) + [DETECTED] * len(detected)
    try:
        picture = close_up(
            read_image(context.annotations.records[image].path, channels=None),
            box_convert(torch.from_numpy(np.concatenate(bbox)), "xywh", "xyxy"),
            colors,
            PICTURE_SIZE,
            focus=len(detected) + len(annotated),
        )
    except ImageError:
        return ""
    return data_uri(picture)


def data_uri(picture: Image) -> str:
    """A picture as the address of an ``img`` element."""
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
