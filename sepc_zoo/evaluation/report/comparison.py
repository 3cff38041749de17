"""The page of a comparison: figures of two models, and the images that differ most."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torchvision.ops import box_convert

from sepc_zoo.data import Annotations
from sepc_zoo.data.images import ImageError, read_image
from sepc_zoo.evaluation.comparison import Comparison
from sepc_zoo.evaluation.diagnosis import CORRECT, Diagnosis
from sepc_zoo.evaluation.errors import ERROR_KINDS
from sepc_zoo.evaluation.report.gallery import ANNOTATED, DETECTED, data_uri
from sepc_zoo.evaluation.report.page import made_by, template
from sepc_zoo.files import write_text
from sepc_zoo.inference.drawing import draw_boxes, fit
from sepc_zoo.metric_names import METRICS

FOUND = (40, 200, 90)  # color of correct detections, also in report.css
PICTURE_SIZE = (640, 480)  # largest width and height


def write_comparison(
    path: str | Path, annotations: Annotations, comparison: Comparison, facts: Mapping[str, str]
) -> None:
    """Write the page of a comparison: one HTML file that loads nothing else.

    Args:
        path: the HTML file.
        facts: ``a`` and ``b``, the names of the models, and others for the head of the page.
    """
    content = comparison.content
    html = template("comparison.html.j2").render(
        content=content,
        facts={**facts, "images": len(annotations.records), "resamples": content["resamples"]}
        | made_by(),
        METRICS=METRICS,
        ERROR_KINDS=ERROR_KINDS,
        images=[
            {**entry, "pictures": [_picture(annotations, own, i) for own in comparison.diagnoses]}
            for i, entry in zip(comparison.images, content["images"], strict=True)
        ],
    )
    write_text(path, html)


def _picture(annotations: Annotations, diagnosis: Diagnosis, image: int) -> str:
    """Draw what a model does on an image, as a data URI; empty if the image is unreadable."""
    names, min_score = annotations.label_names, diagnosis.min_score
    detections, targets = diagnosis.detections, diagnosis.targets
    correct = (diagnosis.kind == CORRECT) & (detections.scores >= min_score)
    bbox, colors, captions = [], [], []
    for boxes, chosen, color in (
        (detections, correct, FOUND),
        (targets, diagnosis.not_found(min_score), ANNOTATED),
        (detections, diagnosis.wrong(min_score), DETECTED),
    ):
        rows = np.flatnonzero(chosen & (boxes.image == image))
        bbox.append(boxes.bbox[rows])
        colors += [color] * len(rows)
        captions += ["" if color == FOUND else names[k] for k in boxes.labels[rows]]
    try:
        pixels = read_image(annotations.records[image].path)
    except ImageError:
        return ""
    xyxy = box_convert(torch.from_numpy(np.concatenate(bbox)), "xywh", "xyxy")
    return data_uri(draw_boxes(*fit(pixels, xyxy, PICTURE_SIZE), captions, colors))
