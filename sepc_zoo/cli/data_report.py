"""The output of check-data: tables, findings, samples and statistics."""

import random
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.markup import escape
from rich.table import Table

from sepc_zoo.config import WeightsConfig
from sepc_zoo.data.images import read_image
from sepc_zoo.data.listing import ListedImage, ListedImages, Listing
from sepc_zoo.data.quality.check import SEVERITIES, DataCheck, find_train
from sepc_zoo.data.quality.statistics import anchor_reaches, class_counts, describe
from sepc_zoo.evaluation.plots import plot_statistics
from sepc_zoo.files import write_atomically, write_json
from sepc_zoo.inference.drawing import class_color, contact_sheet, draw_boxes, fit
from sepc_zoo.terminal import say

COLORS = {"error": "red", "warning": "yellow", "note": "cyan"}
SHOWN_CLASSES = 20
MAX_CAPTIONS = 15  # captions on a sample; more would hide the image
IMAGE_SIZE = WeightsConfig().image_size
GOOD_REACH = 0.95  # share of boxes that anchors should reach; below it, others are proposed
MIN_GAIN = 0.02  # minimum gain of this share to propose other anchors


def write_statistics(clean: Mapping[str, Listing], output: Path, console: Any) -> list[str]:
    """Print statistics, write ``statistics.json`` and ``.png``; return the names of the files."""
    splits = {split: ListedImages.of(listing.images) for split, listing in clean.items()}
    figures: dict[str, Any] = {split: describe(listing) for split, listing in clean.items()}
    train = find_train(splits)
    reaches = anchor_reaches(splits[train], IMAGE_SIZE) if train else {}
    content = {"splits": figures, "anchor_reach": {"image_size": IMAGE_SIZE, **reaches}}
    write_json(output / "statistics.json", content)
    console.print(splits_table(figures))
    counts = class_counts(list(figures.values()))
    console.print(classes_table(figures, counts))
    for line in describe_reach(reaches):
        console.print(line, markup=False, highlight=False)
    try:
        plot_statistics(splits, counts, output / "statistics.png")
    except ImportError as error:
        say(f"no statistics.png: {error}")
        return ["statistics.json"]
    return ["statistics.json", "statistics.png"]


def splits_table(figures: Mapping[str, Mapping[str, Any]]) -> Table:
    """A table of the figures, with a column for each split."""
    table = _table("what can be read", *figures)
    for key in ("images", "images_without_boxes", "boxes", "crowds", "small", "medium", "large"):
        table.add_row(key.replace("_", " "), *(str(own[key]) for own in figures.values()))
    spreads = {
        "boxes per image": [own["boxes_per_image"] for own in figures.values()],
        "image height": [own["image_sizes"]["height"] for own in figures.values()],
        "image width": [own["image_sizes"]["width"] for own in figures.values()],
        "box side": [own["box_sides"] for own in figures.values()],
        "box height / width": [own["box_aspects"] for own in figures.values()],
    }
    for name, found in spreads.items():
        table.add_row(name, *map(_spread, found))
    table.caption = "three figures: 5%, median, 95%; crowds are among the boxes\n"
    return table


def _spread(found: Mapping[str, float]) -> str:
    return "  ".join(f"{found[key]:.3g}" for key in ("5%", "median", "95%")) if found else "-"


def classes_table(
    figures: Mapping[str, Mapping[str, Any]], counts: Mapping[str, list[int]]
) -> Table:
    """A table of boxes (and images) by class, the most frequent first."""
    sizes = ("small", "medium", "large")
    table = _table("class", *figures, *sizes)
    for name in list(counts)[:SHOWN_CLASSES]:
        rows = [own["classes"].get(name) for own in figures.values()]
        cells = [f"{row['boxes']} ({row['images']})" if row else "-" for row in rows]
        total = [str(sum(row[size] for row in rows if row)) for size in sizes]
        table.add_row(escape(name), *cells, *total)
    more = len(counts) - SHOWN_CLASSES
    rest = f"; {more} more classes in statistics.json" if more > 0 else ""
    table.caption = f"boxes (images with them){rest}\n"
    return table


def _table(*header: str) -> Table:
    table = Table(box=None, pad_edge=False, caption_justify="left")
    for i, name in enumerate(header):
        table.add_column(escape(name), justify="right" if i else "left")
    return table


def describe_reach(reaches: Mapping[str, float]) -> list[str]:
    """Lines on the share of boxes that no anchor reaches, and on anchors that fit better."""
    if not reaches or reaches["default"] >= GOOD_REACH:
        return []
    lines = [
        f"{1 - reaches['default']:.0%} of the boxes to train on can have no IoU of 0.5 with an "
        f"anchor of RetinaNet or FreeAnchor at --image-size {IMAGE_SIZE[0]} {IMAGE_SIZE[1]}."
    ]
    return lines + [
        f"With --model-kwargs {name} it is {1 - reach:.0%}."
        for name, reach in reaches.items()
        if reach >= reaches["default"] + MIN_GAIN
    ]


def write_samples(clean: Mapping[str, Listing], path: Path, count: int, seed: int) -> bool:
    """Draw random images of all splits with their boxes; false if there are no images."""
    names = dict.fromkeys(name for listing in clean.values() for name in listing.label_names)
    label_of = {name: label for label, name in enumerate(names)}
    images = [(image, listing) for listing in clean.values() for image in listing.images]
    chosen = random.Random(seed).sample(images, min(count, len(images)))
    tiles = [draw_sample(image, listing, label_of) for image, listing in chosen]
    if tiles:
        write_atomically(path, contact_sheet(tiles).save)
    return bool(tiles)


def draw_sample(image: ListedImage, listing: Listing, label_of: Mapping[str, int]) -> Image.Image:
    """Draw an image, resized to a tile, with its boxes in the colours of their classes."""
    boxes = torch.tensor([box.xyxy for box in image.boxes]).reshape(-1, 4)
    names = [listing.label_names[box.label] for box in image.boxes if box.label is not None]
    colors = [class_color(label_of[name]) for name in names]
    captions = names if len(names) <= MAX_CAPTIONS else [""] * len(names)
    return draw_boxes(*fit(read_image(image.path, channels=None), boxes), captions, colors)


def show_findings(check: DataCheck, shown: int, console: Any) -> None:
    """Print the findings by kind, at most ``shown`` of each."""
    counts = Counter((finding.severity, finding.kind) for finding in check.findings)
    for (severity, kind), count in counts.items():
        color = COLORS[severity]
        console.print(f"[bold {color}]{severity}[/] {kind}: {count}", highlight=False)
        own = [f for f in check.findings if (f.severity, f.kind) == (severity, kind)]
        lines = [f"  {finding.where}: {finding.text}" for finding in own[:shown]]
        if shown and count > shown:
            lines.append(f"  ... and {count - shown} more in findings.csv")
        for line in lines:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    totals = Counter(finding.severity for finding in check.findings)
    summary = ", ".join(f"{totals[severity]} {severity}s" for severity in SEVERITIES)
    console.print(f"{check.root}: {summary}", markup=False, highlight=False)
