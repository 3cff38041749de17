"""Problems of a data set, by file and entry: every image is decoded, every box checked.

Errors stop a training, at its start or later; warnings do not; notes are not faults.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import combinations, starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from sepc_zoo.data.annotations import Size, build_annotations, clip_box, size_problem
from sepc_zoo.data.formats.layout import matching_splits
from sepc_zoo.data.formats.reader import find_data
from sepc_zoo.data.images import list_images
from sepc_zoo.data.listing import ListedBox, ListedImages, Listing, find_duplicates
from sepc_zoo.data.problems import (
    CORRECTED,
    SEVERITIES,
    SEVERITY_OF,
    DataError,
    Kind,
    Problem,
    Severity,
    unreadable,
)
from sepc_zoo.data.quality.image_files import DecodedFile, inspect_image, picture_key

MAX_OVERHANG = 0.01  # pixels outside the image that are taken for rounding
MIN_SIDE = 1.0  # pixels; smaller boxes are taken for accidents
MAX_ELONGATION = 20.0  # long side over short side


class Finding(NamedTuple):
    """A problem of a split, and how serious it is there."""

    severity: Severity
    kind: Kind
    split: str  # "" for the whole data set
    where: str  # file, and line or entry
    text: str


@dataclass(frozen=True, eq=False)
class DataCheck:
    """A data set and its problems."""

    root: Path
    listings: Mapping[str, Listing]  # the listing of each split
    files: Mapping[Path, DecodedFile]
    joint: Mapping[str, list[str]]  # parts of splits that are unions of others (VOC's trainval)
    findings: tuple[Finding, ...]  # the worst first

    def has_errors(self) -> bool:
        return any(finding.severity == "error" for finding in self.findings)


Progress = Callable[..., Iterable[Any]]  # like tqdm: (iterable, total=, desc=, unit=)
NO_PROGRESS: Progress = partial(tqdm, disable=True)


def check_data(
    root: Path,
    splits: Sequence[str] | None = None,
    progress: Progress = NO_PROGRESS,
    format: str | None = None,
) -> DataCheck:
    """Read everything of a data set, decode all of its images, and list what is wrong.

    A broken file never stops the check. Memory holds one image per thread and all annotations.

    Args:
        splits: The splits to check, by default all, which is needed to find unused images.
        progress: Shows the progress; called and used like ``tqdm.tqdm``.

    Raises:
        DataError: an unknown layout, or no such split.
    """
    source = find_data(root, format)
    present = [*source.splits]
    for split in splits or ():
        if not matching_splits(split, present):
            raise unreadable(root, f"no split {split!r}; there are: {', '.join(present)}")
    listings: dict[str, Listing] = {}
    findings: list[Finding] = []
    for split in dict.fromkeys(splits or present):
        try:
            listings[split] = source.list(split)
        except DataError as error:
            findings += [_finding(split, problem) for problem in error.problems]
    paths = list(dict.fromkeys(i.path for listing in listings.values() for i in listing.images))
    with ThreadPoolExecutor() as pool:
        results = progress(
            pool.map(inspect_image, paths), total=len(paths), desc="check", unit=" images"
        )
        files = dict(zip(paths, results, strict=True))
    joint = _joint_splits(listings, files)
    for split in sorted(listings, key=joint.__contains__):  # a part is named before its union
        refused = _refused(listings[split], files)
        findings += [_finding(split, problem, "error") for problem in refused]
        found = _check_split(split, listings[split], files, {problem.kind for problem in refused})
        findings += [_finding(split, problem) for problem in found]
    findings += starmap(_finding, _check_across(listings, files, joint))
    if splits is None and not any(finding.kind == "unreadable annotations" for finding in findings):
        findings += [_finding("", problem) for problem in _unused_images(paths)]
    once: dict[tuple[str, str, str], Finding] = {}  # splits may share files
    for finding in findings:
        once.setdefault((finding.kind, finding.where, finding.text), finding)
    order = {kind: i for i, kind in enumerate(SEVERITY_OF)}
    worst_first = sorted(once.values(), key=lambda f: (SEVERITIES.index(f.severity), order[f.kind]))
    return DataCheck(root, listings, files, joint, tuple(worst_first))


def _joint_splits(
    listings: Mapping[str, Listing], files: Mapping[Path, DecodedFile]
) -> dict[str, list[str]]:
    pictures = {
        split: {picture_key(image.path, files) for image in listing.images}
        for split, listing in listings.items()
    }
    joint = {}
    for split, own in pictures.items():
        parts = [name for name, other in pictures.items() if other and other < own]
        if own and set().union(*(pictures[name] for name in parts)) == own:
            joint[split] = parts
    return joint


def find_train(splits: Iterable[str]) -> str | None:
    return min(matching_splits("train", [*splits]), key=len, default=None)


def names_alike(listings: Iterable[Listing]) -> list[Counter[str]]:
    """Group class names that differ in case or spaces only; count the boxes of each."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for listing in listings:
        for name, number in zip(listing.label_names, count_boxes(listing), strict=True):
            groups[" ".join(name.split()).casefold()][name] += number
    return [group for group in groups.values() if len(group) > 1]


def count_boxes(listing: Listing) -> Sequence[int]:
    """Number of boxes ``(K,)`` of each class."""
    labels = ListedImages.of(listing.images).boxes.labels
    return np.bincount(labels[labels >= 0], minlength=len(listing.label_names)).tolist()


def format_box(xyxy: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in xyxy) + ")"


def _finding(split: str, problem: Problem, severity: Severity | None = None) -> Finding:
    kind, where, text = problem
    return Finding(severity or SEVERITY_OF[kind], kind, split, where, text)


def _refused(listing: Listing, files: Mapping[Path, DecodedFile]) -> list[Problem]:
    """List what training refuses in a split: broken images, and what keeps it from starting."""
    paths = dict.fromkeys(image.path for image in listing.images)
    broken = {str(path): problem for path in paths if (problem := files[path].problem)}
    try:
        build_annotations(listing)
    except DataError as error:
        return [*broken.values(), *(p for p in error.problems if p.where not in broken)]
    return list(broken.values())


def _check_split(
    split: str, listing: Listing, files: Mapping[Path, DecodedFile], refused: Container[Kind]
) -> Iterator[Problem]:
    """List what training accepts; kinds that are ``refused`` are not reported again."""
    if not listing.images and "no images" not in refused:
        yield Problem("no images", listing.source, f"split {split!r} has no images")
    elif ListedImages.of(listing.images).boxes.iscrowd.all():
        yield Problem("no boxes", listing.source, f"no box of {split!r} is learned or counted")
    yield from (problem for problem in listing.problems if problem.kind in CORRECTED)
    if "image listed twice" not in refused:
        for path in find_duplicates(image.path for image in listing.images):
            yield Problem("image listed twice", str(path), f"is listed more than once in {split}")
    for image in listing.images:
        if not image.boxes:
            yield Problem("image without boxes", str(image.path), "has no boxes")
        file = files[image.path]
        if file.dark:
            yield Problem("dark image", str(image.path), file.dark)
        if file.size and file.stored and image.size not in (None, file.size):
            found = size_problem(image, file.size, file.stored)
            yield from [found] if found.kind in CORRECTED else []
        for _, _, problems in review_boxes(image.boxes, file.size):
            yield from problems
    for name, number in zip(listing.label_names, count_boxes(listing), strict=True):
        if not number:
            text = f"class {name!r} has no boxes in {split}"
            yield Problem("class without boxes", listing.source, text)


def review_boxes(
    boxes: Iterable[ListedBox], size: Size | None
) -> Iterator[tuple[ListedBox, ListedBox, list[Problem]]]:
    """Clip the boxes of an image; yield each as listed, as clipped, and its problems."""
    first: dict[Hashable, str] = {}
    for box in boxes:
        clipped = clip_box(box, size)
        if isinstance(clipped, Problem):
            yield box, box, [clipped]
            continue
        found = list(_describe_box(box, clipped, size))
        key = clipped.xyxy, box.category, box.iscrowd
        if (place := first.setdefault(key, box.where)) != box.where:
            found.append(("box twice", f"of category {box.category} is the same as {place}"))
        name = f"box {format_box(box.xyxy)}"
        yield box, clipped, [Problem(kind, box.where, f"{name} {text}") for kind, text in found]


def _describe_box(
    box: ListedBox, clipped: ListedBox, size: Size | None
) -> Iterator[tuple[Kind, str]]:
    beyond = max(abs(a - b) for a, b in zip(box.xyxy, clipped.xyxy, strict=True))
    x1, y1, x2, y2 = clipped.xyxy
    width, height = x2 - x1, y2 - y1
    if size and beyond > MAX_OVERHANG:
        text = f"sticks out of the {size[1]}x{size[0]} image by {beyond:.4g} pixels"
        yield "box over the border", text
    if min(width, height) <= MIN_SIDE:
        yield "box of a pixel or less", f"covers {width:.3g}x{height:.3g} pixels of its image"
    elif max(width, height) > MAX_ELONGATION * min(width, height):
        yield "elongated box", f"is {width:.4g} pixels wide and {height:.4g} high"


def _check_across(
    listings: Mapping[str, Listing], files: Mapping[Path, DecodedFile], joint: Container[str]
) -> Iterator[tuple[str, Problem]]:
    """List the problems between splits, each with its split."""
    for group in names_alike(listings.values()):
        sources = dict.fromkeys(
            listing.source for listing in listings.values() if group.keys() & {*listing.label_names}
        )
        names = ", ".join(f"{name!r} ({number} boxes)" for name, number in group.most_common())
        text = f"{names} differ in case or spaces only, and are classes of their own"
        yield "", Problem("class names alike", " and ".join(sources), text)
    if train := find_train(listings):
        for split, listing in listings.items():
            for name, number in zip(listing.label_names, count_boxes(listing), strict=True):
                if number and name not in listings[train].label_names:
                    text = f"{number} boxes are of class {name!r}, which {train} does not have"
                    yield split, Problem("class unknown to train", listing.source, text)
    parts = {split: listing for split, listing in listings.items() if split not in joint}
    yield from _check_pictures(parts, files)


def _check_pictures(
    listings: Mapping[str, Listing], files: Mapping[Path, DecodedFile]
) -> Iterator[tuple[str, Problem]]:
    copies: dict[Hashable, dict[str, list[Path]]] = defaultdict(dict)
    for split, listing in listings.items():
        for path in dict.fromkeys(image.path for image in listing.images):
            copies[picture_key(path, files)].setdefault(split, []).append(path)
    for by_split in copies.values():
        for split, (first, *others) in by_split.items():
            for path in others:
                text = f"shows the same pixels as {first}"
                yield split, Problem("picture twice in a split", str(path), text)
        for (split, (first, *_)), (other, (path, *_)) in combinations(by_split.items(), 2):
            text = f"is in {other} too" + (f", as {path}" if path != first else "")
            yield split, Problem("picture in two splits", str(first), text)


def _unused_images(paths: Sequence[Path]) -> Iterator[Problem]:
    used = {os.path.realpath(path) for path in paths}
    for folder in sorted({os.path.realpath(path.parent) for path in paths}):
        for path in list_images(folder) if os.path.isdir(folder) else ():
            if os.path.realpath(path) not in used:
                yield Problem("unused image", str(path), "no split lists this file")
