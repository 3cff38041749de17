"""Export: a detector as one file for ONNX Runtime, OpenVINO or torch.export."""

import copy
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from sepc_zoo.export.check import compare
from sepc_zoo.export.graph import DetectionGraph
from sepc_zoo.export.loaded import FORMATS, ExportedModel, format_module
from sepc_zoo.export.metadata import ExportError, describe, metadata_file
from sepc_zoo.export.trace import check_request, trace
from sepc_zoo.files import sync, write_json
from sepc_zoo.inference.predictor import eval_mode
from sepc_zoo.models.detector import Detector

FIGURES_FILE = "export.json"
Format = Literal["onnx", "openvino", "pt2"]


def export(
    model: Detector,
    path: str | Path,
    format: Format = "onnx",
    *,
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    raw: bool = False,
    half: bool = False,
    metrics: Mapping[str, Any] | None = None,
) -> Path:
    """Write a detector as one file that runs without this library, and compare it with the model.

    Its graph has images and their sizes as inputs and detections as outputs, see docs/export.md.
    Beside it are its metadata as JSON, and ``export.json`` with the figures of the comparison.

    Args:
        model: a detector with its weights.
        path: file to write, or a folder, where the file is called as the model's architecture.
        format: ``onnx``, ``openvino`` or ``pt2``.
        image_size: fixed height and width of the input in pixels; by default both stay open.
        batch_size: fixed number of images; by default it stays open.
        raw: the outputs are what the head predicts for each anchor; dense detectors only.
        half: weights and maps in float16; the input, scores and boxes stay float32.
        metrics: figures of ``validate``, for the metadata.

    Returns:
        The file.

    Raises:
        ExportError: the model cannot be exported so, the file does not find what the model finds,
            or a package is missing; nothing is written then.
    """
    if format not in FORMATS:
        raise ExportError(f"--format {format}: there are {', '.join(FORMATS)}")
    module = format_module(format)
    check_request(model, image_size, batch_size, raw)
    file = file_of(path, format, model.config.architecture)
    network = copy.deepcopy(model).cpu().float().eval()
    metadata = describe(
        network,
        image_size,
        batch_size,
        raw,
        "float16" if half else "float32",
        module.packages(),
        metrics,
    )
    start = time.perf_counter()
    program = trace(DetectionGraph(network.half() if half else network, raw), metadata)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as folder:
        draft = Path(folder) / file.name
        module.write(program, draft, metadata)
        write_json(metadata_file(draft), metadata)
        figures = {"seconds": round(time.perf_counter() - start, 1)}
        figures |= compare(network, ExportedModel(module.Network(draft)))
        figures["bytes"] = sum(f.stat().st_size for f in Path(folder).iterdir())
        for part in sorted(Path(folder).iterdir(), key=lambda part: part.suffix == file.suffix):
            sync(part)
            os.replace(part, file.parent / part.name)
        sync(file.parent)
    write_json(file.parent / FIGURES_FILE, {file.name: figures})
    return file


def file_of(path: str | Path, format: str, architecture: str) -> Path:
    """The file to write; of a folder, or of a path without a suffix, one inside of it.

    Raises:
        ExportError: the suffix is of another format.
    """
    path, suffix = Path(path).expanduser(), FORMATS[format]
    if path.is_dir() or not path.suffix:
        return path / f"{architecture}{suffix}"
    if path.suffix != suffix:
        raise ExportError(f"{path}: a file of format {format} ends in {suffix}")
    return path
