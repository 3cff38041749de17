"""Exported files with the interface of a model."""

from collections import defaultdict
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from sepc_zoo.checkpoints.layout import CONFIG_FILE
from sepc_zoo.config import DetectorConfig, config_from_json
from sepc_zoo.data.pixels import pad_and_stack
from sepc_zoo.export import SUFFIXES
from sepc_zoo.export.metadata import ExportError
from sepc_zoo.inference.detections import DetectionDict
from sepc_zoo.inference.predictor import predict, stream

FORMATS = {format: suffix for suffix, format in SUFFIXES.items()}


class ExportedModel(nn.Module):
    """A detector in an exported file, for ``predict``, ``validate`` and ``benchmark``.

    Attributes:
        config: config of the model; ``weights.image_size`` is the fixed input size if there is one.
        metadata: the metadata of the file, see ``export.metadata``.
        network: callable that runs the graph on arrays.
    """

    predict = predict
    stream = stream

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network
        self.metadata: dict[str, Any] = network.metadata
        self.rule: dict[str, Any] = self.metadata["input"]
        self.config = config_from_json(self.metadata["config"])
        if self.rule["height"]:
            self.config = with_fixed_input(self.config, self.rule["height"], self.rule["width"])
        self.eval()

    def forward(self, images: Tensor) -> list[np.ndarray]:
        """The outputs of the graph for a batch ``(N, C, H, W)`` in 0…255 without padding."""
        return self.run(*self.inputs([*images]))

    def detect(self, images: Sequence[Tensor]) -> list[DetectionDict]:
        """Detect the objects in each input ``(C, h, w)`` in 0…255; boxes are in its own pixels.

        Inputs of the same padded size go through the graph together, unless its batch is fixed.
        """
        if self.metadata["raw"]:
            raise ExportError("a file of --raw gives no detections; export the model without it")
        same_size = defaultdict(list)
        for i, image in enumerate(images):
            same_size[self.padded_size(image)].append(i)
        detections: dict[int, DetectionDict] = {}
        for indices in same_size.values():
            step = self.rule["batch"] or len(indices)
            for start in range(0, len(indices), step):
                part = indices[start : start + step]
                found = self._detect_batch([images[i] for i in part])
                detections.update(zip(part, found, strict=True))
        return [detections[i] for i in range(len(images))]

    def padded_size(self, image: Tensor) -> tuple[int, int]:
        """Height and width of the padded batch for an image ``(C, h, w)``.

        Raises:
            ExportError: the image is larger than the fixed input of the file.
        """
        rule = self.rule
        step = rule["pad_multiple"]
        height, width = (
            rule[name] or -(-max(side, rule["min_side"]) // step) * step
            for name, side in zip(("height", "width"), image.shape[-2:], strict=True)
        )
        if height < image.shape[-2] or width < image.shape[-1]:
            raise ExportError(
                f"an input of {image.shape[-2]} x {image.shape[-1]} pixels is larger than the "
                f"file's fixed {height} x {width}; leave out scales over 1, or export the model "
                "without --image-size"
            )
        return height, width

    def inputs(self, images: Sequence[Tensor]) -> tuple[np.ndarray, np.ndarray]:
        """Images ``(C, h, w)`` of one padded size as inputs of ``run``."""
        height, width = self.padded_size(images[0])
        sizes = np.array([image.shape[-2:] for image in images], dtype=np.int64)
        batch = pad_and_stack(images, 1)
        missing = (0, width - batch.shape[-1], 0, height - batch.shape[-2])
        batch = nn.functional.pad(batch, missing).permute(0, 2, 3, 1)
        if self.rule["dtype"] == "uint8":
            batch = batch.round().to(torch.uint8) if batch.is_floating_point() else batch
        return batch.to(getattr(torch, self.rule["dtype"])).contiguous().cpu().numpy(), sizes

    def _detect_batch(self, images: Sequence[Tensor]) -> list[DetectionDict]:
        found = []
        outputs = self.run(*self.inputs(images))
        for rows in zip(*map(torch.from_numpy, outputs), strict=True):
            boxes, scores, labels = (values[: int((rows[2] >= 0).sum())] for values in rows)
            found.append({"boxes": boxes, "scores": scores, "labels": labels})
        return found

    def run(self, images: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
        """The outputs of the graph; if its batch is fixed, copies of the first image fill it up.

        Args:
            images: ``(N, H, W, C)`` in 0…255.
            sizes: height and width of each image inside the batch ``(N, 2)``.
        """
        count, batch = len(images), self.rule["batch"] or len(images)
        fill = [0] * (batch - count)
        images, sizes = np.concatenate([images, images[fill]]), np.concatenate([sizes, sizes[fill]])
        return [values[:count] for values in self.network(images, sizes)]


def load_exported(path: str | Path) -> ExportedModel:
    """Load an exported detector, which has ``predict``, ``detect`` and ``config`` as a model has.

    Args:
        path: a file ``.onnx``, ``.xml`` or ``.pt2``, or a folder with one of them.

    Raises:
        ExportError: there is no such file, it cannot be loaded, or the package that runs it is
            not installed.
    """
    file = find_exported(path)
    if file is None:
        raise ExportError(f"{path}: no exported file ({', '.join(SUFFIXES)}), and no folder of one")
    return ExportedModel(format_module(SUFFIXES[file.suffix]).Network(file))


def find_exported(path: str | Path) -> Path | None:
    """The exported file at a path, or the only one in a folder; None if there is none."""
    path = Path(path).expanduser()
    if path.is_file() and path.suffix in SUFFIXES:
        return path
    if not path.is_dir() or (path / CONFIG_FILE).is_file():  # a model folder is its own model
        return None
    files = [file for file in path.iterdir() if file.suffix in SUFFIXES]
    return files[0] if len(files) == 1 else None


def format_module(format: str) -> Any:
    """The module of a format.

    Raises:
        ExportError: a package that it needs is not installed.
    """
    module = import_module(f"sepc_zoo.export.{format}")
    try:
        module.packages()
    except ImportError as error:
        raise ExportError(
            f'the format {format} needs more packages: pip install "sepc_zoo[export]" ({error})'
        ) from error
    return module


def with_fixed_input(config: DetectorConfig, height: int, width: int) -> DetectorConfig:
    """The config of a model with a fixed height and width of the input."""
    size = min(height, width), max(height, width)
    weights = replace(config.weights, image_size=size, upright=height > width)
    return replace(config, weights=weights)
