"""Tables of a benchmark's results: on the terminal and as CSV."""

import platform
from dataclasses import asdict
from pathlib import Path

import timm
import torch
import torchvision
from rich.box import SIMPLE_HEAD
from rich.table import Table

from sepc_zoo.evaluation.speed import Result, Setting
from sepc_zoo.files import write_csv
from sepc_zoo.terminal import make_console


def show(results: list[Result], setting: Setting) -> None:
    """Print the results of a setting as a table."""
    table = Table(title=describe(setting), box=SIMPLE_HEAD)
    for name in ("part", "model", "ms", "ratio", "img/s", "MiB"):
        table.add_column(name, justify="left" if name in ("part", "model") else "right")
    for result in results:
        timing = result.timing
        table.add_row(
            result.part,
            result.model,
            f"{1e3 * timing.median:.{1 if timing.median < 1 else 0}f}",
            f"{timing.ratio:.2f}" if timing.ratio < 100 else "",  # the first takes almost no time
            f"{setting.batch_size / timing.median:.1f}",
            "" if result.peak_mib is None else f"{result.peak_mib:.0f}",
        )
    make_console().print(table)


def describe(setting: Setting) -> str:
    """A setting in words: ``8 x 640x640, bf16, …``."""
    words = [f"{setting.batch_size} x {setting.height}x{setting.width}", setting.precision]
    if setting.compile:
        words.append(f"compiled ({setting.compile})")
    if setting.channels_last:
        words.append("channels last")
    return ", ".join([*words, device_name(setting.device)])


def device_name(device: str) -> str:
    """The name of the GPU, or the CPU with its number of threads."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def write_results(path: Path, results: list[Result], rounds: int) -> None:
    """Write the results of all settings as CSV, with the versions of the libraries."""
    versions = {library.__name__: library.__version__ for library in (torch, torchvision, timm)}
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
