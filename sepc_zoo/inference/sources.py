"""The files, addresses and cameras that a user names to predict on."""

import glob
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sepc_zoo.data.images import IMAGE_SUFFIXES, ImageError, list_images
from sepc_zoo.errors import ConfigError
from sepc_zoo.inference.preprocess import without_password
from sepc_zoo.inference.video import VIDEO_SUFFIXES, is_address, is_camera, is_video

SUFFIXES = IMAGE_SUFFIXES + VIDEO_SUFFIXES
MAX_NAME = 100  # letters of a file name that is made from an address


@dataclass(frozen=True)
class FileList:
    """Files, URLs and cameras; results are named by the paths of files below ``base``."""

    files: list[Any]  # Path, URL or index of a camera
    base: Path

    def name(self, position: int) -> str:
        """Build the name of a result: the path of a file below ``base``, else a flat name."""
        file = self.files[position]
        if isinstance(file, Path):
            return file.relative_to(self.base).as_posix()
        if isinstance(file, int):
            return f"camera_{file}"
        text = without_password(file)
        name = re.sub(r"[^\w.-]+", "_", text.partition("://")[2] or text)[-MAX_NAME:].strip("_.")
        return f"{position + 1}_{name}" if self._counts[text] > 1 else name

    @cached_property
    def _counts(self) -> Counter[str]:
        """Count the files that are the same without passwords and queries."""
        return Counter(without_password(str(file)) for file in self.files)

    def split(self) -> "tuple[FileList, FileList]":
        """Split into images, and videos, cameras or streams."""
        is_one = {file: is_video(file) for file in self.files}
        images, videos = ([f for f, one in is_one.items() if one == kind] for kind in (False, True))
        return replace(self, files=images), replace(self, files=videos)


def find_files(
    sources: Sequence[str], recursive: bool = False, output: str | Path = ""
) -> FileList:
    """List the images, videos and cameras that sources name, each once.

    Args:
        sources: files, folders, patterns such as ``images/*.png`` or ``images/**/*.png``, URLs,
            and cameras as index or device.
        recursive: also take the folders inside of folders.
        output: folder of results, which is not searched.

    Raises:
        ImageError: a source has none.
        ConfigError: the output would be written among the images.
    """
    folder = Path(output).resolve()
    found = [file for source in sources for file in _files_of(source, recursive, folder)]
    paths = [path for path in found if isinstance(path, Path)]
    folders = [str(path.parent) for path in paths]
    if len(sources) == 1 and os.path.isdir(sources[0]):
        folders = [os.path.abspath(sources[0])]
    base = Path(os.path.commonpath(folders) if folders else "")
    named = {Path(os.path.abspath(source)) for source in sources}
    if folders and base.resolve() == folder and not named.issuperset(paths):
        raise ConfigError("--output is the folder of the images; choose another")
    return FileList(list(dict.fromkeys(found)), base)


def _files_of(source: str, recursive: bool, output: Path) -> list[Path | str | int]:
    there = os.path.lexists(source)
    if source.isdecimal() and not there:
        return [int(source)]
    if is_address(source) or is_camera(source):
        return [source]
    names = [source] if there else sorted(glob.glob(source, recursive=True))
    paths = [Path(os.path.abspath(name)) for name in names]
    if not there:  # a pattern may also fit labels
        paths = [p for p in paths if p.is_dir() or p.suffix.lower() in SUFFIXES]
    if not paths:
        raise ImageError(f"{source}: no such file or folder")
    files = [file for path in paths for file in _images_of(path, recursive, output)]
    if not files:
        hint = "" if recursive else "; --recursive also looks into the folders inside of it"
        raise ImageError(f"{source}: no images or videos in this folder{hint}")
    return [*files]


def _images_of(path: Path, recursive: bool, output: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    yield from list_images(path, SUFFIXES)
    inner = sorted(p for p in path.iterdir() if recursive and p.is_dir() and not p.is_symlink())
    for folder in inner:
        if folder.resolve() != output and not folder.name.startswith("."):
            yield from _images_of(folder, recursive, output)
