"""Images to train and validate on: a data set's own splits, a held-out share, or a user's lists."""

import hashlib
import json
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from sepc_zoo.data.formats.layout import Source, choose_split, common_end, fold, matching_splits
from sepc_zoo.data.formats.parsing import read_paths
from sepc_zoo.data.formats.reader import as_sources, find_data, join_listings, list_data
from sepc_zoo.data.listing import ListedImage, ListedImages, Listing
from sepc_zoo.data.problems import DataError, Problem, unreadable
from sepc_zoo.files import write_atomically
from sepc_zoo.terminal import counted

VAL_SPLIT = "val"
DEFAULT_FRACTION = 0.2  # held out where a data set has no validation split
SPLIT_FILE = "split.csv"  # in a run's folder
RUN_SPLITS = ("train", "val")  # the splits in it
# A file and its split, each perhaps in quotes.
ROW = re.compile(r'(?P<a>"?)(?P<file>.*\S)(?P=a)\s*[,;\t ]\s*(?P<b>"?)(?P<split>[\w.-]+)(?P=b)')
HEADER = ("split", "set", "subset")
COPY = re.compile(r"\.rf\.[0-9a-zA-Z]+$")  # Roboflow's augmented copies of one image


class Division(NamedTuple):
    """The images to train and to validate on."""

    train: Listing
    val: Listing
    note: str = ""  # how they were divided, where they are not the data set's own splits


def divide(
    data: Source | Sequence[Source],
    train: str = "train",
    val: str = VAL_SPLIT,
    *,
    format: str | None = None,
    fraction: float | None = None,
    seed: int = 0,
    file: str | Path | None = None,
    whole: bool = True,
) -> Division:
    """List the images to train and to validate on, unchecked; ``data`` is as in ``read_data``.

    Args:
        train: Name of the split to train on.
        val: Name of the split to validate on. Without a split "val", ``DEFAULT_FRACTION`` of the
            training images are held out.
        fraction: Share of the training images to hold out, although there may be a split for it.
        file: Assigns the images to the splits instead; see ``read_assignment``.
        whole: Whether ``file`` lists images of all splits, or of ``train`` alone.

    Raises:
        DataError: a missing split, a file that does not fit, or too few images.
    """
    if file is not None:
        listing = _list_all(data, format) if whole else list_data(data, train, format)
        return _divide_by_file(listing, (train, val) if whole else RUN_SPLITS, Path(file))
    listing = list_data(data, train, format)
    has_own = val != VAL_SPLIT or has_split(data, val, format)
    if fraction is None and has_own:
        return Division(listing, list_data(data, val, format))
    share = fraction or DEFAULT_FRACTION
    held = hold_out(listing.images, share, seed)
    if not held:
        raise unreadable(listing.source, f"{len(listing.images)} images are too few to divide")
    parts = [_select(listing, [i for i in range(len(listing.images)) if i not in held])]
    parts += [_select(listing, sorted(held))._replace(problems=[])]  # reported with the others
    note = (
        f"{len(held)} of the {len(listing.images)} images of {train!r} are held out to validate on "
        f"(--val-fraction {share:g} --split-seed {seed})"
    )
    reason = "" if has_own else "the data has no validation split: "
    unused = f"; the split {val!r} is not used" * has_split(data, val, format)
    return Division(parts[0], parts[1], reason + note + unused)


def _select(listing: Listing, indices: Sequence[int]) -> Listing:
    return listing._replace(images=ListedImages.of(listing.images).take(indices))


def has_split(data: Source | Sequence[Source], split: str, format: str | None = None) -> bool:
    sources = (find_data(source, format) for source in as_sources(data))
    return any(matching_splits(split, [*source.splits]) for source in sources)


def hold_out(images: Sequence[ListedImage], fraction: float, seed: int) -> set[int]:
    """Choose indices of about ``fraction`` of the images, with that share of every class.

    Images with equal files, and Roboflow's copies of one image, stay together. The choice depends
    on the files' names, not on their order or folder.
    """
    images = ListedImages.of(images)
    groups = group_equal([file.path for file in images.files])
    labels: dict[int, set[Hashable]] = defaultdict(set)
    is_object = images.boxes.iscrowd == 0
    owners, own = images.image[is_object].tolist(), images.boxes.labels[is_object].tolist()
    for i, label in zip(owners, own, strict=True):
        labels[i].add(label)
    classes = [set[Hashable]().union(*(labels[i] for i in group)) or {None} for group in groups]
    names = [min(os.fsencode(images.files[i].path.name) for i in group) for group in groups]
    keys = [hashlib.sha256(f"{seed}:".encode() + name).digest() for name in names]
    order = sorted(range(len(groups)), key=keys.__getitem__)
    chosen = stratify([(classes[g], len(groups[g])) for g in order], fraction)
    return {i for place in chosen for i in groups[order[place]]}


def stratify(groups: Sequence[tuple[Iterable[Hashable], int]], fraction: float) -> set[int]:
    """Choose groups, given by classes and size, with that share of the images of each class.

    Rare classes are served first, as they have the least choice (Sechidis et al., "On the
    stratification of multi-label data", 2011). At least one group is chosen, and one is not.
    """
    total: Counter[Hashable] = Counter()
    members: dict[Hashable, list[int]] = defaultdict(list)
    for i, (classes, size) in enumerate(groups):
        for name in set(classes):
            total[name] += size
            members[name].append(i)
    chosen: set[int] = set()
    decided: set[int] = set()
    held: Counter[Hashable] = Counter()
    for name in sorted(members, key=lambda name: (total[name], str(name))):
        wanted = min(math.floor(fraction * total[name] + 0.5), total[name] - 1)
        for i in members[name]:
            classes, size = groups[i]
            if i not in decided and held[name] + size <= wanted:
                chosen.add(i)
                held.update(dict.fromkeys(classes, size))
            decided.add(i)
    if not chosen and len(groups) > 1:
        chosen = {min(range(len(groups)), key=lambda i: groups[i][1])}
    return chosen if len(chosen) < len(groups) else set()


def group_equal(paths: Sequence[Path]) -> list[list[int]]:
    """Group the indices of equal files; only files of one length are read."""
    lengths = [os.path.getsize(path) if os.path.exists(path) else -1 for path in paths]
    several = {length for length, count in Counter(lengths).items() if count > 1}
    group_of: dict[Hashable, list[int]] = {}
    groups: list[list[int]] = []
    for i, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        keys: list[Hashable] = [path]
        if length in several and length >= 0:
            keys.append(hashlib.blake2b(path.read_bytes()).digest())
        if COPY.search(path.stem):
            keys.append(COPY.sub("", path.stem))
        group = next((group_of[key] for key in keys if key in group_of), None)
        if group is None:
            groups.append(group := [])
        group.append(i)
        for key in keys:
            group_of.setdefault(key, group)
    return groups


# --------------------------------------------------------------------------------- user's lists


def write_assignment(path: Path, splits: Mapping[str, Iterable[Path]]) -> None:
    """Write the split of each image to a file that ``read_assignment`` reads."""
    rows = [f"{os.path.abspath(file)},{split}" for split, files in splits.items() for file in files]
    content = "\n".join(["file,split", *rows, ""]).encode("utf-8", "surrogateescape")
    write_atomically(path, lambda file: file.write_bytes(content))


def read_assignment(path: Path) -> list[tuple[str, str]]:
    """Read pairs of an image and its split.

    The file has a line for each image, its name and its split with a comma, tab or space between;
    or it is JSON, a list of names by split.

    Raises:
        DataError: the file cannot be read, or a line has no split.
    """
    lines = read_paths(path)
    if path.suffix == ".json":
        try:
            content = json.loads("\n".join(lines))
            return [(str(name), split) for split, names in content.items() for name in names]
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise unreadable(path, f"expected a list of images by split: {error}") from error
    pairs = []
    for i, line in enumerate(lines, start=1):
        match = ROW.fullmatch(line)
        if line and match is None:
            raise unreadable(f"{path}:{i}", "expected an image and its split, as in: 1.jpg,train")
        if match and not (i == 1 and match["split"].lower() in HEADER):
            pairs.append((match["file"], match["split"]))
    return pairs


def _divide_by_file(listing: Listing, splits: Sequence[str], file: Path) -> Division:
    pairs = read_assignment(file)
    names = sorted({split for _, split in pairs})
    chosen = [choose_split(split, names, file) for split in splits]
    split_of, problems = _assign(pairs, ListedImages.of(listing.images).files, file)
    if problems:
        raise DataError(problems)
    parts = [_select(listing, sorted(i for i in split_of if split_of[i] == s)) for s in chosen]
    numbers = " and ".join(counted(len(part.images), "image") for part in parts)
    rest = len(listing.images) - len(split_of)
    note = f"{numbers} to train and validate on are those of {file}"
    note += f"; {rest} images are not in it and left out" if rest else ""
    return Division(parts[0], parts[1]._replace(problems=[]), note)


def _list_all(data: Source | Sequence[Source], format: str | None) -> Listing:
    listings, sources = [], []
    for source in as_sources(data):
        found = find_data(source, format)
        for split in found.splits:
            listings.append(found.list(split))
            sources.append(source)
    if len(listings) == 1:
        return listings[0]
    together = join_listings(listings, sources)
    unique = {image.path: image for image in reversed(together.images)}  # VOC's trainval has both
    return together._replace(images=[*reversed(unique.values())])


def _assign(
    pairs: Iterable[tuple[str, str]], images: Sequence[ListedImage], file: Path
) -> tuple[dict[int, str], list[Problem]]:
    """Find the image of each pair by the longest end of its path."""
    by_name: dict[str, list[int]] = defaultdict(list)
    for i, image in enumerate(images):
        for name in {image.path.name, image.path.stem}:
            by_name[fold(name)].append(i)
    split_of: dict[int, str] = {}
    problems = []
    for name, split in pairs:
        parts = name.replace("\\", "/").split("/")
        alike = by_name.get(fold(parts[-1]), [])
        ranks = [common_end(parts[:-1], images[i].path.parent.parts) for i in alike]
        best = [i for i, rank in zip(alike, ranks, strict=True) if rank == max(ranks)]
        if len(best) != 1:
            text = f"{len(best)} images of the data are named {name!r}"
            text += "; write more of its path" if best else ""
            problems.append(Problem("missing image", str(file), text))
        elif split_of.setdefault(best[0], split) != split:
            text = f"{name!r} is in {split_of[best[0]]} and in {split}"
            problems.append(Problem("image listed twice", str(file), text))
    return split_of, problems
