"""What is wrong with a data set, by file and entry: every image is decoded, every box looked at.

Errors are what a training would refuse at its start or stumble over later; warnings are what it
would take as it is; notes are no faults.
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from sepc_zoo.data.annotations import (
    DataError,
    ListedImage,
    Listing,
    build_annotations,
    check_boxes,
    find_duplicates,
)
from sepc_zoo.data.formats.reader import find_format
from sepc_zoo.data.images import ImageError, check_image, list_images, read_image, read_size

ERROR, WARNING, NOTE = SEVERITIES = ("error", "warning", "note")

BORDER = 0.01  # pixels that a box may stick out by rounding
TINY = 1.0  # pixels of the shorter side of a box that is but a slip of the mouse
ELONGATED = 20.0  # long side over short side of a box worth a look

# In the order of a report.
KINDS = {
    "unreadable annotations": ERROR,
    "broken entry": ERROR,
    "duplicate id": ERROR,
    "shared label file": ERROR,
    "no images": ERROR,
    "missing image": ERROR,
    "broken image": ERROR,
    "size before EXIF rotation": ERROR,
    "wrong size": ERROR,
    "two classes of one name": ERROR,
    "unknown category": ERROR,
    "class unknown to train": ERROR,
    "box not finite": ERROR,
    "box without area": ERROR,
    "box outside the image": ERROR,
    "image listed twice": WARNING,
    "picture in two splits": WARNING,
    "picture twice in a split": WARNING,
    "class names alike": WARNING,
    "box over the border": WARNING,
    "box of a pixel or less": WARNING,
    "box twice": WARNING,
    "elongated box": NOTE,
    "class without boxes": NOTE,
    "image without boxes": NOTE,
    "unused image": NOTE,
}

# The kind of a problem that keeps a training from starting, by its words; else "broken entry".
REFUSED = (
    (r"the (image_)?id \S+ is there twice", "duplicate id"),
    (r"is there twice", "image listed twice"),
    (r"would have one label file", "shared label file"),
    (r"no image of this name|there is no image '", "missing image"),
    (r"annotated as .*the annotation has the size before it", "size before EXIF rotation"),
    (r"annotated as ", "wrong size"),
    (r"two classes are named ", "two classes of one name"),
    (r"category .* is not among the ", "unknown category"),
    (r"coordinates that are not finite", "box not finite"),
    (r"no positive width and height", "box without area"),
    (r"lies outside the|goes beyond 0", "box outside the image"),
    (r"the same as line", "box twice"),
)
# "instances_train.json: annotations[3] (id 4)", "labels/1.txt:7", "Annotations/1.xml: object 2"
PLACE = re.compile(
    r"(.+?(?:: (?:\w+\[\d+\](?: \(id .*?\))?|(?:object|row) \d+|images|categories|annotations))*)"
    r": (.*)",
    re.DOTALL,
)


class Finding(NamedTuple):
    """One thing that is wrong, or worth knowing."""

    severity: str
    kind: str
    split: str  # "": of the whole data set
    where: str  # file, and line or entry
    text: str


class ImageFile(NamedTuple):
    """What decoding an image file showed."""

    size: tuple[int, int] | None  # (height, width), upright; None: it cannot be decoded
    stored: tuple[int, int] | None  # before its EXIF rotation
    digest: bytes  # of the upright pixels
    problem: str = ""


@dataclass(frozen=True, eq=False)
class DataCheck:
    """A data set and what was found in it."""

    root: Path
    listings: Mapping[str, Listing]  # by split
    files: Mapping[Path, ImageFile]
    findings: tuple[Finding, ...]  # the worst first

    def has_errors(self) -> bool:
        return any(finding.severity == ERROR for finding in self.findings)


Progress = Callable[..., Iterable[Any]]  # like tqdm: (iterable, total=, desc=, unit=)


def no_progress(iterable: Iterable[Any], **_: Any) -> Iterable[Any]:
    return iterable


def check_data(
    root: Path,
    splits: Sequence[str] | None = None,
    progress: Progress = no_progress,
    format: str | None = None,
) -> DataCheck:
    """Read everything of a data set, decode all of its images, and list what is wrong.

    One broken file never stops it. Images are held one for each thread, annotations all together.

    Args:
        root: The data set, of any layout that ``find_format`` knows.
        splits: Which to check, all by default. Only with all of them can be told which images no
            split uses.
        progress: Shows how far it is; called and used like ``tqdm.tqdm``.
        format: As in ``read_data``.

    Raises:
        DataError: an unknown layout, or no such split.
    """
    listings, findings = _read_listings(root, splits, format)
    paths = list(dict.fromkeys(i.path for listing in listings.values() for i in listing.images))
    with ThreadPoolExecutor() as pool:
        results = progress(
            pool.map(inspect_image, paths), total=len(paths), desc="check", unit="image"
        )
        files = dict(zip(paths, results, strict=True))
    joint = joint_splits(listings, files)
    for split in sorted(listings, key=joint.__contains__):  # what both tell goes to the part
        findings += _check_split(split, listings[split], files)
    findings += _check_across(listings, files, joint)
    if splits is None and not any(finding.kind == "unreadable annotations" for finding in findings):
        findings += _unused_images(paths)
    once: dict[tuple[str, str, str], Finding] = {}  # in some layouts the splits share files
    for finding in findings:
        once.setdefault((finding.kind, finding.where, finding.text), finding)
    order = {kind: i for i, kind in enumerate(KINDS)}
    worst_first = sorted(once.values(), key=lambda f: (SEVERITIES.index(f.severity), order[f.kind]))
    return DataCheck(root, listings, files, tuple(worst_first))


def inspect_image(path: Path) -> ImageFile:
    """Decode an image file as training does, and digest its pixels."""
    try:
        check_image(path)
        size, stored = read_size(path), read_size(path, upright=False)
        pixels = read_image(path).contiguous().numpy()
    except ImageError as error:
        return ImageFile(None, None, b"", str(error).removeprefix(f"{path}: "))
    except Exception as error:  # whatever a decoder may raise: one bad file never stops the others
        return ImageFile(None, None, b"", f"{type(error).__name__}: {error}")
    digest = hashlib.blake2b(repr(size).encode(), digest_size=16)
    digest.update(pixels.data)
    return ImageFile(size, stored, digest.digest())


def picture_key(path: Path, files: Mapping[Path, ImageFile]) -> Hashable:
    """The same for the same picture: by its pixels, or its path if it cannot be decoded."""
    return files[path].digest or path


def joint_splits(
    listings: Mapping[str, Listing], files: Mapping[Path, ImageFile]
) -> dict[str, list[str]]:
    """The splits that are nothing but others together, as VOC's ``trainval``, with these."""
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
    """The split to train on, by its name."""
    return min((split for split in splits if split.startswith("train")), key=len, default=None)


def names_alike(listings: Iterable[Listing]) -> list[Counter[str]]:
    """Class names that differ in case or spaces only, each group with their numbers of boxes."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for listing in listings:
        counts = count_boxes(listing)
        for label, name in enumerate(listing.label_names):
            groups[" ".join(name.split()).casefold()][name] += counts[label]
    return [group for group in groups.values() if len(group) > 1]


def count_boxes(listing: Listing) -> Counter[int]:
    """The number of boxes by label, of those that have one."""
    return Counter(
        box.label for image in listing.images for box in image.boxes if box.label is not None
    )


def _read_listings(
    root: Path, splits: Sequence[str] | None, format: str | None
) -> tuple[dict[str, Listing], list[Finding]]:
    data_format = find_format(root, format)
    present = data_format.splits(root)
    for split in splits or ():
        if not any(name.startswith(split) for name in present):
            raise DataError([f"{root}: no split {split!r}; there are: {', '.join(present)}"])
    listings: dict[str, Listing] = {}
    findings: list[Finding] = []
    for split in dict.fromkeys(splits or present):
        try:
            listings[split] = data_format.list(root, split)
        except DataError as error:
            findings += [
                Finding(ERROR, "unreadable annotations", split, *split_place(problem, str(root)))
                for problem in error.problems
            ]
    return listings, findings


def split_place(problem: str, source: str) -> tuple[str, str]:
    """Where a problem is, and what it is; without a place it is in ``source``."""
    match = PLACE.fullmatch(problem)
    return (match[1], match[2]) if match else (source, problem)


def refused_kind(problem: str) -> str:
    """The kind of a problem for which a training is refused."""
    return next((kind for words, kind in REFUSED if re.search(words, problem)), "broken entry")


def _check_split(
    split: str, listing: Listing, files: Mapping[Path, ImageFile]
) -> Iterator[Finding]:
    images = {image.path: files[image.path] for image in listing.images}
    for path, file in images.items():
        if file.problem:
            kind = "broken image" if os.path.exists(path) else "missing image"
            yield Finding(ERROR, kind, split, str(path), file.problem)
    refused = [
        Finding(ERROR, refused_kind(problem), split, *split_place(problem, listing.source))
        for problem in _refused(listing)
    ]
    told = {str(path) for path, file in images.items() if file.problem}
    yield from (finding for finding in refused if finding.where not in told)
    if not listing.images:
        yield Finding(ERROR, "no images", split, listing.source, f"split {split!r} has no images")
    if all(finding.kind != "image listed twice" for finding in refused):
        for where in find_duplicates(str(image.path) for image in listing.images):
            text = f"is listed more than once in {split}"
            yield _finding("image listed twice", split, str(where), text)
    for image in listing.images:
        yield from _check_image(split, image, files[image.path].size)
    counts = count_boxes(listing)
    for label, name in enumerate(listing.label_names):
        if not counts[label]:
            text = f"class {name!r} has no boxes in {split}"
            yield _finding("class without boxes", split, listing.source, text)


def _finding(kind: str, split: str, where: str | Path, text: str) -> Finding:
    return Finding(KINDS[kind], kind, split, str(where), text)


def _refused(listing: Listing) -> Sequence[str]:
    """What keeps a training from starting with this split."""
    try:
        build_annotations(listing)
    except DataError as error:
        return error.problems
    return []


def _check_image(split: str, image: ListedImage, size: tuple[int, int] | None) -> Iterator[Finding]:
    """What a training takes as it is."""
    if not image.boxes:
        yield _finding("image without boxes", split, image.path, "has no boxes")
    first: dict[Hashable, str] = {}
    for box in image.boxes:
        told = first.setdefault((box.xyxy, box.category, box.iscrowd), box.where)
        for clipped in check_boxes([box], size, []):  # none for a box that is refused
            for kind, text in _describe_box(box.xyxy, clipped.xyxy, size):
                yield _finding(kind, split, box.where, f"box {format_box(box.xyxy)} {text}")
            if told != box.where:
                text = f"box {format_box(box.xyxy)} of category {box.category} is the same as"
                yield _finding("box twice", split, box.where, f"{text} {told}")


def _describe_box(
    box: Sequence[float], clipped: Sequence[float], size: tuple[int, int] | None
) -> Iterator[tuple[str, str]]:
    """What is odd about a box that a training takes: kind and text."""
    beyond = max(abs(a - b) for a, b in zip(box, clipped, strict=True))
    width, height = clipped[2] - clipped[0], clipped[3] - clipped[1]
    if size and beyond > BORDER:
        text = f"sticks out of the {size[1]}x{size[0]} image by {beyond:.4g} pixels"
        yield "box over the border", text
    if min(width, height) <= TINY:
        yield "box of a pixel or less", f"covers {width:.3g}x{height:.3g} pixels of its image"
    elif max(width, height) > ELONGATED * min(width, height):
        yield "elongated box", f"is {width:.4g} pixels wide and {height:.4g} high"


def format_box(xyxy: Sequence[float]) -> str:
    return "(" + ", ".join(f"{value:.6g}" for value in xyxy) + ")"


def _check_across(
    listings: Mapping[str, Listing], files: Mapping[Path, ImageFile], joint: Container[str]
) -> Iterator[Finding]:
    """What is wrong with the splits together."""
    for group in names_alike(listings.values()):
        sources = dict.fromkeys(
            listing.source for listing in listings.values() if group.keys() & {*listing.label_names}
        )
        names = ", ".join(f"{name!r} ({count} boxes)" for name, count in group.most_common())
        text = f"{names} differ in case or spaces only, and are classes of their own"
        yield _finding("class names alike", "", " and ".join(sources), text)
    yield from _unknown_to_train(listings)
    parts = {split: listing for split, listing in listings.items() if split not in joint}
    yield from _check_pictures(parts, files)


def _unknown_to_train(listings: Mapping[str, Listing]) -> Iterator[Finding]:
    train = find_train(listings)
    known = {*listings[train].label_names} if train else set()
    for split, listing in listings.items():
        for label, count in sorted(count_boxes(listing).items()) if train else ():
            if (name := listing.label_names[label]) not in known:
                text = f"{count} boxes are of class {name!r}, which {train} does not have"
                yield _finding("class unknown to train", split, listing.source, text)


def _check_pictures(
    listings: Mapping[str, Listing], files: Mapping[Path, ImageFile]
) -> Iterator[Finding]:
    """Pictures that are there more than once, by their pixels."""
    copies: dict[Hashable, dict[str, list[Path]]] = defaultdict(dict)
    for split, listing in listings.items():
        for path in dict.fromkeys(image.path for image in listing.images):
            copies[picture_key(path, files)].setdefault(split, []).append(path)
    for by_split in copies.values():
        for split, (first, *others) in by_split.items():
            for path in others:
                text = f"shows the same pixels as {first}"
                yield _finding("picture twice in a split", split, path, text)
        for (split, (first, *_)), (other, (path, *_)) in combinations(by_split.items(), 2):
            text = f"is in {other} too" + (f", as {path}" if path != first else "")
            yield _finding("picture in two splits", split, first, text)


def _unused_images(paths: Sequence[Path]) -> Iterator[Finding]:
    used = {os.path.realpath(path) for path in paths}
    for folder in sorted({os.path.realpath(path.parent) for path in paths}):
        for path in list_images(folder) if os.path.isdir(folder) else ():
            if os.path.realpath(path) not in used:
                yield _finding("unused image", "", path, "no split lists this file")
