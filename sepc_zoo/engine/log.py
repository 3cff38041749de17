"""What a run says: a progress bar for people, a CSV file for programs."""

import csv
import io
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import PartialState
from torch import Tensor
from tqdm import tqdm

from sepc_zoo.data import Annotations
from sepc_zoo.files import write_atomically

AP_KEYS = ("AP", "AP50", "AP75")
SHOWN_DROPPED = 20


def progress_bar(*args: Any, **kwargs: Any) -> tqdm:
    """tqdm's bar on a terminal; a line now and then where the output goes to a file."""
    return tqdm(*args, **kwargs, mininterval=0.2 if sys.stderr.isatty() else 30)


class Log:
    """Losses, speed and memory of a run, averaged over some steps, and AP after an epoch.

    Only the main process writes and shows anything.
    """

    def __init__(self, path: Path, total_steps: int, processes: int, device: torch.device) -> None:
        self.path, self.processes, self.device = path, processes, device
        self.is_main = PartialState().is_main_process
        self.bar = progress_bar(
            total=total_steps, desc="train", unit="step", disable=not self.is_main
        )
        self.restart()

    def restart(self) -> None:
        """Begin a new average; what validation and saving take is not counted as training."""
        self._sums: dict[str, Tensor] = {}
        self._steps, self._images, self._start = 0, 0, time.perf_counter()

    def count(self, losses: Mapping[str, Tensor], images: int) -> None:
        """One step of this process is done."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(loss)) + loss.detach()
        self._steps += 1
        self._images += images * self.processes
        self.bar.update()

    def write(self, step: int, epoch: int, lr: float) -> None:
        """A row with the averages since the last one."""
        if not self._steps:
            return
        terms = {name: (total / self._steps).item() for name, total in self._sums.items()}
        speed = self._images / (time.perf_counter() - self._start)
        memory = memory_held(self.device)
        self._append(
            {"step": step, "epoch": epoch, "lr": lr, "loss": sum(terms.values())}
            | terms
            | {"images_per_second": speed, "memory_gib": memory}
            | dict.fromkeys(AP_KEYS, "")
        )
        shown = {name: f"{value:.3g}" for name, value in terms.items()}
        self.bar.set_postfix(shown | {"img/s": f"{speed:.1f}", "GiB": f"{memory:.1f}"})
        self.restart()

    def write_ap(self, step: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        """A row with the AP after an epoch."""
        self._append({"step": step, "epoch": epoch} | {key: metrics[key] for key in AP_KEYS})
        figures = "  ".join(f"{key} {metrics[key]:.3f}" for key in AP_KEYS)
        self.say(f"epoch {epoch}, step {step}: {figures}")

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if self.is_main:
            self.bar.write(text)

    def resume_at(self, step: int) -> None:
        """Forget the rows that come after ``step``."""
        self.bar.update(step)
        if not self.is_main or not self.path.exists():
            return
        with self.path.open(newline="") as file:
            header, *rows = csv.reader(file)
        kept = [header, *(row for row in rows if int(row[0]) <= step)]
        write_atomically(self.path, lambda path: path.write_text(_csv(kept), encoding="utf-8"))

    def _append(self, row: Mapping[str, Any]) -> None:
        if not self.is_main:
            return
        if not self.path.exists():
            self.path.write_text(_csv([list(row)]), encoding="utf-8")
        with self.path.open(newline="") as file:
            columns = next(csv.reader(file))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_csv([[row.get(column, "") for column in columns]]))


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def memory_held(device: torch.device) -> float:
    """Memory in GiB: the most that was held of a GPU, or what this process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def told_dropped(annotations: Annotations) -> list[str]:
    """What is to be said of boxes that the reader left out: how many, and the first of them."""
    count = len(annotations.dropped)
    if not count:
        return []
    first = [f"  {line}" for line in annotations.dropped[:SHOWN_DROPPED]]
    return [f"left out {count} boxes" + (", the first:" if count > len(first) else ":"), *first]
