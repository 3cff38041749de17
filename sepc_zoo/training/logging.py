"""What a run says: a progress bar for people, a CSV file for programs."""

import csv
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator, PartialState
from torch import Tensor
from tqdm import tqdm

from sepc_zoo.data import Annotations
from sepc_zoo.files import write_atomically
from sepc_zoo.inference.progress import progress_bar
from sepc_zoo.metric_names import LOGGED_METRICS

LOG_FILE, METRICS_FILE = "log.csv", "metrics.csv"
SHOWN_DROPPED = 20


class CsvFile:
    """A table that grows row by row; only the main process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, row: Mapping[str, Any]) -> None:
        """The first row of a file makes its columns."""
        if not PartialState().is_main_process:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+", newline="", encoding="utf-8") as file:
            file.seek(0)
            columns = next(csv.reader(file), None)
            header = [] if columns else [list(row)]
            file.write(_csv([*header, [row.get(column, "") for column in columns or row]]))

    def keep(self, is_kept: Callable[[Mapping[str, str]], bool]) -> None:
        """Drop all other rows, and half a last one."""
        if not PartialState().is_main_process or not self.path.exists():
            return
        kept = [row for row in self.read() if is_kept(row)]
        if not kept:
            self.path.unlink()
            return
        text = _csv([list(kept[0]), *(list(row.values()) for row in kept)])
        write_atomically(self.path, lambda path: path.write_text(text, encoding="utf-8"))

    def read(self) -> list[dict[str, str]]:
        """The rows that are there and whole; a full disk may have cut the last one."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            text = file.read()
        whole = io.StringIO(text[: text.rfind("\n") + 1], newline="")
        header, *rows = list(csv.reader(whole)) or [[]]
        return [dict(zip(header, row, strict=True)) for row in rows if len(row) == len(header)]


class Log:
    """Losses, speed and memory of a run, averaged over some steps, and metrics after an epoch.

    They go to ``log.csv`` and ``metrics.csv`` in the run folder and to the accelerator's trackers.
    """

    def __init__(self, accelerator: Accelerator, output: Path) -> None:
        self.accelerator = accelerator
        self.steps, self.metrics = CsvFile(output / LOG_FILE), CsvFile(output / METRICS_FILE)
        self.bar = tqdm(disable=True)
        self.restart()

    def begin(self, step: int, epoch: int, total_steps: int) -> None:
        """Show the progress, and forget the rows of what is made again after ``step``."""

        def is_done(row: Mapping[str, str]) -> bool:
            # the validation after an epoch's last step may not have been done with it
            return int(row["step"]) <= step and (not row["AP"] or int(row["epoch"]) <= epoch)

        self.steps.keep(is_done)
        self.metrics.keep(is_done)
        is_main = self.accelerator.is_main_process
        self.bar = progress_bar(
            initial=step, total=total_steps, desc="train", unit="step", disable=not is_main
        )

    def restart(self) -> None:
        """Begin a new average; what validation and saving take is not counted as training."""
        self._sums: dict[str, Tensor] = {}
        self._steps, self._images, self._start = 0, 0, time.perf_counter()

    def count(self, losses: Mapping[str, Tensor], images: int) -> None:
        """One step of this process is done."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(loss)) + loss.detach()
        self._steps += 1
        self._images += images * self.accelerator.num_processes
        self.bar.update()

    def write(self, step: int, epoch: int, lr: float) -> None:
        """A row with the averages since the last one. To be called by all processes."""
        if not self._steps:
            return
        mean = {name: total / self._steps for name, total in self._sums.items()}
        mean = self.accelerator.reduce(mean, reduction="mean")
        terms = {name: loss.item() for name, loss in mean.items()}
        speed = self._images / (time.perf_counter() - self._start)
        memory = memory_held(self.accelerator.device)
        values = (
            {"lr": lr, "loss": sum(terms.values())}
            | terms
            | {"images_per_second": speed, "memory_gib": memory}
        )
        self.steps.append(
            {"step": step, "epoch": epoch} | values | dict.fromkeys(LOGGED_METRICS, "")
        )
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step)
        shown = {name: f"{value:.3g}" for name, value in terms.items()}
        self.bar.set_postfix(shown | {"img/s": f"{speed:.1f}", "GiB": f"{memory:.1f}"})
        self.restart()

    def write_metrics(self, step: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        """A row with the metrics after an epoch, and those of each class."""
        at = {"step": step, "epoch": epoch}
        figures = {name: value for name, value in metrics.items() if name != "per_class"}
        classes = {f"AP {name}": row["AP"] for name, row in metrics["per_class"].items()}
        self.steps.append(at | {key: metrics[key] for key in LOGGED_METRICS})
        self.metrics.append(at | figures | classes)
        self.accelerator.log({f"val/{k}": v for k, v in (figures | classes).items()}, step)
        shown = "  ".join(f"{key} {metrics[key]:.3f}" for key in LOGGED_METRICS)
        self.say(f"epoch {epoch}, step {step}: {shown}")

    def say(self, text: str) -> None:
        """A line above the progress bar."""
        if self.accelerator.is_main_process:
            tqdm.write(text)


@contextmanager
def quiet_writers() -> Iterator[None]:
    """Leave unsaid what a tracker's thread cannot write; the tracker raises it when next used."""
    hook = threading.excepthook

    def skip_os_error(failed: threading.ExceptHookArgs) -> None:
        if not isinstance(failed.exc_value, OSError):
            hook(failed)

    threading.excepthook = skip_os_error
    try:
        yield
    finally:
        threading.excepthook = hook


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
