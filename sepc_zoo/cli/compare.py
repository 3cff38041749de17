"""Compare two models, or their saved detections, on the same images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sepc_zoo.api.options import SplitOptions
from sepc_zoo.api.validate import Detected, detect, read_detections, read_split
from sepc_zoo.options import option
from sepc_zoo.terminal import counted, make_console, say

if TYPE_CHECKING:
    from sepc_zoo.data import Annotations

SOURCE = (
    "model folder, hf-hub:org/repo, exported file, name of a published model, or detections (.json)"
)


@dataclass(frozen=True, kw_only=True)
class Arguments(SplitOptions):
    """Comparison."""

    first: str = option(help=f"model A: {SOURCE}", metavar="A", positional=True)
    second: str = option(help=f"model B: {SOURCE}", metavar="B", positional=True)
    output: str = option("comparison", "folder to write", metavar="DIR")
    bootstrap: int = option(1000, "number of resamples of the images", ge=1)
    seed: int = option(0, "seed of the resamples", ge=0)
    no_report: bool = option(False, "do not write compare.html")


def run(arguments: Arguments) -> int:
    """Compare, write ``compare.json`` and ``compare.html``, print tables."""
    from sepc_zoo.ops.distributed import on_main_process

    annotations = read_split(arguments, None)
    both = [
        (read_detections if source.endswith(".json") else detect)(arguments, source)
        for source in (arguments.first, arguments.second)
    ]
    return on_main_process(finish, arguments, annotations, both)


def finish(arguments: Arguments, annotations: "Annotations", found: Sequence[Detected]) -> int:
    """Compare the detections of both, write and print the results."""
    from sepc_zoo.evaluation.comparison import compare_detections, comparison_tables
    from sepc_zoo.evaluation.report.comparison import write_comparison
    from sepc_zoo.evaluation.results import collect_detections
    from sepc_zoo.files import write_json

    sources = arguments.first, arguments.second
    both = [
        collect_detections(own.results, annotations, source)
        for own, source in zip(found, sources, strict=True)
    ]
    comparison = compare_detections(both, annotations, arguments.bootstrap, arguments.seed)
    facts = {"a": arguments.first, "b": arguments.second, "split": arguments.split}
    output = Path(arguments.output)
    write_json(output / "compare.json", facts | comparison.content)
    written = ["compare.json"]
    if not arguments.no_report:
        write_comparison(output / "compare.html", annotations, comparison, facts)
        written.append("compare.html")
    say(f"A: {arguments.first}\nB: {arguments.second}")
    for table in comparison_tables(comparison.content):
        make_console().print(table)
    images = counted(len(annotations.records), "image")
    say(f"{images}; {', '.join(written)} are in {arguments.output}")
    return 0
