"""Show the facts of a model: size, operations, classes, published weights, metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sepc_zoo.errors import HubError
from sepc_zoo.options import Options, option
from sepc_zoo.terminal import make_console

if TYPE_CHECKING:
    from rich.table import Table

    from sepc_zoo.factory import ModelInfo
    from sepc_zoo.published import Published


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """Model."""

    model: str = option(
        help="name of a model, model folder or hf-hub:org/repo",
        metavar="NAME_OR_DIR",
        positional=True,
    )


def run(arguments: Arguments) -> int:
    """Print the facts as a table, and the metrics of a model folder."""
    from rich.markup import escape
    from rich.table import Table

    from sepc_zoo.factory import model_info

    info = model_info(arguments.model)
    metrics = lay_out_metrics(info)
    table = Table(show_header=False, box=None)
    for name, text in facts(info):
        table.add_row(name, escape(text))
    console = make_console()
    console.print(table)
    if metrics is not None:
        console.print("\nmetrics of its own validation:", metrics)
    return 0


def lay_out_metrics(info: "ModelInfo") -> "Table | None":
    """The metrics of a model folder as a table; a HubError if ``validate`` did not write them."""
    from sepc_zoo.evaluation.metrics import metrics_table

    if info.metrics is None:
        return None
    try:
        return metrics_table(info.metrics)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise HubError(
            f"metrics.json of {info.name} is not what `sepc-zoo validate` writes: {error!r}"
        ) from error


def facts(info: "ModelInfo") -> list[tuple[str, str]]:
    """The rows of the table, name and text; without metrics."""
    from sepc_zoo.catalog import measured_ap

    height, width = info.reference_size
    measured = measured_ap()
    weights = [("published", _describe(row, measured)) for row in info.published]
    return [
        ("name", info.name),
        ("method", info.method),
        ("backbone", info.backbone),
        ("neck", info.neck),
        ("classes", f"{info.num_classes}: {', '.join(info.label_names)}"),
        ("parameters", f"{info.parameters / 1e6:.1f} M"),
        ("operations", f"{info.gmacs:.1f} GMACs at {height}x{width}"),
        ("input", f"sides of at most {info.image_size[0]} and {info.image_size[1]} pixels"),
        *(weights or [("published", "no weights")]),
        *([("weights", "missing: the folder has no model.safetensors")] * info.weights_missing),
    ]


def _describe(row: "Published", measured: Mapping[str, float]) -> str:
    """Publisher, AP and licence of published weights in a sentence."""
    from sepc_zoo.published import PUBLISHERS

    publisher = PUBLISHERS[row.publisher]
    ap = measured.get(row.name)
    ours = "not measured yet" if ap is None else f"{ap:.1f} measured by us"
    return (
        f"{row.tag}: AP {row.ap} on COCO val2017 stated by {publisher.title}, {ours}; "
        f"licence {publisher.license}"
    )
