"""Measure the AP of published weights on COCO val2017, beside the AP that their publishers state.

    python scripts/validate_published.py --data COCO                     # all, for days on a CPU
    python scripts/validate_published.py --data COCO '*_r50_*' --amp bf16
    accelerate launch --multi_gpu scripts/validate_published.py --data COCO

Each model adds a row to the table that `sepc-zoo list` shows; a model that has a row is skipped, so
that the same command goes on where it was stopped. Delete a row to measure it again.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision

import sepc_zoo
from sepc_zoo.api.models import model_with_weights
from sepc_zoo.api.options import LoaderOptions
from sepc_zoo.catalog import MEASURED_FILE, read_table
from sepc_zoo.cli.arguments import flag_of, make_parser, parse
from sepc_zoo.cli.speed_table import device_name
from sepc_zoo.data import read_data
from sepc_zoo.data.sharing import read_once
from sepc_zoo.errors import UserError
from sepc_zoo.evaluation.validate import validate_model, validation_loader
from sepc_zoo.files import write_csv
from sepc_zoo.options import OptionError, option
from sepc_zoo.published import PUBLISHED, Published, find_row
from sepc_zoo.registry import UnknownModelError, list_models
from sepc_zoo.training.accelerator import make_accelerator
from sepc_zoo.training.options import PrecisionOptions

HEADER = [
    *("name", "published_ap", "ap", "difference", "images", "seconds", "device", "precision"),
    *("sepc_zoo", "torch", "torchvision", "timm"),
]


@dataclass(frozen=True, kw_only=True)
class Arguments(PrecisionOptions, LoaderOptions):
    """Models and data."""

    names: tuple[str, ...] = option(
        (),
        "names or wildcard patterns of published weights; without a tag the default ones of a name "
        "(default: all)",
        positional=True,
        metavar="NAME",
    )
    data: str = option(help="folder of COCO, or of another data set", metavar="DIR")
    split: str = option("val", "name of the split", metavar="NAME")
    output: str = option(str(MEASURED_FILE), "table to add to", metavar="FILE")


def main(texts: Sequence[str] | None = None) -> int:
    """Run the script; return 0 done, 1 done but for what is listed, 2 wrong usage or input."""
    parser = make_parser("validate_published.py", __doc__ or "", Arguments)
    try:
        arguments: Any = parse(parser, Arguments, sys.argv[1:] if texts is None else texts)
        return run(arguments)
    except OptionError as error:
        parser.error(f"{flag_of(error.name)} {error.text}")
    except UserError as error:
        print(f"validate_published.py: {error}", file=sys.stderr)
        return 2


def run(arguments: Arguments) -> int:
    """Measure the models one after the other, and go on after one that fails."""
    accelerator = make_accelerator(arguments.amp, arguments.device)
    read = partial(read_data, arguments.data, arguments.split, drop_bad_boxes=True)
    read_split = cache(lambda names: read_once(partial(read, names)))
    output = Path(arguments.output)
    done = read_table(output)
    rows = [row for row in chosen(arguments.names) if row.name not in done]
    failed = False
    for row in rows:
        try:
            model = model_with_weights(row.name)
        except UserError as error:
            failed = True
            if accelerator.is_main_process:
                print(f"not done: {row.name}: {error}", file=sys.stderr)
            continue
        annotations = read_split(model.config.label_names)
        loader = validation_loader(annotations, model, arguments.batch_size, arguments.workers)
        model.to(accelerator.device)
        start = time.perf_counter()
        evaluation, _ = validate_model(accelerator, model, loader, annotations)
        seconds = time.perf_counter() - start
        device = device_name(accelerator.device.type)
        facts = {
            "images": len(annotations.records),
            "seconds": round(seconds),
            "device": f"{accelerator.num_processes} x {device}",
            "precision": arguments.amp or "float32",
        }
        done[row.name] = measured(row, 100 * evaluation.metrics["AP"], facts)
        if accelerator.is_main_process:
            write_csv(output, HEADER, [list(known.values()) for known in done.values()])
            print(", ".join(f"{key} {done[row.name][key]}" for key in HEADER[:6]), flush=True)
    if accelerator.is_main_process:
        print(f"{output}: {len(done)} models")
    return 1 if failed else 0


def chosen(names: Sequence[str]) -> list[Published]:
    """The rows of published weights that names and patterns select, by default all.

    Raises:
        UnknownModelError: a name or pattern selects none.
    """
    rows: dict[str, Published] = {}
    for name in names or ["*"]:
        default = find_row(name)
        found = [default.name] if default else list_models(name, pretrained=True)
        if not found:
            raise UnknownModelError(
                f"no published weights {name!r}; `sepc-zoo list --pretrained` shows all"
            )
        rows |= {name: PUBLISHED[name] for name in found}
    return list(rows.values())


def measured(row: Published, ap: float, facts: Mapping[str, Any]) -> dict[str, str]:
    """The row of the table for a model.

    Args:
        ap: AP in percent.
        facts: values of further columns.
    """
    figures = {
        **{"name": row.name, "published_ap": row.ap},
        **{"ap": f"{ap:.2f}", "difference": f"{ap - row.ap:+.2f}", **facts},
        **{"sepc_zoo": sepc_zoo.__version__, "torch": torch.__version__},
        **{"torchvision": torchvision.__version__, "timm": timm.__version__},
    }
    return {key: str(figures[key]) for key in HEADER}


if __name__ == "__main__":
    sys.exit(main())
