"""Export: a detector as one file for ONNX Runtime, OpenVINO or torch.export."""

import copy
import shutil
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from sepc_zoo.export import SUFFIXES, Format
from sepc_zoo.export.check import compare
from sepc_zoo.export.graph import DetectionGraph
from sepc_zoo.export.int8 import Int8, quantize
from sepc_zoo.export.loaded import FORMATS, ExportedModel, format_module
from sepc_zoo.export.metadata import ExportError, describe, metadata_file
from sepc_zoo.export.trace import check_request, trace
from sepc_zoo.files import write_atomically, write_json
from sepc_zoo.models.detector import Detector

FIGURES_FILE = "export.json"


def export(
    model: Detector,
    path: str | Path,
    format: Format = "onnx",
    *,
    image_size: tuple[int, int] | None = None,
    batch_size: int | None = None,
    raw: bool = False,
    half: bool = False,
    int8: Int8 | None = None,
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
        raw: output the predictions of the head for each anchor; dense detectors only.
        half: weights and feature maps in float16; the input, scores and boxes stay float32.
        int8: write convolutions in int8: images to calibrate on, and the maximum loss of AP.
        metrics: figures of ``validate``, for the metadata.

    Returns:
        The file.

    Raises:
        ExportError: the model cannot be exported as asked, the file differs from the model, int8
            costs more AP than allowed, or a package is missing. Nothing is written then.
    """
    if format not in FORMATS:
        raise ExportError(f"--format {format}: there are {', '.join(FORMATS)}")
    module = format_module(format)
    check_request(model, image_size, batch_size, raw)
    if int8 and (raw or half or not hasattr(module, "quantize")):
        raise ExportError("--int8 is for the formats onnx and openvino, without --raw and --half")
    file = file_of(path, format, model.config.architecture)
    read_figures(file.parent)  # a damaged table ends the work before it starts
    network = copy.deepcopy(model).cpu().float().eval()
    precision, packages = "float16" if half else "float32", module.packages()
    metadata = describe(network, image_size, batch_size, raw, precision, packages, metrics)
    start = time.perf_counter()
    # OpenVINO stores float16, but computes in a type that suits the processor.
    halved = copy.deepcopy(network).half() if half and format != "openvino" else network
    program = trace(DetectionGraph(halved, raw), metadata)
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / file.name
        module.write(program, draft, metadata)
        write_json(metadata_file(draft), metadata)
        seconds = round(time.perf_counter() - start, 1)
        figures = compare(network, ExportedModel(module.Network(draft)))
        if int8:
            draft, costs = quantize(module, draft, int8)
            figures |= costs
        written = [part for part in draft.parent.iterdir() if part.is_file()]
        parts = sorted(written, key=lambda part: part.suffix == file.suffix)
        figures |= {"seconds": seconds, "bytes": sum(part.stat().st_size for part in parts)}
        for part in parts:  # the exported file comes last
            write_atomically(file.with_name(part.name), partial(shutil.copyfile, part))
    write_json(file.with_name(FIGURES_FILE), read_figures(file.parent) | {file.name: figures})
    return file


def read_figures(folder: Path) -> dict[str, dict[str, Any]]:
    """The figures in ``export.json`` of a folder, by the name of the exported file.

    Raises:
        ExportError: the file is damaged.
    """
    table = folder / FIGURES_FILE
    if not table.is_file():
        return {}
    try:
        return msgspec.json.decode(table.read_bytes(), type=dict[str, dict[str, Any]])
    except (OSError, msgspec.MsgspecError) as error:
        raise ExportError(f"{table} cannot be read: {error}; delete it") from error


def file_of(path: str | Path, format: Format, architecture: str) -> Path:
    """The file to write; in a folder, or a path without a suffix, it has the architecture's name.

    Raises:
        ExportError: the suffix is that of another format.
    """
    path, suffix = Path(path).expanduser(), FORMATS[format]
    if path.is_dir() or not path.suffix:
        return path / f"{architecture}{suffix}"
    if path.suffix != suffix:
        hint = f"; --format {SUFFIXES[path.suffix]}" if path.suffix in SUFFIXES else ""
        raise ExportError(f"{path}: a file of format {format} ends in {suffix}{hint}")
    return path
