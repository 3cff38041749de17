"""Quantize the convolutions of an exported file to int8, if that costs little AP."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sepc_zoo.data.images import read_image
from sepc_zoo.export.loaded import ExportedModel
from sepc_zoo.export.metadata import ExportError, metadata_file
from sepc_zoo.files import write_json
from sepc_zoo.inference.tta import SINGLE_VIEW


@dataclass(frozen=True)
class Int8:
    """The calibration of int8, and the AP that it may cost.

    Attributes:
        images: image files to calibrate on, such as 300 of the training split.
        measure: function that returns the AP of an exported file on a data set.
        max_drop: maximum loss of AP, as a fraction: 0.01 is one point.
    """

    images: Sequence[Path]
    measure: Callable[[ExportedModel], float]
    max_drop: float = 0.01


def quantize(module: Any, draft: Path, options: Int8) -> tuple[Path, dict[str, Any]]:
    """Write an int8 version of a file into a folder beside it.

    Args:
        module: the module of the file's format.

    Returns:
        The new file, and AP before and after.

    Raises:
        ExportError: the loss of AP is larger than allowed, or there are no images.
    """
    if not options.images:
        raise ExportError("--calibrate: the data set has no images")
    exported = ExportedModel(module.Network(draft))
    metadata = exported.metadata | {"precision": "int8"}
    file = draft.parent / "int8" / draft.name
    file.parent.mkdir()
    module.quantize(draft, file, calibration_inputs(exported, options.images), metadata)
    write_json(metadata_file(file), metadata)
    before = options.measure(exported)
    after = options.measure(ExportedModel(module.Network(file)))
    if before - after > options.max_drop:
        raise ExportError(
            f"int8 lowers AP from {before:.4f} to {after:.4f}, by more than --max-drop "
            f"{options.max_drop}; nothing was written. Try more images to calibrate on, or --half"
        )
    return file, {"AP": before, "AP_int8": after, "calibration_images": len(options.images)}


def calibration_inputs(
    exported: ExportedModel, files: Sequence[Path]
) -> Iterator[dict[str, np.ndarray]]:
    """The inputs of the graph, for one image file after the other."""
    for file in files:
        pixels = read_image(file, channels=exported.rule["channels"])
        [view] = SINGLE_VIEW.of_image(pixels, exported.config)
        images, sizes = exported.inputs([view.input] * (exported.rule["batch"] or 1))
        yield {"images": images, "sizes": sizes}
