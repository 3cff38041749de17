"""The metadata of an exported file: its model, input, thresholds and versions."""

import hashlib
import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sepc_zoo import __version__
from sepc_zoo.checkpoints.folder import weights_content
from sepc_zoo.config import DetectorConfig, config_to_json
from sepc_zoo.errors import UserError
from sepc_zoo.models.detector import Detector

KEY = "sepc_zoo"  # in the properties of an ONNX file, and of an archive of torch.export
FORMAT = 1
INPUTS = ("images", "sizes")
OUTPUTS = ("boxes", "scores", "labels")
RAW_OUTPUTS = ("logits", "deltas", "quality")


class ExportError(UserError, RuntimeError):
    """A model cannot be exported as asked, or an exported file cannot be used."""


def describe(
    model: Detector,
    image_size: tuple[int, int] | None,
    batch_size: int | None,
    raw: bool,
    precision: str,
    packages: Mapping[str, str],
    metrics: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The metadata of an exported file, in JSON types; arguments are those of ``export``.

    Args:
        precision: number format of the network.
        packages: versions of the packages that write the file.
        metrics: figures of ``validate``; AP and AR are kept.
    """
    config = model.config
    return {
        "format": FORMAT,
        "architecture": config.architecture,
        "label_names": list(config.label_names),
        "category_ids": list(config.category_ids),
        "input": input_rule(config, model.min_side, image_size, batch_size),
        "score_threshold": config.postprocess.score_threshold,
        "max_detections": config.postprocess.max_detections,
        "raw": raw,
        "precision": precision,
        "config": config_to_json(config),
        "weights_sha256": weights_hash(model),
        "versions": {
            "sepc_zoo": __version__,
            **{name: version(name) for name in ("torch", "torchvision", "timm")},
            **packages,
        },
        "metrics": {
            name: value for name, value in (metrics or {}).items() if name.startswith(("AP", "AR"))
        },
    }


def input_rule(
    config: DetectorConfig,
    min_side: int,
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """The metadata's ``input``: how images become the input of the graph."""
    weights = config.weights
    height, width = image_size or (None, None)
    is_bytes = len(weights.mean) == 3 and not weights.resize_floats
    return {
        "channels": len(weights.mean),
        "dtype": "uint8" if is_bytes else "float32",
        "image_size": list(weights.image_size),
        "keep_ratio": weights.keep_ratio,
        "round_sides": weights.round_sides,
        "antialias": weights.antialias,
        "resize_floats": weights.resize_floats,
        "inclusive_boxes": config.inclusive_boxes,
        "pad_multiple": weights.pad_multiple,
        "min_side": min_side,
        "batch": batch_size,
        "height": height,
        "width": width,
    }


def weights_hash(model: Detector) -> str:
    """SHA-256 of the file ``model.safetensors`` that ``save_model`` writes."""
    return hashlib.sha256(weights_content(model)).hexdigest()


def metadata_file(path: Path) -> Path:
    """The JSON file beside an exported file, ``model.onnx.json``."""
    return path.with_name(f"{path.name}.json")


def parse(text: str, path: Path) -> dict[str, Any]:
    """Read the metadata of an exported file.

    Raises:
        ExportError: the text is no metadata, or that of another version.
    """
    try:
        content = json.loads(text)
        known = isinstance(content, dict) and content.get("format")
    except ValueError as error:
        raise ExportError(f"{path}: its metadata is no JSON: {error}") from error
    if known != FORMAT:
        raise ExportError(
            f"{path}: metadata of format {known!r:.20}, but this version reads {FORMAT}; try "
            "`pip install -U sepc_zoo`, or export the model again"
        )
    return content


def output_names(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the outputs of a file."""
    if not metadata["raw"]:
        return OUTPUTS
    has_quality = metadata["config"]["model_args"]["head"]["quality"] != "none"
    return RAW_OUTPUTS if has_quality else RAW_OUTPUTS[:2]
