"""Show what is known of a model: parameters, operations, classes, published AP."""

from dataclasses import dataclass

from sepc_zoo.options import Options, option


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Model."""

    model: str = option(
        help="name of a model, or a model folder", metavar="NAME_OR_DIR", positional=True
    )


def run(arguments: Arguments) -> int:
    """Print the facts as a table."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sepc_zoo.factory import model_info

    info = model_info(arguments.model)
    height, width = info.reference_size
    ap = "none published" if info.authors_ap is None else f"{info.authors_ap} on COCO val2017"
    rows = {
        "name": info.name,
        "method": info.method,
        "backbone": info.backbone,
        "neck": info.neck,
        "classes": str(info.num_classes),
        "parameters": f"{info.parameters / 1e6:.1f} M",
        "operations": f"{info.gmacs:.1f} GMACs at {height}x{width}",
        "AP, authors'": ap,
        "AP, ours": "not measured yet",
    }
    table = Table(show_header=False, box=None)
    for name, text in rows.items():
        table.add_row(name, escape(text))
    Console().print(table)
    return 0
