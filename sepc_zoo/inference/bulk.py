"""Prediction of many image files: a picture with boxes for each, and COCO results of all."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from accelerate.utils import gather_object

from sepc_zoo.data.images import IMAGE_SUFFIXES
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.loader import ImageFiles, detect_files, image_loader
from sepc_zoo.inference.predictor import ImageDetector, eval_mode
from sepc_zoo.inference.progress import progress_bar
from sepc_zoo.inference.tta import SINGLE_VIEW, Views

DETECTIONS_FILE = "detections.json"  # written by callers, beside the pictures
DRAWING_THREADS = 2  # writing a picture may take longer than detection


class FileResult(NamedTuple):
    """The result of one image file."""

    position: int  # index among all files
    rows: list[dict[str, Any]] | None  # COCO results; None: the file cannot be read
    text: str  # the detections with the highest scores, or why the file cannot be read


def predict_files(
    model: ImageDetector,
    files: Sequence[Path],
    output: Path,
    score_threshold: float,
    *,
    batch_size: int = 4,
    workers: int = 2,
    views: Views = SINGLE_VIEW,
    after_batch: Callable[[int], None] = lambda _: None,
) -> list[FileResult]:
    """Draw the detections of image files, each process in its share of them.

    The id of an image in COCO results is its place among ``files``, from 1 on.

    Args:
        after_batch: called with the number of files that this process has done; an exception in it
            ends the prediction, once the pictures in progress are written.

    Returns:
        The results of all files in their order, in every process.

    Raises:
        OSError: a picture cannot be written.
    """
    images = ImageFiles(files, model.config, views, keep_pixels=True)
    hidden = len(files) == 1 or not PartialState().is_main_process
    batches = progress_bar(image_loader(images, batch_size, workers), "predict", disable=hidden)
    done: list[FileResult] = []
    pictures: list[Future[None]] = []
    with eval_mode(model), ThreadPoolExecutor(DRAWING_THREADS) as threads:
        for batch in batches:
            found = detect_files(model, batch)
            _wait(pictures)  # pictures of the last batch, so that images do not pile up
            for image, objects in found:
                if objects is None:
                    done.append(FileResult(image.position, None, image.problem))
                    continue
                file = files[image.position]
                pixels = file if image.pixels is None else image.pixels
                detections = Detections.from_dict(objects, score_threshold, model.config, pixels)
                pictures.append(threads.submit(detections.save, picture_path(output, file)))
                rows = detections.to_coco(image.position + 1)
                done.append(FileResult(image.position, rows, detections.summary()))
            after_batch(len(done))
        _wait(pictures)
    return sorted(gather_object(done))


def picture_path(output: Path, image: Path) -> Path:
    """Name the picture of an image; two images of a folder never share one."""
    suffix = image.suffix if image.suffix.lower() in IMAGE_SUFFIXES else ".png"
    return output / f"{image.stem}_boxes{suffix}"


def _wait(pictures: list[Future[None]]) -> None:
    for picture in pictures:
        picture.result()
    pictures.clear()
