"""Speed and memory of models, each beside the others: inference, training, and their parts."""

import argparse
import itertools
import platform
from dataclasses import asdict
from pathlib import Path

import timm
import torch
import torchvision
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from sepc_zoo.cli.arguments import at_least
from sepc_zoo.config import ConfigError
from sepc_zoo.evaluation.speed import PARTS, PRECISIONS, WHOLE, Result, Setting, compare
from sepc_zoo.files import write_csv

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")


def image_size(text: str) -> tuple[int, int]:
    height, separator, width = text.partition("x")
    if not separator or int(height) < 1 or int(width) < 1:
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH in pixels, got {text!r}")
    return int(height), int(width)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--model",
        nargs="+",
        required=True,
        metavar="NAME",
        help="models, with random weights; ratios are to the first one",
    )
    add("--batch-size", nargs="+", type=at_least(1), default=[1], metavar="N")
    add("--image-size", nargs="+", type=image_size, default=[(640, 640)], metavar="HxW")
    add("--precision", nargs="+", choices=list(PRECISIONS), default=["float32"])
    add("--train", action="store_true", help="measure training steps too")
    add("--parts", action="store_true", help=f"measure parts apart: {', '.join(PARTS)}")
    add(
        "--compile",
        nargs="?",
        const="default",
        default="",
        choices=COMPILE_MODES,
        help="with torch.compile; reduce-overhead captures CUDA graphs",
    )
    add("--channels-last", action="store_true")
    add("--device", choices=["cpu", "cuda"], help="the GPU where there is one")
    add("--threads", type=at_least(1), help="of the CPU; all of its cores if not given")
    add("--rounds", type=at_least(1), default=10, help="in each of which every model has its turn")
    add("--memory", action="store_true", help="measure peak memory too")
    add("--output", type=Path, metavar="FILE.csv", help="where the rows go")


def run(args: argparse.Namespace) -> int:
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: PyTorch finds no GPU here")
    if args.threads:
        torch.set_num_threads(args.threads)
    parts = [*WHOLE[:2], *(["step"] if args.train else []), *(PARTS if args.parts else [])]
    results: list[Result] = []
    cases = itertools.product(args.batch_size, args.image_size, args.precision)
    for batch_size, (height, width), precision in cases:
        setting = Setting(
            batch_size, height, width, precision, args.compile, args.channels_last, device
        )
        found = compare(args.model, setting, parts, args.rounds, args.memory)
        show(found, setting)
        results += found
        if args.output:  # after each setting, as the next may not fit into the memory
            write_results(args.output, results, args.rounds)
    return 0


def show(results: list[Result], setting: Setting) -> None:
    table = Table(title=describe(setting), box=SIMPLE_HEAD)
    for name in ("part", "model", "ms", "ratio", "img/s", "MiB"):
        table.add_column(name, justify="left" if name in ("part", "model") else "right")
    for result in results:
        timing = result.timing
        table.add_row(
            result.part,
            result.model,
            f"{1e3 * timing.median:.{1 if timing.median < 1 else 0}f}",
            f"{timing.ratio:.2f}" if timing.ratio < 100 else "",  # to next to nothing
            f"{setting.batch_size / timing.median:.1f}",
            "" if result.peak_mib is None else f"{result.peak_mib:.0f}",
        )
    Console().print(table)


def describe(setting: Setting) -> str:
    said = [f"{setting.batch_size} x {setting.height}x{setting.width}", setting.precision]
    if setting.compile:
        said.append(f"compiled ({setting.compile})")
    if setting.channels_last:
        said.append("channels last")
    return ", ".join([*said, device_name(setting.device)])


def device_name(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def write_results(path: Path, results: list[Result], rounds: int) -> None:
    versions = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "timm": timm.__version__,
    }
    rows = [
        {
            "part": result.part,
            "model": result.model,
            "median_ms": f"{1e3 * result.timing.median:.2f}",
            "low_ms": f"{1e3 * result.timing.low:.2f}",
            "high_ms": f"{1e3 * result.timing.high:.2f}",
            "ratio": f"{result.timing.ratio:.3f}",
            "peak_mib": "" if result.peak_mib is None else f"{result.peak_mib:.0f}",
            "rounds": rounds,
            **asdict(result.setting),
            "device": device_name(result.setting.device),
            **versions,
        }
        for result in results
    ]
    write_csv(path, list(rows[0]), [list(row.values()) for row in rows])
