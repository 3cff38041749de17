"""The page of a comparison: figures of two models, and the images that differ most."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.ops import box_convert

from sepc_zoo import __version__
from sepc_zoo.data import Annotations
from sepc_zoo.data.images import ImageError, read_image
from sepc_zoo.evaluation.comparison import Comparison, ModelErrors, row_texts
from sepc_zoo.evaluation.diagnosis import CORRECT
from sepc_zoo.evaluation.errors import ERROR_KINDS
from sepc_zoo.evaluation.report.gallery import ANNOTATED, DETECTED, data_uri
from sepc_zoo.evaluation.report.page import template, write_page
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
        | {"date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M}", "sepc_zoo": __version__},
        METRICS=METRICS,
        ERROR_KINDS=ERROR_KINDS,
        row_texts=row_texts,
        images=[
            {**entry, "pictures": [_picture(annotations, own, i) for own in comparison.errors]}
            for i, entry in zip(comparison.images, content["images"], strict=True)
        ],
    )
    write_page(path, html)


def _picture(annotations: Annotations, errors: ModelErrors, image: int) -> str:
    """Draw what a model does on an image, as a data URI; empty if the image is unreadable."""
    diagnosis, names = errors.diagnosis, annotations.label_names
    detections, targets = diagnosis.detections, diagnosis.targets
    here = detections.image == image
    found = np.flatnonzero(
        here & (diagnosis.kind == CORRECT) & (detections.scores >= errors.min_score)
    )
    wrong = np.flatnonzero(here & errors.wrong)
    missed = np.flatnonzero((targets.image == image) & errors.missed)
    parts: list[tuple[Any, Any]] = [
        (detections.bbox[found], [(FOUND, "")] * len(found)),
        (targets.bbox[missed], [(ANNOTATED, names[k]) for k in targets.labels[missed]]),
        (detections.bbox[wrong], [(DETECTED, names[k]) for k in detections.labels[wrong]]),
    ]
    bbox = torch.from_numpy(np.concatenate([part for part, _ in parts]))
    styles = [style for _, own in parts for style in own]
    try:
        pixels = read_image(annotations.records[image].path)
    except ImageError:
        return ""
    boxes = box_convert(bbox, "xywh", "xyxy")
    captions, colors = [text for _, text in styles], [color for color, _ in styles]
    return data_uri(draw_boxes(*fit(pixels, boxes, PICTURE_SIZE), captions, colors))
