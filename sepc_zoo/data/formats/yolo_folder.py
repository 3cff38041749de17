"""Classes and splits of a folder in a YOLO layout, from YAML, Darknet's file or its folders."""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from sepc_zoo.data.formats.layout import ONLY_SPLIT, Finder, is_image, split_word, walk
from sepc_zoo.data.formats.parsing import parse_id, read_class_names, read_lines, read_text
from sepc_zoo.data.formats.yolo_labels import CLASS_FILES, label_places, may_be_labels
from sepc_zoo.data.problems import DataError, Problem, unreadable

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
YAML_SUFFIXES = (".yaml", ".yml")
DARKNET_FILE = "obj.data"  # Darknet's data.yaml; CVAT writes it
SPLITS = ("train", "val", "valid", "validation", "minival", "test")


class YoloFolder(NamedTuple):
    """The classes and splits that a folder's own files declare."""

    file: Path  # the file that names the classes
    names: dict[int, str]  # class names in the order of their numbers
    splits: dict[str, list[str]]  # folders of images, or text files that list images, as written
    bases: list[Path]  # folders to which these may be relative
    has_keypoints: bool = False  # whether keypoints follow each box


def describe(root: Path) -> YoloFolder | None:
    """Describe a folder, or a YAML file in its place; None for another layout."""
    is_yaml = root.is_file() and root.suffix.lower() in YAML_SUFFIXES
    if file := root if is_yaml else _find_yaml(root):
        return _describe_file(file, _read_yaml(file))
    if (file := root / DARKNET_FILE).is_file():
        pairs = (line.partition("=") for line in read_lines(file))
        return _describe_file(file, {key.strip(): value.strip() for key, _, value in pairs})
    return _describe_folders(root)


def _find_yaml(root: Path) -> Path | None:
    """Find the YAML file of a folder that has splits, by its usual names or any other."""
    usual = [root / name for name in YAML_FILES if (root / name).is_file()]
    others = sorted({p for suffix in YAML_SUFFIXES for p in root.glob(f"*{suffix}")} - {*usual})
    found = [file for file in usual if any(map(_read_yaml(file).get, SPLITS))]
    if not found:
        for file in others:
            with suppress(DataError):  # a file of another program
                content = _read_yaml(file)
                found += [file] if "names" in content and any(map(content.get, SPLITS)) else []
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise unreadable(root, f"could be any of: {names}; give the file instead of its folder")
    return found[0] if found else None


def _describe_file(path: Path, content: Mapping[str, Any]) -> YoloFolder:
    root = path.parent
    # Ultralytics looks for ``path`` in a folder of its settings; the data set may have been moved.
    bases = [root / str(content.get("path") or "."), root]
    bases = [base for base in dict.fromkeys(bases) if base.is_dir()]
    splits = {
        split: [*map(str, entry if isinstance(entry, list) else [entry])]
        for split in SPLITS
        if (entry := content.get(split))
    }
    if not splits:
        return YoloFolder(path, {}, {}, bases)
    number = None if content.get("nc") is None else parse_id(content["nc"])
    names = _parse_names(content.get("names"), number, path, bases)
    if number is not None and number != len(names):
        raise unreadable(path, f"nc is {number}, but there are {len(names)} names")
    return YoloFolder(path, names, splits, bases, "kpt_shape" in content)


def _describe_folders(root: Path) -> YoloFolder | None:
    """Describe a folder that has splits with labels, and a ``classes.txt`` in a usual place."""
    folders = {split: path for split, path in _split_folders(root).items() if _has_labels(path)}
    if not folders:
        return None
    finder = Finder([root])
    places = [root, finder.follow(root, ["labels"]) or root]
    for folder in folders.values():
        places += [*label_places(folder, finder), folder.parent]
    files = [finder.follow(p, [name]) for p in dict.fromkeys(places) for name in CLASS_FILES]
    names = {file: read_class_names(file) for file in files if file is not None}
    if not names:
        return None
    first, *others = names
    for file in others:
        if names[file] != names[first]:
            raise unreadable(file, f"has other classes than {first}")
    splits = {split: [str(folder.relative_to(root))] for split, folder in folders.items()}
    return YoloFolder(first, dict(enumerate(names[first])), splits, [root])


def _split_folders(root: Path) -> dict[str, Path]:
    """Find the images of each split of a folder without ``data.yaml``."""
    finder = Finder([root])
    home = finder.follow(root, ["images"]) or root
    folders = {}
    if home.is_dir() and not _has_images(home):
        for child in sorted(filter(Path.is_dir, home.iterdir())):
            folder = finder.follow(child, ["images"]) or child
            if _has_images(folder):
                folders[child.name] = folder
    return folders if any(map(split_word, folders)) else {ONLY_SPLIT: home}


def _has_images(folder: Path) -> bool:
    return any(map(is_image, os.listdir(folder)))


def _has_labels(folder: Path) -> bool:
    finder = Finder([])
    images = (place for place, names in walk(folder) if any(map(is_image, names)))
    places = {place for parent in images for place in label_places(parent, finder)}
    return any(may_be_labels(name) for place in places for name in finder.listing(place))


class _PlainLoader(yaml.SafeLoader):
    """Refuses aliases, with which a small file can describe an endless one."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read")
        return super().compose_node(parent, index)


def _read_yaml(path: Path) -> dict[str, Any]:
    text = read_text(path)
    try:
        content = yaml.load(text, _PlainLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: impossible date
        raise unreadable(path, f"not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise unreadable(path, "expected keys like 'train', 'val' and 'names'")
    return content


def _parse_names(names: Any, number: Any, path: Path, bases: Sequence[Path]) -> dict[int, str]:
    """Parse class names by number: a list, a dict or a file; by default the numbers themselves."""
    if names is None and isinstance(number, int):
        return {i: str(i) for i in range(number)}
    if isinstance(names, str):
        file = Finder(bases).find(names)
        if file is None or not file.is_file():
            text = f"there is no file {names!r}; names of classes are a list, [{names}]"
            raise unreadable(f"{path}: names", text)
        names = read_class_names(file)
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise unreadable(f"{path}: names", "expected a list or numbers with names")
    texts = []
    for key, name in names.items():
        if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
            texts.append(f"{key}: {name!r} is no text; put it in quotes")
        elif not re.fullmatch("[0-9]+", str(key)):
            texts.append(f"{key!r} is no class number")
    if texts:
        where = f"{path}: names"
        raise DataError([Problem("unreadable annotations", where, text) for text in texts])
    return dict(sorted((int(key), str(name)) for key, name in names.items()))
