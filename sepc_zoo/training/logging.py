"""The log of a run: a progress bar, CSV files and accelerate's trackers."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from sepc_zoo.data import Annotations
from sepc_zoo.inference.progress import progress_bar
from sepc_zoo.metric_names import LOGGED_METRICS
from sepc_zoo.terminal import printable
from sepc_zoo.training.csv_file import CsvFile

LOG_FILE, METRICS_FILE = "log.csv", "metrics.csv"
MAX_SHOWN_DROPPED = 20


class Log:
    """Losses, speed and memory, averaged over some steps, and the metrics of validations.

    They go to ``log.csv`` and ``metrics.csv`` in the run folder and to the accelerator's trackers.
    """

    def __init__(self, accelerator: Accelerator, output: Path) -> None:
        self.accelerator = accelerator
        self.steps, self.metrics = CsvFile(output / LOG_FILE), CsvFile(output / METRICS_FILE)
        self.bar = tqdm(disable=True)
        self.restart()

    def begin(self, step: int, epoch: int, num_steps: int) -> None:
        """Show the progress bar, and drop the rows of what will be repeated after ``step``."""

        def is_done(row: Mapping[str, str]) -> bool:
            # The validation after the last step of an epoch may have to be repeated.
            return int(row["step"]) <= step and (not row["AP"] or int(row["epoch"]) <= epoch)

        self.steps.keep(is_done)
        self.metrics.keep(is_done)
        is_main = self.accelerator.is_main_process
        self.bar = progress_bar(
            initial=step, total=num_steps, desc="train", unit="step", disable=not is_main
        )

    def restart(self) -> None:
        """Start a new average; the time of validation and saving does not count as training."""
        self._sums: dict[str, Tensor] = {}
        self._num_steps, self._num_images, self._start = 0, 0, time.perf_counter()

    def count(self, losses: Mapping[str, Tensor], num_images: int) -> None:
        """Add a step of this process to the average."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(loss)) + loss.detach()
        self._num_steps += 1
        self._num_images += num_images * self.accelerator.num_processes
        self.bar.update()

    def write(self, step: int, epoch: int, lr: float) -> None:
        """Write the averages since the last row. Must be called by all processes."""
        if not self._num_steps:
            return
        mean = {name: total / self._num_steps for name, total in self._sums.items()}
        mean = self.accelerator.reduce(mean, reduction="mean")
        terms = {name: loss.item() for name, loss in mean.items()}
        speed = self._num_images / (time.perf_counter() - self._start)
        memory = used_memory(self.accelerator.device)
        values = {"lr": lr, "loss": sum(terms.values()), **terms}
        values |= {"images_per_second": speed, "memory_gib": memory}
        self.steps.append(
            {"step": step, "epoch": epoch} | values | dict.fromkeys(LOGGED_METRICS, "")
        )
        self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step)
        shown = {name: f"{value:.3g}" for name, value in terms.items()}
        self.bar.set_postfix(shown | {"img/s": f"{speed:.1f}", "GiB": f"{memory:.1f}"})
        self.restart()

    def write_metrics(self, step: int, epoch: int, metrics: Mapping[str, Any]) -> None:
        """Write the metrics of a validation, over all classes and of each."""
        row = {"step": step, "epoch": epoch}
        values = {name: value for name, value in metrics.items() if name != "per_class"}
        values |= {f"AP {name}": of_class["AP"] for name, of_class in metrics["per_class"].items()}
        self.steps.append(row | {key: metrics[key] for key in LOGGED_METRICS})
        self.metrics.append(row | values)
        self.accelerator.log({f"val/{name}": value for name, value in values.items()}, step)
        shown = "  ".join(f"{key} {metrics[key]:.3f}" for key in LOGGED_METRICS)
        self.say(f"epoch {epoch}, step {step}: {shown}")

    def say(self, text: str) -> None:
        """Print a line above the progress bar; only in the main process."""
        if self.accelerator.is_main_process:
            tqdm.write(printable(text))


@contextmanager
def quiet_tracker_threads() -> Iterator[None]:
    """Hide an ``OSError`` in a tracker's thread; the tracker raises it again when next used."""
    hook = threading.excepthook

    def skip_os_error(failed: threading.ExceptHookArgs) -> None:
        if not isinstance(failed.exc_value, OSError):
            hook(failed)

    threading.excepthook = skip_os_error
    try:
        yield
    finally:
        threading.excepthook = hook


def used_memory(device: torch.device) -> float:
    """Memory in GiB: the peak on a GPU, or what this process holds now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return psutil.Process().memory_info().rss / 2**30


def list_dropped(annotations: Annotations) -> list[str]:
    """List what the reader left out and corrected: numbers, and the first of each."""
    lines = []
    for text, problems in (
        ("left out {} boxes and images", annotations.dropped),
        ("corrected {} entries", annotations.corrected),
    ):
        if problems:
            more = ", the first" * (len(problems) > MAX_SHOWN_DROPPED)
            lines.append(f"{text.format(len(problems))}{more}:")
            lines += [f"  {problem}" for problem in problems[:MAX_SHOWN_DROPPED]]
    return lines
