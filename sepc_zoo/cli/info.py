"""What is known of a model: parameters, operations, classes, published results."""

import argparse

from rich.console import Console
from rich.table import Table

from sepc_zoo.factory import model_info


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="NAME_OR_DIR", help="name of a model, or a model folder")


def run(args: argparse.Namespace) -> int:
    info = model_info(args.model)
    height, width = info.reference_size
    table = Table(show_header=False, box=None)
    table.add_row("name", info.name)
    table.add_row("method", info.method)
    table.add_row("backbone", info.backbone)
    table.add_row("neck", info.neck)
    table.add_row("classes", str(info.num_classes))
    table.add_row("parameters", f"{info.parameters / 1e6:.1f} M")
    table.add_row("operations", f"{info.gmacs:.1f} GMACs at {height}x{width}")
    ap = "none published" if info.authors_ap is None else f"{info.authors_ap} on COCO val2017"
    table.add_row("AP, authors'", ap)
    table.add_row("AP, ours", "not measured yet")
    Console().print(table)
    return 0
