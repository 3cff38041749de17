"""A clean copy of a data set, in the COCO layout; the original is not changed."""

import os
import re
import shutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import NamedTuple

from sepc_zoo.data.annotations import Size, build_annotations, fit, size_problem, size_text
from sepc_zoo.data.formats.coco import write_coco
from sepc_zoo.data.formats.layout import fold, split_word
from sepc_zoo.data.images import read_orientation
from sepc_zoo.data.listing import (
    ListedBox,
    ListedImage,
    Listing,
    relabel,
    unique_ids,
    unite_classes,
)
from sepc_zoo.data.problems import BAD_BOXES, Kind, unreadable
from sepc_zoo.data.quality.check import (
    NO_PROGRESS,
    DataCheck,
    Progress,
    count_boxes,
    format_box,
    names_alike,
    review_boxes,
)
from sepc_zoo.data.quality.image_files import DecodedFile, picture_key
from sepc_zoo.files import new_folder, write_csv

RESOLVED: dict[Kind, str] = {  # how problems are solved without leaving anything out
    "duplicate id": "the ids were given anew",
    "annotation id twice": "the ids were given anew",
    "ids given anew": "the ids were given anew",
    "corners swapped": "sorted",
    "two classes of one name": "the classes were joined",
    "image listed twice": "taken once",
    "shared label file": "both images kept the boxes",
    "no label files": "the images were taken",
}
LEFT_OUT: frozenset[Kind] = BAD_BOXES | {"box of a pixel or less"}
LOST: dict[Kind, str] = {  # what the copy lacks
    "unreadable annotations": "split left out",
    "unused image": "file not taken over",
}

Note = Callable[[object, str], None]  # place and text of a change


class Change(NamedTuple):
    """One difference between the copy and the original."""

    split: str
    where: str  # file, and line or entry, of the original
    text: str


def write_clean_copy(
    check: DataCheck,
    target: Path,
    link: bool = False,
    progress: Progress = NO_PROGRESS,
    edit: Callable[[dict[str, Listing]], dict[str, Listing]] = lambda listings: listings,
) -> list[Change]:
    """Write the usable part of a checked data set as COCO; return the rows of ``changes.csv``.

    Broken images, boxes and entries are left out. Boxes are clipped to their images, and turned if
    their image is annotated as before its EXIF rotation. A picture in two splits stays in the one
    to test or validate on. Class names that differ in case or spaces only become the most frequent
    of them. All splits get the same classes. Masks, keypoints and licences are not copied.

    Args:
        check: The check of all splits that the copy shall have.
        target: The folder to make; it appears complete or not at all.
        link: Hard-link the image files instead of copying them, where the disk allows it.
        edit: Changes the clean listings, by split, before they are written.

    Raises:
        FileExistsError: ``target`` is there already.
        DataError: ``target`` is inside the data set, or nothing is left.
    """
    if is_inside(target, check.root):
        raise unreadable(target, "is inside the data set itself; choose another folder")
    changes: list[Change] = []
    listings = clean_listings(check, changes)
    if not listings:
        raise unreadable(check.root, "no image is left to write")
    listings = edit(listings)
    with new_folder(target) as folder:
        for split, listing in listings.items():
            copied = _copy_images(listing, folder / split, link, progress, _noting(split, changes))
            annotations = build_annotations(copied)  # runs the checks of training
            write_coco(annotations, folder / "annotations" / f"instances_{split}.json")
        write_csv(folder / "changes.csv", Change._fields, changes)
    return changes


def is_inside(path: Path, root: Path) -> bool:
    """Whether a path is the data set's folder or somewhere in it."""
    folder = root if root.is_dir() else root.parent
    return path.resolve().is_relative_to(folder.resolve())


def clean_listings(check: DataCheck, changes: list[Change]) -> dict[str, Listing]:
    """Clean all splits; append the differences to ``changes``."""
    for _, kind, split, where, text in check.findings:
        if kind in LOST:
            changes.append(Change(split, where, f"{LOST[kind]}: {text}"))
    notes = {split: _noting(split, changes) for split in check.listings}
    listings = {}
    for split, listing in check.listings.items():
        if parts := check.joint.get(split):
            notes[split](listing.source, f"split left out: it is {' and '.join(parts)} together")
        else:
            listings[split] = clean_listing(listing, check.files, notes[split])
    listings = _separate_splits(listings, check.files, notes)
    for split in [split for split, listing in listings.items() if not listing.images]:
        notes[split](listings.pop(split).source, "split left out: no image is left")
    return _share_classes(listings, notes)


def _noting(split: str, changes: list[Change]) -> Note:
    return lambda where, text: changes.append(Change(split, str(where), text))


def clean_listing(
    listing: Listing, files: Mapping[Path, DecodedFile], note: Note = lambda *_: None
) -> Listing:
    """Clean one split; ``note`` is called with place and text of each difference."""
    images: dict[Path, ListedImage] = {}
    for image in listing.images:
        first = images.setdefault(image.path, image)
        if first is not image:
            text = f"listed again: its {len(image.boxes)} boxes joined those of the first time"
            note(image.path, text)
            images[image.path] = first._replace(boxes=first.boxes + image.boxes)
    for kind, where, text in listing.problems:
        if kind != "image listed twice" or len(images) == len(listing.images):  # noted above
            note(where, f"{RESOLVED.get(kind, 'not taken over')}: {text}")
    cleaned = (_clean_image(image, files[path], note) for path, image in images.items())
    return listing._replace(images=[image for image in cleaned if image], problems=[])


def _clean_image(image: ListedImage, file: DecodedFile, note: Note) -> ListedImage | None:
    """Clean an image and its boxes; None where the image is left out."""
    lost = f"image with {len(image.boxes)} boxes left out"
    if file.size is None or file.stored is None:
        note(image.path, f"{lost}: {file.problem.text if file.problem else ''}")
        return None
    if image.size not in (None, file.size):
        text = f"annotated as {size_text(image.size)}, but the file is {size_text(file.size)}"
        if size_problem(image, file.size, file.stored).kind == "wrong size" and image.boxes:
            note(image.path, f"{lost}: {text}")
            return None
        boxes = _turn_boxes(image, file.stored, file.size)
        turned = f", its {len(boxes)} boxes turned with it" if boxes != image.boxes else ""
        note(image.path, f"size corrected{turned}: {text}")
        image = image._replace(boxes=boxes)
    return image._replace(size=file.size, boxes=_clean_boxes(image.boxes, file.size, note))


def _turn_boxes(image: ListedImage, stored: Size, upright: Size) -> list[ListedBox]:
    """Turn the boxes of an image that is annotated as stored, so that they fit the upright image.

    Boxes that fit into the upright image alone are not turned.
    """
    boxes = image.boxes
    if image.size != stored or (fit(boxes, upright) and not fit(boxes, stored)):
        return boxes
    orientation = read_orientation(image.path)
    return [b._replace(xyxy=turn_box(b.xyxy, orientation, stored), bbox=None) for b in boxes]


def turn_box(xyxy: Sequence[float], orientation: int, stored: Size) -> tuple[float, ...]:
    """Turn a box of an image as stored into the upright image; ``orientation`` is EXIF's 5...8."""
    x1, y1, x2, y2 = xyxy
    height, width = stored
    if orientation in (6, 7):
        y1, y2 = height - y2, height - y1
    if orientation in (7, 8):
        x1, x2 = width - x2, width - x1
    return y1, x1, y2, x2


def _clean_boxes(boxes: Sequence[ListedBox], size: Size, note: Note) -> list[ListedBox]:
    kept = []
    for box, clipped, problems in review_boxes(boxes, size):
        texts = {problem.kind: problem.text for problem in problems}
        reason = next((text for kind, text in texts.items() if kind in LEFT_OUT), "")
        if box.label is None:
            reason = f"there is no category {box.category}"
        if reason:
            note(box.where, f"box left out: {reason}")
            continue
        if "box over the border" in texts:
            text = f"box {format_box(box.xyxy)} clipped to its image: {format_box(clipped.xyxy)}"
            note(box.where, text)
        if clipped.xyxy != box.xyxy:
            x1, y1, x2, y2 = clipped.xyxy
            area = min(box.area, (x2 - x1) * (y2 - y1))
            box = box._replace(xyxy=clipped.xyxy, area=area, bbox=None)
        kept.append(box)
    return kept


def _separate_splits(
    listings: Mapping[str, Listing], files: Mapping[Path, DecodedFile], notes: Mapping[str, Note]
) -> dict[str, Listing]:
    """Keep every picture in one split only: preferably one to evaluate on, train last."""

    def rank(split: str) -> tuple[bool, ...]:  # test, val, others, train
        word = split_word(split) or fold(split)
        return not word.startswith("test"), not word.startswith("val"), word.startswith("train")

    keeper: dict[Hashable, tuple[str, Path]] = {}
    separated = dict(listings)
    for split in sorted(listings, key=rank):
        images = []
        for image in listings[split].images:
            own = split, image.path
            other, path = keeper.setdefault(picture_key(image.path, files), own)
            if other == split:
                images.append(image)
            else:
                text = f"image with {len(image.boxes)} boxes left out: it is in {other} too"
                notes[split](image.path, text + (f", as {path}" if path != image.path else ""))
        separated[split] = separated[split]._replace(images=images)
    return separated


def _share_classes(
    listings: Mapping[str, Listing], notes: Mapping[str, Note]
) -> dict[str, Listing]:
    """Give all splits the same classes, by rising id; join names that are alike."""
    groups = names_alike(listings.values())
    spelling = {name: group.most_common(1)[0][0] for group in groups for name in group}
    renamed = {}
    for split, listing in listings.items():
        names = [spelling.get(name, name) for name in listing.label_names]
        for name, new, number in zip(listing.label_names, names, count_boxes(listing), strict=True):
            if new != name:
                text = f"class {name!r} of {number} boxes became {new!r}"
                notes[split](listing.source, text)
        renamed[split] = listing._replace(label_names=names)
    id_of = unite_classes(renamed.values())
    names = sorted(id_of, key=id_of.__getitem__)
    ids = [id_of[name] for name in names]
    for split, listing in renamed.items():
        note = partial(notes[split], listing.source)
        for name, old in zip(listing.label_names, listing.category_ids, strict=True):
            if old not in (None, id_of[name]):
                note(f"category id {old} ({name!r}) became {id_of[name]}")
        for name in names:
            if name not in listing.label_names:
                note(f"class {name!r} added, as another split has it")
        renamed[split] = relabel(listing, names)._replace(category_ids=ids, problems=[])
    return renamed


def _copy_images(
    listing: Listing, folder: Path, link: bool, progress: Progress, note: Note
) -> Listing:
    """Copy the image files of a split to ``folder``, each with a name and an id of its own."""
    folder.mkdir(parents=True)
    id_of = unique_ids({image.path: image.image_id for image in listing.images})
    used: set[str] = set()
    images = []
    for image in progress(listing.images, desc=folder.name, unit=" images"):
        new = image._replace(image_id=id_of[image.path], path=folder / _free_name(image.path, used))
        if new.image_id != image.image_id:
            note(image.path, f"image id {image.image_id} became {new.image_id}")
        if new.path.name != image.path.name:
            note(image.path, f"file name became {new.path.name}")
        _copy(image.path, new.path, link)
        images.append(new)
    return listing._replace(images=images)


def _free_name(path: Path, used: set[str]) -> str:
    """Find a file name that JSON can hold and that no other file has, in any case."""
    stem, suffix = (re.sub("[\ud800-\udfff]", "_", part) for part in (path.stem, path.suffix))
    others = (f"{stem}_{i}{suffix}" for i in count(2))
    name = next(name for name in chain([stem + suffix], others) if name.casefold() not in used)
    used.add(name.casefold())
    return name


def _copy(source: Path, target: Path, link: bool) -> None:
    if link:
        with suppress(OSError):  # another disk, or one without hard links
            os.link(source.resolve(), target)
            return
    shutil.copyfile(source, target)
