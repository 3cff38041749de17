"""The table of models: size, operations, published and measured AP, without building any."""

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from sepc_zoo.published import PUBLISHED, PUBLISHERS, find_row

RESULTS = Path(__file__).with_name("results")
SIZES_FILE = RESULTS / "models.csv"  # written by benchmarks/models.py
MEASURED_FILE = RESULTS / "coco_val2017.csv"  # written by scripts/validate_published.py
NUM_VAL2017_IMAGES = 5000  # AP measured on fewer images is not shown

SortKey = Literal["name", "ap", "params", "gmacs"]


class CatalogEntry(NamedTuple):
    """A row of the table of models; None stands for an unknown value.

    Attributes:
        name: name of a model, with or without a tag.
        weights: name of the published weights with their tag.
        parameters: number of parameters.
        gmacs: billions of multiply-accumulate operations for one image of ``image_size``.
        image_size: short side and maximum long side of resized images, pixels.
        ap: AP of the published weights on COCO val2017 in percent, as their publisher states it.
        measured_ap: AP of the same weights, measured by ``scripts/validate_published.py``.
        publisher: a key of ``PUBLISHERS``.
        license: licence of the published weights.
        url: address of the published checkpoint.
    """

    name: str
    weights: str | None
    parameters: int | None
    gmacs: float | None
    image_size: tuple[int, int] | None
    ap: float | None
    measured_ap: float | None
    publisher: str | None
    license: str | None
    url: str | None


def catalog(names: Iterable[str], sort: SortKey = "name") -> list[CatalogEntry]:
    """The entries of models, with the default weights of a name without a tag.

    Args:
        sort: by name, or with the highest AP, the fewest parameters or the fewest operations
            first; models for which this is not known come last.
    """
    sizes, measured = read_table(SIZES_FILE), measured_ap()
    entries = [_entry(name, sizes.get(name), measured) for name in sorted(names)]
    if sort == "ap":
        return sorted(entries, key=lambda e: (e.ap is None, -(e.ap or 0)))
    if sort == "params":
        return sorted(entries, key=lambda e: (e.parameters is None, e.parameters or 0))
    if sort == "gmacs":
        return sorted(entries, key=lambda e: (e.gmacs is None, e.gmacs or 0))
    return entries


def curated_names() -> list[str]:
    """The names that ``list_models`` gives, read from the table: no method is imported."""
    return [name for name in read_table(SIZES_FILE) if name not in PUBLISHED]


def measured_ap() -> dict[str, float]:
    """AP that was measured on all of COCO val2017, in percent, by the name of published weights."""
    rows = read_table(MEASURED_FILE).values()
    whole = [row for row in rows if int(row["images"]) == NUM_VAL2017_IMAGES]
    return {row["name"]: float(row["ap"]) for row in whole}


def read_table(file: Path) -> dict[str, dict[str, str]]:
    """The rows of a CSV file by their column ``name``; none if there is no file."""
    if not file.exists():
        return {}
    with file.open(newline="", encoding="utf-8") as content:
        return {row["name"]: row for row in csv.DictReader(content)}


def _entry(
    name: str, sizes: Mapping[str, str] | None, measured: Mapping[str, float]
) -> CatalogEntry:
    row = find_row(name)
    return CatalogEntry(
        name=name,
        weights=row.name if row else None,
        parameters=int(sizes["parameters"]) if sizes else None,
        gmacs=float(sizes["gmacs"]) if sizes else None,
        image_size=(int(sizes["short_side"]), int(sizes["long_side"])) if sizes else None,
        ap=row.ap if row else None,
        measured_ap=measured.get(row.name) if row else None,
        publisher=row.publisher if row else None,
        license=PUBLISHERS[row.publisher].license if row else None,
        url=row.url if row else None,
    )
