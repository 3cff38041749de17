"""Count parameters and operations of all models, and write the README's table of the best ones.

`sepc-zoo list` reads the counts from `sepc_zoo/results/models.csv`. To be called after a change of
the models, and after a new backbone, neck, method or row of published weights:

    python benchmarks/models.py
"""

import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from sepc_zoo.catalog import SIZES_FILE, CatalogEntry, catalog
from sepc_zoo.cli.list import markdown_table, notes
from sepc_zoo.config import METHOD_TYPES
from sepc_zoo.factory import count_operations
from sepc_zoo.files import write_atomically, write_csv
from sepc_zoo.inference.progress import progress_bar
from sepc_zoo.registry import BACKBONES, list_models, model_config, necks_of

README = Path(__file__).parents[1] / "README.md"
TABLE = re.compile(r"(<!-- models: .* -->\n).*?(<!-- end of models -->)", re.DOTALL)
HEADER = ["name", "parameters", "gmacs", "short_side", "long_side"]


class Count(NamedTuple):
    """Parameters, billions of multiplications with addition, and the sides that images have."""

    parameters: int
    gmacs: float
    image_size: tuple[int, int]

    def row(self, name: str) -> list[str]:
        return [name, str(self.parameters), f"{self.gmacs:.2f}", *map(str, self.image_size)]


def main() -> None:
    counts = dict(progress_bar(count_all(), total=len(counted_names())))
    write_csv(SIZES_FILE, HEADER, [count.row(name) for name, count in sorted(counts.items())])
    text = README.read_text(encoding="utf-8")
    write_atomically(README, lambda file: file.write_text(with_table(text), encoding="utf-8"))


def counted_names() -> list[str]:
    """The names of all models that `sepc-zoo list` can show."""
    return sorted({*list_models(), *list_models(pretrained=True)})


def count_all() -> Iterator[tuple[str, Count]]:
    """Count all models, by name.

    What stands behind the FPN takes the same on every backbone with as many channels, and is
    counted on the first of them.
    """
    for method in METHOD_TYPES:
        plain = {backbone: count(f"{method}_{backbone}_fpn") for backbone in BACKBONES}
        first = {channels_of(method, backbone): backbone for backbone in reversed(BACKBONES)}
        for neck in necks_of(method):
            ones = {
                channels: plain[b] if neck == "fpn" else count(f"{method}_{b}_{neck}")
                for channels, b in first.items()
            }
            for backbone, base in plain.items():
                channels = channels_of(method, backbone)
                one, without = ones[channels], plain[first[channels]]
                parameters = base.parameters + one.parameters - without.parameters
                gmacs = base.gmacs + one.gmacs - without.gmacs
                yield f"{method}_{backbone}_{neck}", Count(parameters, gmacs, base.image_size)
    for name in list_models(pretrained=True):
        yield name, count(name)


def channels_of(method: str, backbone: str) -> int:
    """Channels of every level behind the FPN, in new models."""
    return model_config(f"{method}_{backbone}_fpn").channels


def count(name: str) -> Count:
    """Count a model."""
    config = model_config(name)
    parameters, gmacs, _ = count_operations(config)
    return Count(parameters, gmacs, config.weights.image_size)


def with_table(text: str) -> str:
    """The text of the README with a current table."""
    entries = highlights(catalog(list_models(pretrained=True), "ap"))
    whose = "".join(f"- {line}\n" for line in notes(entries))
    table = f"\n{markdown_table(entries)}\n{whose}\n"
    return TABLE.sub(lambda found: found[1] + table + found[2], text)


def highlights(entries: Iterable[CatalogEntry]) -> list[CatalogEntry]:
    """Of entries by falling AP the best of each method, and those that no cheaper one reaches."""
    chosen, methods, fewest = [], set(), math.inf
    for entry in entries:
        method, gmacs = entry.name.partition("_")[0], entry.gmacs or math.inf
        if method not in methods or gmacs < fewest:
            chosen.append(entry)
        methods.add(method)
        fewest = min(fewest, gmacs)
    return chosen


if __name__ == "__main__":
    main()
