"""What a run is about to do, and what became of it, for the terminal."""

import time

from accelerate import PartialState
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sepc_zoo.data import Annotations
from sepc_zoo.models.necks.sepc import IntegratedBatchNorm
from sepc_zoo.training.setup import Run, images_per_step


def describe(run: Run) -> dict[str, str]:
    """All that is worth a look before a long run."""
    options, recipe, accelerator = run.options, run.recipe, run.accelerator
    config = run.detector.config
    learned = sum(p.numel() for p in run.detector.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in run.detector.parameters())
    images = images_per_step(options, accelerator)
    origin = "has learned before" if options.has_learned else "starts from random weights"
    frozen = f"frozen stages {recipe.freeze_stages}, frozen batch norm {recipe.freeze_bn}"
    given = (
        "as given" if options.lr is not None else f"{recipe.lr:g} for {recipe.batch_size} scaled"
    )
    rows = {
        "model": f"{config.architecture}, {config.num_classes} classes, "
        f"{everything / 1e6:.1f} M parameters, {learned / 1e6:.1f} M learn",
        "backbone": f"{origin}, {frozen}",
        "train": _contents(run.train_data),
        "validate": _contents(run.val_data),
        "input": f"sides of at most {config.weights.image_size[0]} and "
        f"{config.weights.image_size[1]} pixels",
        "device": f"{accelerator.num_processes} x {accelerator.device.type}, "
        f"{options.amp or 'float32'}{', channels-last' * options.channels_last}"
        f"{', compiled' * options.compile}",
        "step": f"{images} images: {options.batch_size} x {accelerator.num_processes} processes x "
        f"{options.grad_accum_steps} accumulated",
        "length": f"{run.total_steps} steps, {run.epochs} epochs of {run.steps_per_epoch}",
        "learning": f"{recipe.opt}, {recipe.sched}, rate {run.lr:.3g} ({given})",
        "batch norm": _norms(run),
        "average": f"of weights, decay {options.model_ema_decay}" if options.model_ema else "",
        "output": options.output,
    }
    return {name: text for name, text in rows.items() if text}


def show_start(run: Run) -> None:
    """Print ``describe``; only in the main process."""
    _show(describe(run))


def show_end(run: Run, seconds: float) -> None:
    """Print how it went; only in the main process."""
    rows = {
        "time": f"{time.strftime('%H:%M:%S', time.gmtime(seconds % 86400))}"
        f"{f' and {int(seconds // 86400)} days' * (seconds >= 86400)}",
        "best AP": f"{run.progress.best_ap:.3f} after epoch {run.progress.best_epoch}",
        "survived": run.faults.summary(),
    }
    _show({name: text for name, text in rows.items() if text})


def _show(rows: dict[str, str]) -> None:
    if not PartialState().is_main_process:
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in rows.items():
        table.add_row(f"[bold]{name}[/]", escape(text))
    Console().print(table)


def _contents(data: Annotations) -> str:
    boxes = sum(len(record.boxes) for record in data.records)
    empty = sum(not len(record.boxes) for record in data.records)
    return f"{len(data.records)} images, {boxes} boxes" + (f", {empty} without" if empty else "")


def _norms(run: Run) -> str:
    norms = [m for m in run.detector.modules() if isinstance(m, IntegratedBatchNorm)]
    if not norms or run.accelerator.num_processes == 1:
        return ""
    scope = "over all processes" if norms[0].sync else "of each process alone"
    return f"{scope}, which hold {run.options.batch_size} images each"
