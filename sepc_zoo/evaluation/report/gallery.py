"""The sections of pictures: the mistakes that weigh most, each cut out of its photo."""

import base64
import io
from collections.abc import Sequence
from html import escape

import numpy as np
import torch
from PIL import Image
from torchvision.ops import box_convert

from sepc_zoo.data.images import ImageError, read_image
from sepc_zoo.evaluation.report.case import Case
from sepc_zoo.evaluation.report.diagnosis import (
    BACKGROUND,
    DUPLICATE,
    IOU,
    POOR_BOX,
    WRONG_CLASS,
    instead_of,
    worst_false_positives,
    worst_misses,
)
from sepc_zoo.inference.drawing import close_up

PICTURES = 12  # in each of the two
PICTURE_SIZE = (480, 360)  # width, height
QUALITY = 80  # of the JPEG
SEEN, THERE = (255, 138, 31), (0, 200, 240)  # colours of detections and objects, also in page.css


def false_positives(case: Case) -> str:
    worst = worst_false_positives(case.diagnosis, PICTURES)
    if not worst:
        return "<p>There are none.</p>"
    return (
        "<p>The surest detections that are not correct, two at most of a photo: "
        '<span class="key seen">what the model saw</span> and '
        '<span class="key there">what is annotated</span> of that class, or of the one named.</p>'
        f'<div class="photos">{"".join(_false_positive(case, i) for i in worst)}</div>'
    )


def misses(case: Case) -> str:
    worst = worst_misses(case.diagnosis, case.least_score, PICTURES)
    if not worst:
        return "<p>There are none.</p>"
    return (
        f"<p>The largest objects that no detection with {case.sure_enough} "
        'finds, two at most of a photo: <span class="key there">what is annotated</span> and '
        '<span class="key seen">what the model saw</span> there.</p>'
        f'<div class="photos">{"".join(_miss(case, i) for i in worst)}</div>'
    )


def _false_positive(case: Case, i: int) -> str:
    diagnosis, truth = case.diagnosis, case.truth
    image, label, nearest = case.found.image[i], case.found.labels[i], int(diagnosis.nearest[i])
    there = [nearest] if nearest >= 0 else []
    iou = f"IoU {diagnosis.iou[i]:.2f}"
    why = {
        BACKGROUND: lambda: "background: nothing of the kind is annotated here",
        DUPLICATE: lambda: f"duplicate: another box has found it ({iou})",
        POOR_BOX: lambda: f"poor box ({iou})",
        WRONG_CLASS: lambda: f"wrong class: a {_bold(case.names[truth.labels[nearest]])} ({iou})",
    }[int(diagnosis.kind[i])]()
    same_class = (truth.image == image) & (truth.labels == label)
    around = np.setdiff1d(np.flatnonzero(same_class), there).tolist()
    name = f"{case.names[label]} {case.found.scores[i]:.3f}"
    return _card(case, image, f"{_bold(name)} · {why}", name, [i], there, around)


def _miss(case: Case, missed: int) -> str:
    found, names = case.found, case.names
    i, iou = instead_of(case.diagnosis, missed, case.least_score)
    label = case.truth.labels[missed]
    if i < 0:
        why = "nothing is seen here"
    elif case.diagnosis.match[i] == missed:
        why = f"seen with a score of no more than {found.scores[i]:.3f}"
    else:
        taken = found.labels[i] != label and iou >= IOU
        seen = f"{_bold(names[found.labels[i]])} {found.scores[i]:.3f} (IoU {iou:.2f})"
        why = f"{'taken for' if taken else 'the nearest is'} {seen}"
    caption = f"{_bold(names[label])} · {why}"
    seen_there = [i] if i >= 0 else []
    return _card(
        case, case.truth.image[missed], caption, f"missed: {names[label]}", seen_there, [missed]
    )


def _card(
    case: Case,
    image: int,
    caption: str,
    name: str,
    seen: Sequence[int],
    there: Sequence[int],
    around: Sequence[int] = (),
) -> str:
    """A picture of detections and objects, by their indices; objects around may be cut off."""
    record = case.annotations.records[image]
    boxes = np.concatenate([case.truth.bbox[[*around, *there]], case.found.bbox[[*seen]]])
    colors = [THERE] * (len(around) + len(there)) + [SEEN] * len(seen)
    try:
        picture = close_up(
            read_image(record.path),
            box_convert(torch.from_numpy(boxes), "xywh", "xyxy"),
            colors,
            PICTURE_SIZE,
            focus=len(seen) + len(there),
        )
        shown = f'<img loading="lazy" alt="{escape(name)}" src="{_data_uri(picture)}">'
    except ImageError:
        shown = '<div class="none">the photo cannot be read</div>'
    return (
        f"<figure>{shown}<figcaption>{caption}<br><small>{escape(record.path.name)}</small>"
        "</figcaption></figure>"
    )


def _bold(text: str) -> str:
    return f"<b>{escape(text)}</b>"


def _data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
