"""Prediction of many files: images and videos with boxes, and all detections as JSON.

An image gives a picture and COCO results, a video an annotated video and a line for each frame.
"""

import glob
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from fractions import Fraction
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from accelerate import PartialState
from accelerate.utils import gather_object

from sepc_zoo.data.images import IMAGE_SUFFIXES, ImageError, list_images
from sepc_zoo.data.resilient_loader import ResilientLoader
from sepc_zoo.errors import ConfigError, UserError
from sepc_zoo.files import write_atomically
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.loader import ImageFiles, detect_files, image_loader
from sepc_zoo.inference.predictor import ImageDetector, detect_batches, eval_mode
from sepc_zoo.inference.preprocess import LoadedImage
from sepc_zoo.inference.progress import progress_bar
from sepc_zoo.inference.tracking import Tracker
from sepc_zoo.inference.tta import SINGLE_VIEW, Views
from sepc_zoo.inference.video import (
    VIDEO_SUFFIXES,
    Video,
    VideoError,
    VideoWriter,
    import_av,
    is_address,
    is_camera,
    is_video,
    without_password,
)

DETECTIONS_FILE = "detections.json"  # written by callers, beside the pictures
SUFFIXES = IMAGE_SUFFIXES + VIDEO_SUFFIXES
MAX_NAME = 100  # letters of a file name that is made from an address
DRAWING_THREADS = 2  # writing a picture may take longer than detection
MAX_DEAD_WORKERS = 10


class FileResult(NamedTuple):
    """The result of one image file."""

    position: int  # index among all files
    rows: list[dict[str, Any]] | None  # COCO results; None: the file cannot be read
    text: str  # the detections with the highest scores
    problem: str = ""  # why the file cannot be read, or its picture not be written; names it
    best_score: float = 0.0  # the highest score, perhaps under the threshold


class VideoResult(NamedTuple):
    """The result of one video."""

    text: str  # what was written; empty where nothing was
    problems: list[str]  # each names the video


class FileList(NamedTuple):
    """Files, URLs and cameras, and the folder from which the results of files are named."""

    files: list[Any]  # Path, URL or index of a camera
    base: Path

    def name(self, position: int) -> str:
        """The path of a file below the common folder, with slashes; a flat name for others."""
        file = self.files[position]
        if isinstance(file, Path):
            return file.relative_to(self.base).as_posix()
        if isinstance(file, int):
            return f"camera_{file}"
        text = without_password(file)
        name = re.sub(r"[^\w.-]+", "_", text.partition("://")[2] or text)[-MAX_NAME:].strip("_.")
        is_shared = [without_password(str(other)) for other in self.files].count(text) > 1
        return f"{position + 1}_{name}" if is_shared else name

    def split(self) -> "tuple[FileList, FileList]":
        """Those that are images, and those that are videos, cameras or streams."""
        is_one = {file: is_video(file) for file in self.files}
        images, videos = ([f for f, one in is_one.items() if one == kind] for kind in (False, True))
        return self._replace(files=images), self._replace(files=videos)


def find_files(
    sources: Sequence[str], recursive: bool = False, output: str | Path = ""
) -> FileList:
    """List the images, videos and cameras that sources name, each once.

    Args:
        sources: files, folders, patterns such as ``images/*.png`` or ``images/**/*.png``, URLs,
            and cameras as index or device.
        recursive: also take the folders inside of folders.
        output: folder of results, which is left out.

    Raises:
        ImageError: there are none in one of the sources.
        ConfigError: the output would be written among the images.
    """
    found: dict[Path | str | int, None] = {}
    for source in sources:
        there = os.path.lexists(source)
        if is_address(source) or is_camera(source) or (source.isdecimal() and not there):
            found[int(source) if source.isdecimal() else source] = None
            continue
        names = [source] if there else sorted(glob.glob(source, recursive=True))
        paths = [Path(os.path.abspath(name)) for name in names]
        if not there:  # a pattern may also fit labels
            paths = [p for p in paths if p.is_dir() or p.suffix.lower() in SUFFIXES]
        if not paths:
            raise ImageError(f"{source}: no such file or folder")
        files = [f for p in paths for f in _images_of(p, recursive, Path(output).resolve())]
        if not files:
            hint = "" if recursive else "; --recursive also looks into the folders inside of it"
            raise ImageError(f"{source}: no images or videos in this folder{hint}")
        found |= dict.fromkeys(files)
    folders = [str(path.parent) for path in found if isinstance(path, Path)]
    if len(sources) == 1 and os.path.isdir(sources[0]):
        folders = [os.path.abspath(sources[0])]
    if not folders:
        return FileList(list(found), Path())
    base = Path(os.path.commonpath(folders))
    if base.resolve() == Path(output).resolve() and not os.path.isfile(sources[0]):
        raise ConfigError("--output is the folder of the images; choose another")
    return FileList(list(found), base)


def _images_of(path: Path, recursive: bool, output: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    yield from list_images(path, SUFFIXES)
    inner = sorted(p for p in path.iterdir() if recursive and p.is_dir() and not p.is_symlink())
    for folder in inner:
        if folder.resolve() != output and not folder.name.startswith("."):
            yield from _images_of(folder, recursive, output)


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
    cannot be read, and a picture that cannot be written, cost the others nothing.

    Args:
        after_batch: called with the number of files that this process has done; an exception in it
            ends the prediction, once the pictures in progress are written.
        waiting: makes a context for each wait for a batch.

    Returns:
        The results of all files in their order, in every process.

    Raises:
        ConfigError: workers die again and again.
    """
    files = images.files
    data = ImageFiles(files, model.config, views, keep_pixels=True)
    hidden = len(files) == 1 or not PartialState().is_main_process
    deaths: list[str] = []

    def replace_worker(text: str) -> None:
        deaths.append(text)
        if len(deaths) > MAX_DEAD_WORKERS:
            raise ConfigError(f"workers die again and again, the last: {text}; try --workers 0")

    loader = ResilientLoader(
        image_loader(data, batch_size, workers), replace_worker, lambda _: None, waiting
    )
    batches = progress_bar(loader, "predict", disable=hidden)
    done: list[FileResult] = []
    pictures: dict[int, Future[str]] = {}  # by position in ``done``
    with eval_mode(model), ThreadPoolExecutor(DRAWING_THREADS) as threads:
        for batch in batches:
            found = detect_files(model, batch)
            _wait(pictures, done)  # those of the last batch, so that images do not pile up
            for image, objects in found:
                if objects is None:
                    done.append(FileResult(image.position, None, "", image.problem))
                    continue
                file = files[image.position]
                pixels = file if image.pixels is None else image.pixels
                detections = Detections.from_dict(objects, score_threshold, model.config, pixels)
                path = picture_path(output, Path(images.name(image.position)))
                pictures[len(done)] = threads.submit(save_picture, detections, path, file)
                rows = detections.to_coco(image.position + 1)
                best = max(objects["scores"].tolist(), default=0.0)
                result = FileResult(image.position, rows, detections.summary(), best_score=best)
                done.append(result)
            after_batch(len(done))
        _wait(pictures, done)
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

    Each gives an mp4 file, and a file of JSON lines with the detections of a frame in each. What
    goes wrong in one costs the others nothing.

    Args:
        every: detect in every n-th frame, and leave the others out.
        track: follow objects from frame to frame.
        stopped: asked after each batch; what was done until then is written.

    Returns:
        The results of all videos in their order, in every process.

    Raises:
        VideoError: PyAV is not installed.
        TrackError: the library for tracks is not.
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
                batches = detect_batches(model, images, score_threshold, views, batch_size, tracker)
                result = write_video(video, takewhile(lambda _: not stopped(), batches), path)
        except UserError as error:
            result = VideoResult("", [str(error)])
        except (OSError, av.error.FFmpegError) as error:
            reason = getattr(error, "strerror", None) or error
            result = VideoResult("", [f"{path}: cannot be written: {reason}"])
        done.append((position, result))
    return [result for _, result in sorted(gather_object(done))]


def write_video(
    video: Video, batches: Iterable[Sequence[tuple[LoadedImage, Detections]]], path: Path
) -> VideoResult:
    """Write the frames with their detections, and a file of JSON lines beside them.

    A thread draws and encodes a batch while the next one is detected.

    Raises:
        VideoError: there are no frames.
    """
    count, began = 0, time.monotonic()

    def write_both(lines_path: Path) -> None:
        with open(lines_path, "w", encoding="utf-8") as lines:
            write_atomically(path, lambda file: write_frames(file, lines))

    def write_frames(file: Path, lines: TextIO) -> None:
        nonlocal count
        pending: Future[None] | None = None
        with VideoWriter(file, video) as writer, ThreadPoolExecutor(1) as thread:
            for batch in batches:
                if pending is not None:
                    pending.result()
                pending = thread.submit(write_batch, batch, writer, lines)
                count += len(batch)
            if pending is None:
                raise VideoError("; ".join(video.faults) or f"{video.name}: has no frames")
            pending.result()

    write_atomically(path.with_suffix(".jsonl"), write_both)
    rate = count / (time.monotonic() - began)
    late = f", {video.late} were left out to keep up with it" * bool(video.late)
    text = f"{path}: {count} frames of {video.name} at {rate:.1f} frames/s{late}"
    return VideoResult(text, [fault for fault in (*video.faults, video.damage) if fault])


def write_batch(
    batch: Sequence[tuple[LoadedImage, Detections]], writer: VideoWriter, lines: TextIO
) -> None:
    """Write the frames of a batch with their boxes, and a line of JSON for each."""
    for image, found in batch:
        seconds = image.time or Fraction(0)
        writer.write(found.draw(), seconds)
        line = {"frame": image.frame, "time": round(float(seconds), 6), "detections": rows(found)}
        lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def rows(found: Detections) -> list[dict[str, Any]]:
    """Detections of a frame, ready for JSON: ``box`` (xyxy), ``score``, ``label``, ``name``.

    Where objects are tracked, ``track_id`` too, which may be None.
    """
    result = [
        detection._asdict() | {"box": [round(side, 2) for side in detection.box]}
        for detection in found
    ]
    if found.track_ids is not None:
        for row, track in zip(result, found.track_ids.tolist(), strict=True):
            row["track_id"] = track if track >= 0 else None
    return result


def video_path(output: Path, video: Path) -> Path:
    """Name the annotated video of a video; two never share one."""
    is_plain = video.suffix == ".mp4" and Path(video.stem).suffix.lower() not in SUFFIXES
    name = video.stem if is_plain else video.name
    return output / video.parent / f"{name}_boxes.mp4"


def picture_path(output: Path, image: Path) -> Path:
    """Name the picture of an image in a folder of the output; two images never share one."""
    if image.suffix.lower() not in IMAGE_SUFFIXES:
        return output / image.parent / f"{image.name}_boxes.png"
    return output / image.parent / f"{image.stem}_boxes{image.suffix}"


def save_picture(detections: Detections, path: Path, image: Path | str) -> str:
    """Draw and write a picture; the reason where that cannot be done, else ""."""
    try:
        detections.save(path)
    except (OSError, ValueError) as error:  # ValueError: too large for its format
        reason = getattr(error, "strerror", None) or error
        return f"{without_password(str(image))}: its picture cannot be written to {path}: {reason}"
    return ""


def _wait(pictures: dict[int, Future[str]], done: list[FileResult]) -> None:
    for position, picture in pictures.items():
        done[position] = done[position]._replace(problem=picture.result())
    pictures.clear()
