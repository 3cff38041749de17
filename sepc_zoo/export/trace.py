"""Trace a detector with ``torch.export``, with fixed or open sizes of its input."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from timm.layers import padding
from torch import Tensor
from torch.export import Dim, ExportedProgram

from sepc_zoo.export.graph import DetectionGraph
from sepc_zoo.export.metadata import ExportError
from sepc_zoo.models.detector import Detector
from sepc_zoo.ops.devices import standard_operators

MAX_BATCH, MAX_SIDE = 4096, 16384
MAX_STRIDE = 32  # largest stride of a backbone's feature maps
EXAMPLE_SIDE = 256  # pixels; then every level has more than one cell, which tracing needs


def trace(graph: DetectionGraph, metadata: Mapping[str, Any]) -> ExportedProgram:
    """Record the operators of a graph.

    Args:
        metadata: metadata of the file to write; sizes that it does not fix stay open.

    Raises:
        ExportError: the model's code depends on a size or on values.
    """
    images, sizes, shapes = example_input(metadata)
    rule = metadata["input"]
    try:
        with torch.no_grad(), standard_operators(), integer_padding(rule["pad_multiple"]):
            return torch.export.export(graph, (images, sizes), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # of torch.export, many types without a common base
        is_open = None in (rule["batch"], rule["height"], rule["width"])
        hint = "; try a fixed --image-size and --batch-size" * is_open
        raise ExportError(f"torch.export cannot record the model{hint}: {error!s:.2000}") from error


@contextmanager
def integer_padding(step: int) -> Iterator[None]:
    """Compute the padding ``same`` of timm's layers with integers while a model is traced.

    timm divides open sizes as floats, which the tracer cannot simplify: expressions grow from layer
    to layer, and a MobileNetV2 takes more than ten minutes.

    Args:
        step: both sides of a batch are multiples of it. If it is a multiple of every stride, a
            feature map has the same remainder at every size as in the example.
    """

    def same_padding(x: int, kernel_size: int, stride: int, dilation: int) -> int:
        size = x.node.hint if isinstance(x, torch.SymInt) else x
        missing = 0 if step % MAX_STRIDE == 0 and size % stride == 0 else -x % stride
        return max(dilation * (kernel_size - 1) + 1 - stride + missing, 0)

    before = padding.get_same_padding
    padding.get_same_padding = same_padding
    try:
        yield
    finally:
        padding.get_same_padding = before


def example_input(metadata: Mapping[str, Any]) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Example images ``(N, H, W, C)``, their sizes ``(N, 2)``, and their open dimensions."""
    rule = metadata["input"]
    step = rule["pad_multiple"]
    least = -(-rule["min_side"] // step)
    start = max(least, -(-EXAMPLE_SIDE // step), 2)
    open_dims: dict[int, Any] = {}
    # Different lengths, none of them 1: tracing would take equal ones for the same dimension.
    height, width = rule["height"] or start * step, rule["width"] or (start + 1) * step
    shape = [rule["batch"] or 2, height, width]
    if rule["batch"] is None:
        open_dims[0] = Dim("batch", min=1, max=MAX_BATCH)
    for axis, name in ((1, "height"), (2, "width")):
        if rule[name] is None:
            steps = Dim(f"{name}_steps", min=least, max=MAX_SIDE // step)
            open_dims[axis] = step * steps if step > 1 else steps
    dtype = getattr(torch, rule["dtype"])
    images = torch.zeros(*shape, rule["channels"], dtype=dtype)
    sizes = torch.tensor([shape[1:]] * shape[0])
    sizes_dims = {0: open_dims[0]} if 0 in open_dims else {}
    return images, sizes, {"images": open_dims, "sizes": sizes_dims}


def check_request(
    model: Detector,
    image_size: tuple[int, int] | None,
    batch_size: int | None,
    raw: bool,
) -> None:
    """Raise an ExportError, before the work starts, if a model cannot be exported as asked."""
    config, step = model.config, model.config.weights.pad_multiple
    if raw and config.method.head == "two_stage":
        raise ExportError(
            "--raw: a two-stage detector has no outputs for all anchors; export it without"
        )
    if config.postprocess.soft_nms != "none" and not raw:
        raise ExportError(
            "an exported file has hard non-maximum suppression only; set postprocess.soft_nms to "
            '"none", or use --raw'
        )
    if batch_size is not None and batch_size < 1:
        raise ExportError(f"--batch-size {batch_size}: must be at least 1")
    for side in image_size or ():
        if side % step or not model.min_side <= side <= MAX_SIDE:
            raise ExportError(
                f"--image-size {side}: the model needs multiples of {step}, from "
                f"{-(-model.min_side // step) * step} to {MAX_SIDE} pixels"
            )
