"""ONNX files: written by torch.onnx, run by ONNX Runtime."""

import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from sepc_zoo.export.metadata import INPUTS, KEY, ExportError, output_names, parse

OPSET = 20  # the first whose DeformConv all exporters and runtimes know
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def packages() -> dict[str, Any]:
    """Versions of the packages that write the file."""
    return {name: version(name) for name in PACKAGES} | {"opset": OPSET}


def write(program: ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write a graph with its weights and metadata in one file."""
    from torch.onnx import export

    table: dict[Any, Any] = {torch.ops.sepc_zoo.keep_best.default: _keep_best}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own code
        written = export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=INPUTS,
            output_names=output_names(metadata),
            custom_translation_table=table,
            verbose=False,
        )
    assert written is not None
    written.model.metadata_props[KEY] = json.dumps(metadata)
    written.save(path, external_data=False)


def _keep_best(boxes: Any, scores: Any, limit: int, iou_threshold: float, floor: float) -> Any:
    """Implement ``suppression.keep_best`` with operators of ONNX."""
    from onnxscript import opset20

    op: Any = opset20
    kept = op.NonMaxSuppression(
        boxes,
        scores,
        op.Constant(value_ints=[limit]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[floor]),
    )
    none = op.Expand(op.Constant(value_float=floor), op.Shape(scores))
    return op.ScatterND(none, kept, op.GatherND(scores, kept))


def quantize(
    source: Path,
    target: Path,
    inputs: Iterator[dict[str, np.ndarray]],
    metadata: Mapping[str, Any],
) -> None:
    """Write a file with convolutions in int8; deformable convolutions stay as they are.

    Args:
        inputs: inputs of the graph, to find the range of values of each feature map.
    """
    import onnx
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(inputs, None)

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # onnxruntime advises to prepare the file by another tool
    try:
        quantization.quantize_static(
            source,
            target,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            # Quantized with its activation, the output of a convolution is rounded only once.
            op_types_to_quantize=["Conv", "Clip", "Relu"],
            per_channel=True,
            # With signed maps, onnxruntime keeps a convolution in float32 if two nodes read it.
            activation_type=quantization.QuantType.QUInt8,
        )
    finally:
        logging.disable(level)
    model = onnx.load(target)
    onnx.helper.set_model_props(model, {KEY: json.dumps(metadata)})
    onnx.save(model, target)


class Network:
    """An ONNX file that runs on the CPU, or on a GPU where onnxruntime-gpu is installed."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        known = onnxruntime.get_available_providers()
        providers = [name for name in PROVIDERS if name in known]
        try:
            self.session = onnxruntime.InferenceSession(path, providers=providers)
        except Exception as error:  # onnxruntime's errors have no common base
            raise ExportError(f"{path}: onnxruntime cannot load it: {error!s:.1000}") from error
        text = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise ExportError(f"{path} has no metadata of sepc_zoo; export it by `sepc-zoo export`")
        self.metadata = parse(text, path)

    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        return self.session.run(None, {"images": images, "sizes": sizes})
