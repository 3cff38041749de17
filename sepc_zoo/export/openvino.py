"""OpenVINO files: the graph in XML, the weights in a file beside it."""

import logging
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from sepc_zoo.export.metadata import ExportError, metadata_file, output_names, parse


def packages() -> dict[str, Any]:
    """Versions of the packages that write the file."""
    return {name: version(name) for name in ("openvino", "nncf")}


def write(program: ExportedProgram, path: Path, metadata: Mapping[str, Any]) -> None:
    """Write the graph to ``path``, and its weights beside it."""
    import openvino as ov
    from openvino.frontend.pytorch import ConversionExtension

    extensions = [
        ConversionExtension("sepc_zoo.keep_best.default", _keep_best),
        ConversionExtension(str(torch.sym_min), _smaller),
    ]
    model = ov.convert_model(program, extension=extensions)
    for port, name in zip(model.outputs, output_names(metadata), strict=True):
        port.get_tensor().set_names({name})
    ov.save_model(model, path, compress_to_fp16=metadata["precision"] == "float16")


def _smaller(context: Any) -> Any:
    from openvino import opset13 as op

    return op.minimum(context.get_input(0), context.get_input(1)).outputs()


def _keep_best(context: Any) -> Any:
    """Implement ``suppression.keep_best`` with operators of OpenVINO."""
    from openvino import opset13 as op

    # The CPU plugin must know statically that a box has four numbers.
    boxes = op.reshape(context.get_input(0), op.constant(np.array([0, -1, 4])), special_zero=True)
    scores = context.get_input(1)
    limit, iou_threshold, floor = (context.get_values_from_const_input(i) for i in (2, 3, 4))
    found = op.non_max_suppression(
        boxes,
        scores,
        op.constant(np.int64(limit)),
        op.constant(np.float32(iou_threshold)),
        op.constant(np.float32(floor)),
        box_encoding="corner",
        sort_result_descending=False,
        output_type="i64",
    )
    kept = found.output(0)  # rows of image, group and box
    none = op.broadcast(op.constant(np.float32(floor)), op.shape_of(scores))
    return op.scatter_nd_update(none, kept, op.gather_nd(scores, kept)).outputs()


def quantize(
    source: Path,
    target: Path,
    inputs: Iterator[dict[str, np.ndarray]],
    metadata: Mapping[str, Any],  # noqa: ARG001
) -> None:
    """Write a file with convolutions in int8; deformable convolutions stay as they are.

    Args:
        inputs: inputs of the graph, to find the range of values of each feature map.
    """
    import nncf
    import openvino as ov

    nncf.set_log_level(logging.WARNING)  # its information is hundreds of lines
    model, items = ov.Core().read_model(source), [*inputs]
    types = {node.get_type_name() for node in model.get_ops()} - {"Convolution", "GroupConvolution"}
    quantized = nncf.quantize(
        model,
        nncf.Dataset(items),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(items),
        ignored_scope=nncf.IgnoredScope(types=sorted(types), validate=False),
    )
    ov.save_model(quantized, target, compress_to_fp16=False)


class Network:
    """An OpenVINO file that runs on the CPU."""

    def __init__(self, path: Path) -> None:
        import openvino as ov

        description = metadata_file(path)
        try:
            self.metadata = parse(description.read_text(encoding="utf-8"), description)
            # The default is bfloat16 on some processors.
            hint = {"INFERENCE_PRECISION_HINT": "f32"}
            self.model = ov.Core().compile_model(path, "CPU", hint)
        except (OSError, RuntimeError) as error:
            raise ExportError(f"{path}: OpenVINO cannot load it: {error!s:.1000}") from error

    def __call__(self, images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        return [*self.model([images, sizes]).values()]
