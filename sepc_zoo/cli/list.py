"""List models with facts to choose by: size, operations, published AP and licence.

Any timm backbone with strides 8, 16 and 32 works by its own name, too.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sepc_zoo.catalog import CatalogEntry, SortKey, catalog, curated_names
from sepc_zoo.options import Options, option
from sepc_zoo.published import PUBLISHED, PUBLISHERS
from sepc_zoo.terminal import make_console, say

WIDE = 200  # width of the table if the output is no terminal, so that nothing is wrapped


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Selection."""

    filter: tuple[str, ...] = option(
        (), "wildcard patterns, such as '*_r50_sepc*'", positional=True, metavar="PATTERN"
    )
    exclude: tuple[str, ...] = option(
        (), "wildcard patterns of names to leave out", metavar="PATTERN"
    )
    pretrained: bool = option(False, "list only models with published weights, each with its tag")
    sort: SortKey = option(
        "name", "order: by name, highest AP, fewest parameters or fewest operations"
    )
    names: bool = option(False, "print names only, one a line", exclusive="form")
    json: bool = option(False, "print all that is known as JSON", exclusive="form")


def run(arguments: Arguments) -> int:
    """Print the models as a table, as names or as JSON."""
    from sepc_zoo.registry import select

    names = PUBLISHED if arguments.pretrained else curated_names()
    entries = catalog(select(names, arguments.filter, arguments.exclude), arguments.sort)
    if arguments.names:
        say("\n".join(entry.name for entry in entries))
    elif arguments.json:
        say(json.dumps([entry._asdict() for entry in entries], indent=2))
    else:
        show(entries)
    return 0


def show(entries: Sequence[CatalogEntry]) -> None:
    """Print the entries as a table, and the sources of AP below it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = describe(entries)
    if not rows:
        say("no model has such a name")
        return
    console = make_console()
    if not console.is_terminal:
        console = make_console(width=WIDE)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in rows[0]:
        is_text = name in ("model", "input", "weights of", "licence")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=name == "model")
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    for line in notes(entries):
        say(line)


def describe(entries: Sequence[CatalogEntry]) -> list[dict[str, str]]:
    """The cells of each entry by column; measured AP is a column if any was measured."""
    rows = [
        {
            "model": entry.name,
            "AP": _number(entry.ap),
            "AP measured": _number(entry.measured_ap),
            "M parameters": _number(entry.parameters and entry.parameters / 1e6),
            "GMACs": _number(entry.gmacs, 0),
            "input": "x".join(map(str, entry.image_size or "-")),
            "weights of": entry.publisher or "-",
            "licence": entry.license or "-",
        }
        for entry in entries
    ]
    if all(entry.measured_ap is None for entry in entries):
        rows = [{name: text for name, text in row.items() if name != "AP measured"} for row in rows]
    return rows


def notes(entries: Sequence[CatalogEntry]) -> list[str]:
    """Lines on the publishers of the weights in a table, and on its columns of AP."""
    keys = dict.fromkeys(entry.publisher for entry in entries if entry.publisher)
    publishers = {key: PUBLISHERS[key] for key in keys}
    lines = [f"{key}: {who.title}, {who.page}; {who.terms}" for key, who in publishers.items()]
    if lines:
        lines.append("AP is on COCO val2017 in percent, as the publisher states it.")
    if any(entry.measured_ap is not None for entry in entries):
        lines.append("AP measured is ours, on the same images.")
    return lines


def markdown_table(entries: Sequence[CatalogEntry]) -> str:
    """The entries as a Markdown table."""
    rows = describe(entries)
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[f"`{row['model']}`", *list(row.values())[1:]] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
