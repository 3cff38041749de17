"""Prediction of many image files: a picture with boxes for each, and COCO results of all."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import PartialState
from accelerate.utils import gather_object

from sepc_zoo.data.images import IMAGE_SUFFIXES, ImageError, list_images
from sepc_zoo.data.resilient_loader import ResilientLoader
from sepc_zoo.errors import ConfigError
from sepc_zoo.inference.detections import Detections
from sepc_zoo.inference.loader import ImageFiles, detect_files, image_loader
from sepc_zoo.inference.predictor import ImageDetector, eval_mode
from sepc_zoo.inference.progress import progress_bar
from sepc_zoo.inference.tta import SINGLE_VIEW, Views

DETECTIONS_FILE = "detections.json"  # written by callers, beside the pictures
DRAWING_THREADS = 2  # writing a picture may take longer than detection
MAX_DEAD_WORKERS = 10


class FileResult(NamedTuple):
    """The result of one image file."""

    position: int  # index among all files
    rows: list[dict[str, Any]] | None  # COCO results; None: the file cannot be read
    text: str  # the detections with the highest scores
    problem: str = ""  # why the file cannot be read, or its picture not be written; names it


class ImageList(NamedTuple):
    """Image files, and the folder from which their results are named."""

    files: list[Path]
    base: Path

    def name(self, position: int) -> str:
        """The path of a file below the common folder, with slashes."""
        return self.files[position].relative_to(self.base).as_posix()


def find_images(
    sources: Sequence[str], recursive: bool = False, output: str | Path = ""
) -> ImageList:
    """List the image files that sources name, each once.

    Args:
        sources: files, folders, and patterns such as ``images/*.png`` or ``images/**/*.png``.
        recursive: also take the folders inside of folders.
        output: folder of results, which is left out.

    Raises:
        ImageError: there are none in one of the sources.
        ConfigError: the output would be written among the images.
    """
    found: dict[Path, None] = {}
    for source in sources:
        there = os.path.lexists(source)
        names = [source] if there else sorted(glob.glob(source, recursive=True))
        paths = [Path(os.path.abspath(name)) for name in names]
        if not there:  # a pattern may also fit labels
            paths = [p for p in paths if p.is_dir() or p.suffix.lower() in IMAGE_SUFFIXES]
        if not paths:
            raise ImageError(f"{source}: no such file or folder")
        files = [f for p in paths for f in _images_of(p, recursive, Path(output).resolve())]
        if not files:
            hint = "" if recursive else "; --recursive also looks into the folders inside of it"
            raise ImageError(f"{source}: no images in this folder{hint}")
        found |= dict.fromkeys(files)
    folders = [str(path.parent) for path in found]
    if len(sources) == 1 and os.path.isdir(sources[0]):
        folders = [os.path.abspath(sources[0])]
    base = Path(os.path.commonpath(folders))
    if base.resolve() == Path(output).resolve() and not os.path.isfile(sources[0]):
        raise ConfigError("--output is the folder of the images; choose another")
    return ImageList(list(found), base)


def _images_of(path: Path, recursive: bool, output: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    yield from list_images(path)
    inner = sorted(p for p in path.iterdir() if recursive and p.is_dir() and not p.is_symlink())
    for folder in inner:
        if folder.resolve() != output and not folder.name.startswith("."):
            yield from _images_of(folder, recursive, output)


def predict_files(
    model: ImageDetector,
    images: ImageList,
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
                done.append(FileResult(image.position, rows, detections.summary()))
            after_batch(len(done))
        _wait(pictures, done)
    return sorted(gather_object(done))


def picture_path(output: Path, image: Path) -> Path:
    """Name the picture of an image in a folder of the output; two images never share one."""
    suffix = image.suffix if image.suffix.lower() in IMAGE_SUFFIXES else ".png"
    return output / image.parent / f"{image.stem}_boxes{suffix}"


def save_picture(detections: Detections, path: Path, image: Path) -> str:
    """Draw and write a picture; the reason where that cannot be done, else ""."""
    try:
        detections.save(path)
    except (OSError, ValueError) as error:  # ValueError: too large for its format
        reason = getattr(error, "strerror", None) or error
        return f"{image}: its picture cannot be written to {path}: {reason}"
    return ""


def _wait(pictures: dict[int, Future[str]], done: list[FileResult]) -> None:
    for position, picture in pictures.items():
        done[position] = done[position]._replace(problem=picture.result())
    pictures.clear()
