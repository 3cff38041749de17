"""Handler of Hugging Face Inference Endpoints: detects objects in the image of a request.

It answers in the format of the hub's object-detection pipelines.
"""

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sepc_zoo.factory import load_model
from sepc_zoo.inference.detections import Detections


class EndpointHandler:
    """A model folder behind an endpoint; ``path`` is the folder of the repository."""

    def __init__(self, path: str = "") -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = load_model(Path(path)).to(device)

    def __call__(self, data: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Detect objects.

        Args:
            data: ``inputs``, an image as the endpoint decodes it, as bytes or in base64, and
                ``parameters`` with ``threshold``, the lowest score (0.3).

        Raises:
            ValueError: the inputs are no image, or the threshold is no number.
        """
        threshold = (data.get("parameters") or {}).get("threshold", 0.3)
        if not isinstance(threshold, int | float):
            raise ValueError(f"threshold is {threshold!r:.80}; it must be a number from 0 to 1")
        return as_rows(self.model.predict(read_inputs(data.get("inputs")), threshold))


def read_inputs(inputs: Any) -> bytes | Image.Image:
    """Get the image of a request; a text is read as base64, never as a path or an address.

    Raises:
        ValueError: the request has no image.
    """
    if isinstance(inputs, str):
        try:
            return base64.b64decode(inputs.rpartition("base64,")[2], validate=True)
        except binascii.Error as error:
            raise ValueError(f"inputs are not base64: {error}") from error
    if not isinstance(inputs, bytes | Image.Image):
        kind = type(inputs).__name__
        raise ValueError(f"inputs are {kind}; send the bytes of an image file, or its base64")
    return inputs


def as_rows(detections: Detections) -> list[dict[str, Any]]:
    """Convert to ``label``, ``score`` and ``box`` (``xmin``, ``ymin``, ``xmax``, ``ymax``)."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    return [
        {"label": d.name, "score": d.score, "box": dict(zip(sides, d.box, strict=True))}
        for d in detections
    ]
