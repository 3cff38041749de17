"""Summaries of a run, before and after it, for the terminal and the model card."""

from datetime import timedelta
from typing import Any

import msgspec
import numpy as np
from accelerate import PartialState
from rich.markup import escape
from rich.table import Table

from sepc_zoo.data import Annotations
from sepc_zoo.data.sampling import epoch_length, repeat_factors
from sepc_zoo.models.necks.sepc import IntegratedBatchNorm
from sepc_zoo.options import default_text
from sepc_zoo.terminal import counted, make_console, shorten
from sepc_zoo.training.recipes import warmup_steps
from sepc_zoo.training.run import Run


def describe(run: Run) -> dict[str, str]:
    """Describe a run before it starts, in rows for ``show``."""
    options, recipe, config = run.options, run.recipe, run.detector.config
    processes, device = run.accelerator.num_processes, run.accelerator.device.type
    sizes = {p: p.numel() / 1e6 for p in run.detector.parameters()}
    total = sum(sizes.values())
    trained = sum(size for p, size in sizes.items() if p.requires_grad)
    origin = "random weights" if options.learned == "nothing" else "pretrained"
    frozen = "all, and the neck," if options.freeze else f"{recipe.freeze_stages} stages"
    short, long = config.weights.image_size
    has_colours = len(config.weights.mean) == 3
    return {
        "model": f"{config.architecture}, {config.num_classes} classes, {total:.1f} M parameters, "
        f"{trained:.3g} M trained",
        "backbone": f"{origin}, {frozen} frozen, batch norm "
        f"{'frozen' if recipe.freeze_bn else 'trained'}",
        "train": _contents(run.train_data),
        "repeated": repeated_classes(run),
        "validate": _contents(run.val_data),
        "input": f"sides of at most {short} and {long} pixels",
        "device": f"{processes} x {device}, {options.amp or 'float32'}"
        f"{', channels-last' * options.channels_last}{', compiled' * options.compile}",
        "step": f"{recipe.batch_size} images: {options.images_per_pass} x {processes} processes x "
        f"{options.grad_accum_steps} accumulated",
        "length": f"{run.num_steps} steps, {run.num_steps / run.steps_per_epoch:.3g} epochs of "
        f"{run.steps_per_epoch}",
        "recipe": f"{recipe.name} ({recipe.reason}); --recipe NAME takes another",
        "optimizer": f"{recipe.opt}, {recipe.sched}, lr {recipe.lr:.3g}, warm-up "
        f"{warmup_steps(recipe, run.num_steps)} steps, gradient norm at most {recipe.clip_grad:g}",
        "augmentation": ", ".join(
            f"{name} {default_text(value)}"
            for name, value in options.augmentation.items()
            if has_colours or name not in ("hue", "saturation")
        ),
        "class weights": _class_weights(run),
        "batch norm": _batch_norm(run),
        "weights": f"moving average, decay {options.model_ema_decay}" * recipe.model_ema,
        "output": str(run.output),
    }


def show_end(run: Run, seconds: float) -> None:
    """Print how the run went; only in the main process."""
    best = f"{run.progress.best_ap:.3f} after epoch {run.progress.best_epoch}"
    rows = {
        "time": str(timedelta(seconds=round(seconds))),
        "best AP": best if run.progress.best_ap >= 0 else "unknown",
        "survived": run.faults.summary(),
    }
    show(rows)


def show(rows: dict[str, str]) -> None:
    """Print rows that have a text as a table; only in the main process."""
    if not PartialState().is_main_process:
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, text in rows.items():
        if text:
            table.add_row(f"[bold]{name}[/]", escape(text))
    make_console().print(table)


def training_facts(run: Run) -> dict[str, Any]:
    """Facts about the training for the model card; no paths."""
    recipe, options = run.recipe, run.options
    names = ("opt", "weight_decay", "sched", "layer_decay", "freeze_stages", "freeze_bn")
    method: Any = run.detector.config.method
    changed = {
        entry.name: value
        for entry in msgspec.structs.fields(method)
        if (value := getattr(method, entry.name)) != entry.default
    }
    return {
        "recipe": recipe.name,
        "steps": f"{run.progress.step} of {recipe.batch_size} images",
        "images": f"{len(run.train_data.records)} for training, {len(run.val_data.records)} for "
        "validation",
        "lr": f"{recipe.lr:.3g}",
        **{name: getattr(recipe, name) for name in names},
        "augmentation": options.augmentation,
        "class weights": " ".join(options.class_weights) or "all 1",
        "repeat factor": options.repeat_factor or None,
        "changes to the method": changed,
        "precision": options.amp or "float32",
        "moving average of weights": options.model_ema,
        "seed": options.seed,
    }


def repeated_classes(run: Run) -> str:
    """Name the classes whose images are repeated, and how often; "" where it was not asked for."""
    if not run.options.repeat_factor:
        return ""
    of_class, of_image = repeat_factors(run.train_data, run.options.repeat_factor)
    rows = zip(of_class.tolist(), run.detector.config.label_names, strict=True)
    rare = [f"{name} x{factor:.2f}" for factor, name in sorted(rows, reverse=True) if factor > 1]
    return f"images of rare classes: {shorten(rare)}; {epoch_length(of_image)} images in an epoch"


def _contents(data: Annotations) -> str:
    counts = np.diff(data.records.starts)
    empty = int((counts == 0).sum())
    images, boxes = counted(len(counts), "image"), counted(counts.sum(), "box")
    return f"{images}, {boxes}" + (f", {empty} without" if empty else "")


def _class_weights(run: Run) -> str:
    if run.class_weights is None:
        return ""
    pairs = zip(run.detector.config.label_names, run.class_weights.tolist(), strict=True)
    return shorten([f"{name} {weight:.3g}" for name, weight in pairs])


def _batch_norm(run: Run) -> str:
    norms = [m for m in run.detector.modules() if isinstance(m, IntegratedBatchNorm)]
    if not norms or run.accelerator.num_processes == 1:
        return ""
    scope = "over all processes" if norms[0].sync else "of each process alone"
    return f"{scope}, with {run.options.images_per_pass} images each"
