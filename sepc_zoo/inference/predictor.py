"""Bulk prediction: boxes drawn on many photos, and all of them as COCO results."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from sepc_zoo.data.images import IMAGE_SUFFIXES
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.loader import PhotoFiles, find_objects, photo_loader
from sepc_zoo.inference.tta import PLAIN, Views
from sepc_zoo.models.detector import Detector
from sepc_zoo.training.logging import progress_bar
from sepc_zoo.training.resilience.signals import Interrupt, Interrupted

DETECTIONS_FILE = "detections.json"
PAINTERS = 2  # threads; writing a picture may take longer than seeing what is in it


class Prediction(NamedTuple):
    """What became of a photo."""

    position: int  # among all files
    rows: list[dict[str, Any]] | None  # COCO results; None: it could not be read
    text: str  # the surest of them, or why it could not be read


@torch.no_grad()
def predict_files(
    model: Detector,
    files: Sequence[Path],
    output: Path,
    score_threshold: float,
    *,
    batch_size: int = 4,
    workers: int = 2,
    views: Views = PLAIN,
) -> list[Prediction]:
    """Draw what the model sees in photos, each process in its share of them.

    The id of a photo in COCO results is its place among ``files``, from 1 on.

    Returns:
        The predictions for all files in their order, in every process.

    Raises:
        Interrupted: by SIGINT or SIGTERM; pictures written so far are whole.
        OSError: a picture cannot be written.
    """
    model.eval()
    photos = PhotoFiles(files, model.config.weights, views, keep_pixels=True)
    done: list[Prediction] = []
    drawn: list[Future[None]] = []
    hidden = len(files) == 1 or not PartialState().is_main_process
    bar = progress_bar(photo_loader(photos, batch_size, workers), "predict", disable=hidden)
    with Interrupt() as interrupt, ThreadPoolExecutor(PAINTERS) as painters:
        for batch in bar:
            found = find_objects(model, batch)
            for picture in drawn:  # of the batch before: photos must not pile up
                picture.result()
            drawn = []
            for photo, objects in found:
                if objects is None:
                    done.append(Prediction(photo.position, None, photo.problem))
                    continue
                file = files[photo.position]
                image = file if photo.pixels is None else photo.pixels
                seen = Detections.of(objects, score_threshold, model.config, image)
                drawn.append(painters.submit(seen.save, picture_path(output, file)))
                done.append(
                    Prediction(photo.position, seen.to_coco(photo.position + 1), repr(seen))
                )
            if interrupt.signal:
                raise Interrupted(
                    f"stopped after {len(done)} photos; {output / DETECTIONS_FILE} is not written",
                    status=128 + interrupt.signal,
                )
        for picture in drawn:
            picture.result()
    return sorted(gather_object(done))


def picture_path(output: Path, photo: Path) -> Path:
    """Where the picture of a photo goes; two photos of a folder never share one."""
    suffix = photo.suffix if photo.suffix.lower() in IMAGE_SUFFIXES else ".png"
    return output / f"{photo.stem}_boxes{suffix}"
