"""What a detector found in one photo."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision.ops import box_convert

from sepc_zoo.config import DetectorConfig
from sepc_zoo.data.images import IMAGE_SUFFIXES, read_image
from sepc_zoo.files import write_atomically
from sepc_zoo.inference.drawing import class_color, draw_boxes

if TYPE_CHECKING:
    import supervision


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """The D objects found in a photo, sorted by falling score.

    Attributes:
        boxes: ``(D, 4)`` xyxy in the photo's pixels.
        scores: ``(D,)`` from 0 to 1.
        labels: ``(D,)`` int64, 0…K-1.
        label_names: the K names of the model's classes.
        category_ids: the K ids that the dataset gives these classes; ``None`` for one it lacks.
        image: the photo, as its file or as a uint8 RGB tensor ``(3, H, W)``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    label_names: tuple[str, ...]
    category_ids: tuple[int | None, ...]
    image: Path | Tensor

    @classmethod
    def of(
        cls,
        found: Mapping[str, Tensor],
        score_threshold: float,
        config: DetectorConfig,
        image: Path | Tensor,
    ) -> "Detections":
        """What a model of ``config`` found in a photo, down to a least score."""
        kept = found["scores"] >= score_threshold
        columns = {name: values[kept].cpu() for name, values in found.items()}
        names, ids = config.label_names, config.category_ids
        return cls(**columns, label_names=names, category_ids=ids, image=image)

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        found = ", ".join(self._captions()[:5])
        return f"Detections({len(self)}{': ' if found else ''}{found}{', …' * (len(self) > 5)})"

    def draw(self) -> Image.Image:
        """The photo with each box, its class and its score; the surest lie on top."""
        image = self.image if isinstance(self.image, Tensor) else read_image(self.image)
        colors = [class_color(label) for label in self.labels.tolist()]
        return draw_boxes(image, self.boxes.flip(0), self._captions()[::-1], colors[::-1])

    def save(self, path: str | Path) -> None:
        """Draw and write the picture; the suffix of ``path`` tells the format.

        Raises:
            ValueError: the suffix is none of those that are read (``ops.image.IMAGE_SUFFIXES``).
        """
        if Path(path).suffix.lower() not in IMAGE_SUFFIXES:
            raise ValueError(f"cannot write {path}: use one of {', '.join(IMAGE_SUFFIXES)}")
        image = self.draw()
        # Full colour resolution: JPEG's usual half of it smears thin coloured lines.
        write_atomically(path, lambda file: image.save(file, quality=92, subsampling=0))

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO results of this photo, see :func:`coco_results`."""
        found = {"boxes": self.boxes, "scores": self.scores, "labels": self.labels}
        return coco_results(image_id, found, self.category_ids)

    def to_supervision(self) -> "supervision.Detections":
        """The same as ``supervision.Detections``, with the names in ``data["class_name"]``.

        Raises:
            ImportError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError as error:
            message = 'to_supervision needs supervision: pip install "sepc_zoo[supervision]"'
            raise ImportError(message) from error

        labels = self.labels.cpu().numpy()
        return supervision.Detections(
            xyxy=self.boxes.float().cpu().numpy(),
            confidence=self.scores.float().cpu().numpy(),
            class_id=labels,
            data={"class_name": np.array(self.label_names, dtype=str)[labels]},
        )

    def _captions(self) -> list[str]:
        found = zip(self.labels.tolist(), self.scores.tolist(), strict=True)
        return [f"{self.label_names[label]} {score:.2f}" for label, score in found]


def coco_results(
    image_id: int, detections: Mapping[str, Tensor], category_ids: Sequence[int | None]
) -> list[dict[str, Any]]:
    """Detections of one image in COCO's results format, ready for JSON.

    Args:
        image_id: the image's id in the annotation file.
        detections: ``boxes (D, 4)`` xyxy, ``scores (D,)``, ``labels (D,)``.
        category_ids: the dataset's id of each label; labels with ``None`` are left out.

    Returns:
        ``image_id``, ``category_id``, ``bbox`` (x, y, width, height) and ``score`` of each. Boxes
        are rounded no more than float32 does it, scores not at all: either would move AP.
    """
    boxes = box_convert(detections["boxes"].cpu().double(), "xyxy", "xywh").tolist()
    found = zip(boxes, detections["scores"].tolist(), detections["labels"].tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": category_ids[label],
            "bbox": [round(value, 5) for value in box],
            "score": score,
        }
        for box, score, label in found
        if category_ids[label] is not None
    ]
