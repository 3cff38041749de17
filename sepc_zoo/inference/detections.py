"""The objects that a detector finds in one image."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from sepc_zoo.config import DetectorConfig
from sepc_zoo.data.images import IMAGE_SUFFIXES, read_image
from sepc_zoo.files import write_atomically
from sepc_zoo.inference.drawing import class_color, draw_boxes, fit

if TYPE_CHECKING:
    import supervision

# One image's result of postprocess: boxes (D, 4) xyxy, scores (D,), labels (D,), by falling score.
DetectionDict: TypeAlias = dict[str, Tensor]

MAX_NAMED = 5  # detections that are named in a text
MAX_NOTEBOOK_SIDE = 1024  # pixels


class Detection(NamedTuple):
    """One detected object."""

    box: tuple[float, float, float, float]  # x1, y1, x2, y2 in pixels of the image
    score: float
    label: int
    name: str


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The D objects found in an image, sorted by falling score; all tensors are on the CPU.

    Iterating gives a :class:`Detection` for each object; ``detections[0]`` is one of them,
    ``detections[:5]`` and ``detections[detections.scores > 0.5]`` are ``Detections`` again.
    Two objects are equal only if they are the same; compare their tensors instead.

    Attributes:
        boxes: ``(D, 4)`` xyxy in pixels of the image; float32, float64 for a model in float64.
        scores: ``(D,)`` from 0 to 1, of the same type.
        labels: ``(D,)`` int64, 0…K-1.
        label_names: the K names of the model's classes.
        category_ids: the data set's K ids of these classes; None for a class that it lacks.
        image: the image, as its file or as a uint8 tensor ``(C, H, W)``.
        track_ids: ``(D,)`` int64: an object of a video keeps its number from frame to frame; -1:
            it has none yet. None where nothing is tracked.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    label_names: tuple[str, ...]
    category_ids: tuple[int | None, ...]
    image: Path | Tensor
    track_ids: Tensor | None = None

    @classmethod
    def from_dict(
        cls,
        detections: DetectionDict,
        score_threshold: float,
        config: DetectorConfig,
        image: Path | Tensor,
    ) -> "Detections":
        """Build the detections of an image with at least a score.

        Args:
            detections: ``boxes (D, 4)`` in pixels, ``scores (D,)`` and ``labels (D,)``, and
                ``track_ids (D,)`` where objects are tracked.
            score_threshold: lowest score of a detection.
            config: config of the model, with the names and ids of its classes.
            image: the image, as its file or as a uint8 tensor ``(C, H, W)``.
        """
        kept = detections["scores"] >= score_threshold
        columns = {name: values[kept].cpu() for name, values in detections.items()}
        names, ids = config.label_names, config.category_ids
        return cls(**columns, label_names=names, category_ids=ids, image=image)

    def __len__(self) -> int:
        return len(self.boxes)

    def __iter__(self) -> Iterator[Detection]:
        return (self[i] for i in range(len(self)))

    @overload
    def __getitem__(self, index: int) -> Detection: ...
    @overload
    def __getitem__(self, index: slice | list[int] | Tensor) -> "Detections": ...
    def __getitem__(self, index: int | slice | list[int] | Tensor) -> "Detection | Detections":
        """Return one detection, or those of a slice, of a mask ``(D,)`` or of indices."""
        index = torch.tensor(index) if isinstance(index, list) else index
        boxes, scores, labels = self.boxes[index], self.scores[index], self.labels[index]
        if scores.ndim > 0:
            ids = None if self.track_ids is None else self.track_ids[index]
            return replace(self, boxes=boxes, scores=scores, labels=labels, track_ids=ids)
        label = int(labels)
        return Detection(tuple(boxes.tolist()), scores.item(), label, self.label_names[label])

    def __repr__(self) -> str:
        shape = tuple(self.image.shape) if isinstance(self.image, Tensor) else str(self.image)
        return (
            f"Detections({self.summary()}; boxes {tuple(self.boxes.shape)}, scores, labels, "
            f"label_names ({len(self.label_names)}), category_ids, image {shape})"
        )

    def summary(self) -> str:
        """Name the detections with the highest scores: ``3: dog 0.91, cat 0.55, cat 0.41``."""
        names = ", ".join(self._captions()[:MAX_NAMED])
        return f"{len(self)}{': ' if names else ''}{names}{', …' * (len(self) > MAX_NAMED)}"

    def draw(self, size: tuple[int, int] | None = None) -> Image.Image:
        """Draw each box with class, track and score; the highest scores are drawn last.

        Args:
            size: resize the image to this largest width and height, pixels, before drawing.

        Raises:
            ImageError: the image's file can no longer be read.
        """
        source = self.image
        image = source if isinstance(source, Tensor) else read_image(source, channels=None)
        boxes, colors = self.boxes.flip(0), [class_color(label) for label in self.labels.tolist()]
        picture, boxes = fit(image, boxes, size) if size else (image, boxes)
        return draw_boxes(picture, boxes, self._captions()[::-1], colors[::-1])

    def save(self, path: str | Path) -> None:
        """Draw the boxes and write the picture.

        Args:
            path: file to write; its suffix gives the format.

        Raises:
            ValueError: the suffix is none of ``sepc_zoo.data.images.IMAGE_SUFFIXES``.
        """
        if Path(path).suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(f"cannot write {path}: use one of {', '.join(IMAGE_SUFFIXES)}")
        image = self.draw()
        # Full colour resolution: JPEG's usual half resolution blurs thin coloured lines.
        write_atomically(path, lambda file: image.save(file, quality=92, subsampling=0))

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """Return COCO results of this image: a dict for each detection, ready for JSON.

        Args:
            image_id: the image's id in the annotation file.
        """
        columns = {"boxes": self.boxes, "scores": self.scores, "labels": self.labels}
        return coco_results(image_id, columns, self.category_ids)

    def to_supervision(self) -> "supervision.Detections":
        """Return ``supervision.Detections``, with the names in ``data["class_name"]``.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            message = 'to_supervision needs supervision: pip install "sepc_zoo[supervision]"'
            raise ImportError(message) from error

        labels = self.labels.numpy()
        return supervision.Detections(
            xyxy=self.boxes.float().numpy(),
            confidence=self.scores.float().numpy(),
            class_id=labels,
            tracker_id=None if self.track_ids is None else self.track_ids.numpy(),
            data={"class_name": np.array(self.label_names, dtype=str)[labels]},
        )

    def _repr_png_(self) -> bytes:
        """Show the drawn boxes in a notebook."""
        picture = self.draw()
        picture.thumbnail((MAX_NOTEBOOK_SIDE, MAX_NOTEBOOK_SIDE))
        file = io.BytesIO()
        picture.save(file, format="png")
        return file.getvalue()

    def _captions(self) -> list[str]:
        ids = [-1] * len(self) if self.track_ids is None else self.track_ids.tolist()
        tracks = (f" #{i}" if i >= 0 else "" for i in ids)
        return [f"{d.name}{track} {d.score:.2f}" for d, track in zip(self, tracks, strict=True)]


def coco_results(
    image_id: int, detections: Mapping[str, Tensor], category_ids: Sequence[int | None]
) -> list[dict[str, Any]]:
    """Convert detections of one image to COCO's results, ready for JSON.

    Labels without a category id are left out. Boxes are rounded no more than in float32, scores not
    at all: either would change AP.
    """
    boxes = box_convert(detections["boxes"].cpu().double(), "xyxy", "xywh").tolist()
    rows = zip(boxes, detections["scores"].tolist(), detections["labels"].tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(value, 5) for value in box],
            "score": score,
        }
        for box, score, label in rows
        if category_ids[label] is not None
    ]
