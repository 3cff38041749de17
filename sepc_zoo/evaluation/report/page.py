"""The page: its head, its sections one below the other, and the style and script it brings."""

from collections.abc import Callable, Mapping
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from sepc_zoo import __version__
from sepc_zoo.data import Annotations
from sepc_zoo.evaluation.metrics import Evaluation
from sepc_zoo.evaluation.report import gallery, sections
from sepc_zoo.evaluation.report.case import Case, make_case
from sepc_zoo.evaluation.report.charts import need_matplotlib
from sepc_zoo.evaluation.results import SplitDetections
from sepc_zoo.files import write_atomically


class Section(NamedTuple):
    anchor: str
    title: str
    html: Callable[[Case], str]


SECTIONS = (
    Section("figures", "Figures", sections.twelve_figures),
    Section("losses", "Where AP is lost", sections.losses),
    Section("classes", "Classes", sections.classes),
    Section("curves", "Precision and recall by class", sections.curves),
    Section("confusion", "Confusion", sections.confusion),
    Section("scores", "Scores", sections.scores),
    Section("false", "Worst false positives", gallery.false_positives),
    Section("missed", "Worst misses", gallery.misses),
)


def write_report(
    path: str | Path,
    annotations: Annotations,
    found: SplitDetections,
    evaluation: Evaluation,
    facts: Mapping[str, str],
) -> None:
    """Write the page of an evaluation, one file that needs nothing but itself.

    Args:
        path: the HTML file.
        found: the detections in the split that ``evaluation`` is of.
        facts: what the head says first, by name, as the model and the data; the first of them is
            the page's title.

    Raises:
        ImportError: matplotlib is not installed.
    """
    need_matplotlib()
    html = _page(make_case(annotations, found, evaluation), facts)
    write_atomically(path, lambda file: file.write_text(html, encoding="utf-8"))


def _page(case: Case, facts: Mapping[str, str]) -> str:
    title = escape(next(iter(facts.values()), "Evaluation"))
    links = "".join(f'<a href="#{part.anchor}">{part.title}</a>' for part in SECTIONS)
    body = "\n".join(
        f'<section id="{part.anchor}">\n<h2>{part.title}</h2>\n{part.html(case)}\n</section>'
        for part in SECTIONS
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}: AP {sections.figure(case.evaluation.metrics["AP"])}</title>
<style>
{_asset("page.css")}</style>
</head>
<body>
<header>
<h1>{title}</h1>
{_facts(case, facts)}
</header>
<nav>{links}</nav>
<main>
{body}
</main>
<footer>
The figures are COCO's, those of pycocotools. Elsewhere a detection is correct where it overlaps an
object of its class by an IoU of 0.5 or more that no surer one has found; crowds count neither way.
Both look at the 100 surest detections of a class in an image.
</footer>
<script>
{_asset("page.js")}</script>
</body>
</html>
"""


def _facts(case: Case, facts: Mapping[str, str]) -> str:
    crowds = int(case.truth.iscrowd.sum())
    rows = dict(list(facts.items())[1:]) | {
        "images": f"{len(case.annotations.records):,}",
        "objects": f"{case.objects.sum():,}" + (f" and {crowds:,} crowds" if crowds else ""),
        "classes": f"{len(case.names):,}",
        "detections": f"{len(case.found):,}",
        "date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M}",
        "sepc_zoo": __version__,
    }
    items = (
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in rows.items()
    )
    return f'<dl class="facts">{"".join(items)}</dl>'


def _asset(name: str) -> str:
    return files("sepc_zoo.evaluation.report").joinpath(name).read_text(encoding="utf-8")
