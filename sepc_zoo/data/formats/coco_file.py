"""The tables of a COCO instances file: images and categories as dicts, boxes as columns."""

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, compress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from sepc_zoo.data.formats.coco_columns import NO_ID, BoxColumns, read_in_windows
from sepc_zoo.data.formats.layout import report_duplicates
from sepc_zoo.data.formats.parsing import parse_box, parse_id
from sepc_zoo.data.listing import ListedBox, ListedImage, ListedImages
from sepc_zoo.data.problems import Kind, Problem, unreadable

ID = int | float | str  # as ``parse_id`` takes it
KEYS: dict[str, dict[str, Any]] = {
    "images": {"id": ID, "file_name": str},
    "categories": {"id": ID, "name": str},
    "annotations": {"image_id": ID, "category_id": ID},
}

Entry = tuple[str, dict[str, Any]]  # place, for messages, and content


class CocoFile:
    """A COCO instances file; what is wrong with it is added to ``problems``.

    A file that is none raises a DataError.
    """

    def __init__(self, path: Path, problems: list[Problem]) -> None:
        self.path, self.problems = path, problems
        self.columns = BoxColumns()
        try:
            with path.open("rb") as file:
                self.tables = read_in_windows(file, self.columns)
        except OSError as error:
            raise unreadable(path, error.strerror) from error
        except (ValueError, RecursionError, msgspec.MsgspecError):
            # The standard library takes more, and says what is wrong.
            self.tables = self._load(path.read_bytes())
            if not isinstance(self.tables, dict):
                text = "not a COCO instances file, which is a JSON object"
                raise unreadable(path, text) from None
            self.columns = BoxColumns()
            if isinstance(entries := self.tables.get("annotations"), list):
                self.columns.read(entries)

    def entries(self, table: str) -> Iterator[Entry]:
        """List the well-formed entries of a table, with their places; the others are problems."""
        ids = []
        for i, raw in enumerate(self._find(table)):
            if entry := self._check(raw, table, i):
                ids.append(entry[1]["id"])
                yield entry
        self._report_duplicates(ids, table)

    @cached_property
    def others(self) -> list[tuple[int, Entry]]:
        """The well-formed annotations that are not in columns, with their indices."""
        self._find("annotations")
        raw, self.columns.others = self.columns.others, {}
        checked = ((i, self._check(entry, "annotations", i)) for i, entry in raw.items())
        return [(i, entry) for i, entry in checked if entry]

    def used_categories(self) -> set[int | str]:
        used = np.unique(np.array(self.columns.integers[3::5], dtype=np.int64)).tolist()
        return {*used, *(annotation["category_id"] for _, (_, annotation) in self.others)}

    def boxes(
        self, listed: Mapping[int | str, list[ListedImage]], categories: Sequence[Mapping[str, Any]]
    ) -> ListedImages:
        """Give the boxes to their images.

        Args:
            listed: The images of each id. The boxes are expected with the first; if there are
                others, all are left out, because the image of the boxes is unknown.
            categories: In the order of labels. A box of an id with several names has no class.
        """
        names: dict[int | str, set[str]] = {}
        for category in categories:
            names.setdefault(category["id"], set()).add(category["name"])
        label_of = {c["id"]: i for i, c in enumerate(categories) if len(names[c["id"]]) == 1}
        texts = {i: f"{i} ({' or '.join(map(repr, sorted(own)))})" for i, own in names.items()}
        starts = accumulate(map(len, listed.values()), initial=0)
        image_of = dict(zip(listed, starts, strict=False))

        integers = np.frombuffer(self.columns.integers, dtype=np.int64).reshape(-1, 5)
        floats = np.frombuffer(self.columns.floats, dtype=np.float64).reshape(-1, 5)
        image = look_up(integers[:, 2], image_of)
        for row in np.flatnonzero(image < 0).tolist():
            self._report_no_image(self._place(*integers[row, :2].tolist()), integers[row, 2])
        others = list(self._parse_others(image_of, label_of, texts))
        more = ListedImages.of([ListedImage(0, self.path, None, [box for _, _, box in others])])
        files = [file for same_id in listed.values() for file in same_id]

        image = np.append(image, [i for _, i, _ in others]).astype(np.int64)
        is_clear = self._find_clear(listed, np.bincount(image[image >= 0], minlength=len(files)))
        order = np.lexsort((np.append(integers[:, 0], [i for i, _, _ in others]), image))
        order = order[(image[order] >= 0) & is_clear[image[order]]]
        counts = np.bincount(image[order], minlength=len(files))[is_clear]
        bbox = np.concatenate([floats[:, :4], more.bbox])[order]
        xyxy = np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1)
        is_other = order >= len(integers)
        xyxy[is_other] = more.xyxy[order[is_other] - len(integers)]
        area = np.append(floats[:, 4], more.area)[order]
        iscrowd = np.append(integers[:, 4], more.iscrowd)[order]
        labels = np.append(look_up(integers[:, 3], label_of), more.labels)[order]
        places, category_ids, usual = integers[:, :2].copy(), integers[:, 3].copy(), len(integers)

        def make_box(row: int) -> ListedBox:
            if (i := int(order[row])) >= usual:
                return others[i - usual][2]
            x1, y1, x2, y2 = xyxy[row].tolist()
            x, y, width, height = bbox[row].tolist()
            return ListedBox(
                self._place(*places[i].tolist()),
                (x1, y1, x2, y2),
                label_of.get(category_id := int(category_ids[i])),
                texts.get(category_id, str(category_id)),
                int(iscrowd[row]),
                float(area[row]),
                (x, y, width, height),
            )

        self.columns, self.others = BoxColumns(), []  # frees memory
        images = list(compress(files, is_clear))
        return ListedImages(images, counts, xyxy, labels, iscrowd, area, bbox, make_box)

    def _parse_others(
        self, image_of: Mapping[Any, int], label_of: Mapping[Any, int], texts: Mapping[Any, str]
    ) -> Iterator[tuple[int, int, ListedBox]]:
        """Parse what is not in columns: index of the entry, index of the image, box."""
        for i, (where, annotation) in self.others:
            image_id, category_id = annotation["image_id"], annotation["category_id"]
            if image_id not in image_of:
                self._report_no_image(where, image_id)
                continue
            text = texts.get(category_id, str(category_id))
            box = parse_box(where, annotation, label_of.get(category_id), text)
            if isinstance(box, Problem):
                self.problems.append(box)
            else:
                yield i, image_of[image_id], box
        ids = [parse_id(entry["id"]) for _, (_, entry) in self.others if "id" in entry]
        own_ids = np.array(self.columns.integers[1::5], dtype=np.int64)
        own_ids = own_ids[own_ids != NO_ID]
        if ids or len(np.unique(own_ids)) < len(own_ids):
            self._report_duplicates([*own_ids.tolist(), *ids], "annotations")

    def _find_clear(
        self, listed: Mapping[int | str, list[ListedImage]], counts: NDArray[np.int64]
    ) -> NDArray[np.bool_]:
        """Find the images that share no id with others and boxes."""
        is_clear, first = np.ones(len(counts), dtype=bool), 0
        for image_id, images in listed.items():
            number = int(counts[first])
            if len(images) > 1 and number:
                is_clear[first : first + len(images)] = False
                text = (
                    f"{' and '.join(image.path.name for image in images)} share the id {image_id}, "
                    f"and which of them its {number} boxes belong to is unknown"
                )
                self._report(f"{self.path.name}: images", text)
            first += len(images)
        return is_clear

    def _find(self, table: str) -> list[Any]:
        entries = self.tables.pop(table, None)
        if isinstance(entries, list):
            return entries
        self._report(str(self.path), f"has no list {table!r}")
        return []

    def _check(self, raw: Any, table: str, index: int) -> Entry | None:
        """Decode an entry, check its keys, and make ids equal that are written differently."""
        entry = self._load(raw) if isinstance(raw, msgspec.Raw | bytes) else raw
        where = f"{self.path.name}: {table}[{index}]"
        if not isinstance(entry, dict):
            self._report(where, "is not an object")
            return None
        if "id" in entry:
            where += f" (id {entry['id']})"
        keys = KEYS[table]
        wrong = [key for key, kind in keys.items() if not isinstance(entry.get(key), kind)]
        for key in wrong:
            what = "text" if keys[key] is str else "number or text"
            self._report(where, f"{key!r} is missing or no {what}")
        if wrong:
            return None
        return where, entry | {key: parse_id(entry[key]) for key in keys if keys[key] is ID}

    def _load(self, text: Any) -> Any:
        try:
            return json.loads(bytes(text))
        except (ValueError, RecursionError) as error:
            raise unreadable(self.path, f"not JSON: {error}") from error

    def _place(self, index: int, own_id: int) -> str:
        where = f"{self.path.name}: annotations[{index}]"
        return where if own_id == NO_ID else f"{where} (id {own_id})"

    def _report(self, where: str, text: str) -> None:
        self.problems.append(Problem("broken entry", where, text))

    def _report_no_image(self, where: str, image_id: int | str) -> None:
        self._report(where, f"there is no image with the id {image_id}")

    def _report_duplicates(self, ids: Sequence[Any], table: str) -> None:
        where, text = f"{self.path.name}: {table}", "the id {} is there twice"
        kind: Kind = "annotation id twice" if table == "annotations" else "duplicate id"
        self.problems += report_duplicates(ids, kind, where, text)


def look_up(keys: NDArray[np.int64], values: Mapping[Any, int]) -> NDArray[np.int64]:
    """Look up many keys at once; unknown ones give -1."""
    unique, inverse = np.unique(keys, return_inverse=True)
    found = np.array([values.get(key, -1) for key in unique.tolist()], dtype=np.int64)
    return found[inverse]
