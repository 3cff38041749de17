"""Prediction of many files: images and videos with boxes, and all detections as JSON.

An image gives a picture and COCO results, a video an annotated video and a line for each frame.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from accelerate.utils import gather_object

from sepc_zoo.data.images import IMAGE_SUFFIXES
from sepc_zoo.data.resilient_loader import ResilientLoader
from sepc_zoo.errors import ConfigError, UserError
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.loader import ImageFiles, detect_files, image_loader
from sepc_zoo.inference.predictor import ImageDetector, detect_batches, eval_mode
from sepc_zoo.inference.preprocess import without_password
from sepc_zoo.inference.progress import progress_bar
from sepc_zoo.inference.sources import FileList
from sepc_zoo.inference.tracking import Tracker
from sepc_zoo.inference.tta import SINGLE_VIEW, Views
from sepc_zoo.inference.video import Video, import_av
from sepc_zoo.inference.video_writer import VideoResult, video_path, write_video

DETECTIONS_FILE = "detections.json"  # written by callers, beside the pictures
DRAWING_THREADS = 2  # writing a picture may take longer than detection
MAX_DEAD_WORKERS = 10


class FileResult(NamedTuple):
    """The result of one image file."""

    position: int  # index among all files
    rows: list[dict[str, Any]] | None  # COCO results; None: the file cannot be read
    text: str  # the detections with the highest scores
    problem: str = ""  # why the file cannot be read, or its picture not be written; names it
    best_score: float = 0.0  # the highest score, perhaps under the threshold


def predict_files(
    model: ImageDetector,
    images: FileList,
    output: Path,
    score_threshold: float,
    *,
    batch_size: int = 4,
    workers: int = 2,
    views: Views = SINGLE_VIEW,
    after_batch: Callable[[int], None] = lambda _: None,
    waiting: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> list[FileResult]:
    """Draw the detections of image files, each process in its share of them.

    The id of an image in COCO results is its place among ``images``, from 1 on. An image that
    cannot be read, or a picture that cannot be written, does not affect the others.

    Args:
        after_batch: called with the number of files that this process has done; an exception in it
            ends the prediction, once the pictures in progress are written.
        waiting: returns a context that is entered while a batch is waited for.

    Returns:
        The results of all files in their order, in every process.

    Raises:
        ConfigError: workers die again and again.
    """
    data = ImageFiles(images.files, model.config, views, keep_pixels=True)
    deaths: list[str] = []

    def replace_worker(text: str) -> None:
        deaths.append(text)
        if len(deaths) > MAX_DEAD_WORKERS:
            raise ConfigError(f"workers die again and again, the last: {text}; try --workers 0")

    loader = ResilientLoader(image_loader(data, batch_size, workers), replace_worker, waiting)
    is_hidden = len(images.files) == 1 or not PartialState().is_main_process
    done: list[FileResult] = []
    pictures: dict[int, Future[str]] = {}  # those of a batch in progress, by place in ``done``

    def finish_pictures() -> None:
        for place, picture in pictures.items():
            done[place] = done[place]._replace(problem=picture.result())
        pictures.clear()

    with eval_mode(model), ThreadPoolExecutor(DRAWING_THREADS) as threads:
        for batch in progress_bar(loader, "predict", unit="batch", disable=is_hidden):
            found = detect_files(model, batch)
            finish_pictures()  # so that images do not pile up
            for image, objects in found:
                if objects is None or image.pixels is None:
                    done.append(FileResult(image.position, None, "", image.problem))
                    continue
                args = objects, score_threshold, model.config, image.pixels
                detections = Detections.from_dict(*args)
                path = picture_path(output, Path(images.name(image.position)))
                source = images.files[image.position]
                pictures[len(done)] = threads.submit(save_picture, detections, path, source)
                rows = detections.to_coco(image.position + 1)
                best = max(objects["scores"].tolist(), default=0.0)
                result = FileResult(image.position, rows, detections.summary(), best_score=best)
                done.append(result)
            after_batch(len(done))
        finish_pictures()
    return sorted(gather_object(done))


def predict_videos(
    model: ImageDetector,
    videos: FileList,
    output: Path,
    score_threshold: float,
    *,
    batch_size: int = 4,
    views: Views = SINGLE_VIEW,
    every: int = 1,
    track: bool = False,
    stopped: Callable[[], bool] = lambda: False,
) -> list[VideoResult]:
    """Draw the detections of videos, cameras and streams, each process in its share of them.

    Each gives an mp4 file, and a file with a line of JSON for the detections of each frame. An
    error in one does not affect the others.

    Args:
        every: detect in every n-th frame, and leave the others out.
        track: follow objects from frame to frame.
        stopped: called after each batch; True ends the prediction, and what is done is written.

    Returns:
        The results of all videos in their order, in every process.
    """
    av = import_av()
    process, done = PartialState(), []
    for position in range(process.process_index, len(videos.files), process.num_processes):
        tracker = Tracker(score_threshold) if track else None
        if stopped():
            break
        source, channels = videos.files[position], len(model.config.weights.mean)
        path = video_path(output, Path(videos.name(position)))
        try:
            with Video(source, channels, every, keep_sound=True) as video:
                images = progress_bar(
                    video,
                    video.name,
                    total=-(-video.num_frames // every) or None,
                    unit=" frames",
                    disable=not process.is_main_process,
                )
                batches = detect_batches(model, images, 0.0, views, batch_size, tracker)
                batches = takewhile(lambda _: not stopped(), batches)
                result = write_video(video, batches, path, score_threshold)
        except UserError as error:
            result = VideoResult("", [str(error)])
        except (OSError, av.error.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or error
            result = VideoResult("", [f"{path}: cannot be written: {reason}"])
        done.append((position, result))
    return [result for _, result in sorted(gather_object(done))]


def picture_path(output: Path, image: Path) -> Path:
    """Build the path of an image's picture; no two images have the same."""
    if image.suffix.lower() not in IMAGE_SUFFIXES:
        return output / image.parent / f"{image.name}_boxes.png"
    return output / image.parent / f"{image.stem}_boxes{image.suffix}"


def save_picture(detections: Detections, path: Path, image: object) -> str:
    """Draw and write a picture; return why it cannot be written, or ""."""
    try:
        detections.save(path)
    except (OSError, ValueError) as error:  # ValueError: too large for its format
        reason = getattr(error, "strerror", None) or error
        return f"{without_password(str(image))}: its picture cannot be written to {path}: {reason}"
    return ""
