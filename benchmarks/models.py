"""Count parameters and operations of all models, and write the README's table of published ones.

`sepc-zoo list` reads the counts from `sepc_zoo/results/models.csv`. Counts that are there are kept:

    python benchmarks/models.py          # after a new backbone, neck, method or row of weights
    python benchmarks/models.py --all    # after a change of the models themselves
"""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path

import msgspec

from sepc_zoo.catalog import SIZES_FILE, catalog, read_table
from sepc_zoo.cli.list import markdown_table, notes
from sepc_zoo.config import DetectorConfig
from sepc_zoo.factory import count_operations
from sepc_zoo.files import write_atomically, write_csv
from sepc_zoo.inference.progress import progress_bar
from sepc_zoo.registry import list_models, model_config

README = Path(__file__).parents[1] / "README.md"
TABLE = re.compile(r"(<!-- models: .* -->\n).*?(<!-- end of models -->)", re.DOTALL)
HEADER = ["name", "parameters", "gmacs", "short_side", "long_side"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="count again what has been counted")
    known = {} if parser.parse_args().all else read_table(SIZES_FILE)
    names = counted_names()
    counts = {name: [*known[name].values()][1:] for name in names if name in known}
    networks = {network(model_config(name)): count for name, count in counts.items()}
    for name in progress_bar([name for name in names if name not in counts]):
        config = model_config(name)
        key = network(config)
        networks[key] = counts[name] = networks.get(key) or count(config)
        write_csv(SIZES_FILE, HEADER, [[name, *counts[name]] for name in names if name in counts])
    write_csv(SIZES_FILE, HEADER, [[name, *counts[name]] for name in names])
    text = README.read_text(encoding="utf-8")
    write_atomically(README, lambda file: file.write_text(with_table(text), encoding="utf-8"))


def counted_names() -> list[str]:
    """The names of all models that `sepc-zoo list` can show."""
    return sorted({*list_models(), *list_models(pretrained=True)})


def count(config: DetectorConfig) -> list[str]:
    """The row of a model, without its name."""
    parameters, gmacs, _ = count_operations(config)
    return [str(parameters), f"{gmacs:.2f}", *map(str, config.weights.image_size)]


def network(config: DetectorConfig) -> str:
    """All that the counts depend on; methods with the same heads and anchors share a network."""
    entries = msgspec.to_builtins(config)
    for name in ("architecture", "method", "inclusive_boxes", "postprocess", "weights"):
        del entries[name]
    return f"{config.method.detector} {config.weights.image_size} {entries}"


def with_table(text: str) -> str:
    """The text of the README with a current table."""
    entries = catalog(list_models(pretrained=True), "ap")
    table = f"\n{markdown_table(entries)}\n{paragraph(notes(entries))}\n"
    return TABLE.sub(lambda found: found[1] + table + found[2], text)


def paragraph(lines: Iterable[str]) -> str:
    """One list item a line."""
    return "".join(f"- {line}\n" for line in lines)


if __name__ == "__main__":
    main()
