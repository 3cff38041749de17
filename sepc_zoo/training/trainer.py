"""Training: one loop for one process or many."""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from itertools import islice
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.data import Batch
from sepc_zoo.data.images import ImageError, pad_and_stack
from sepc_zoo.evaluation.plots import plot_curves
from sepc_zoo.evaluation.validate import validate_model
from sepc_zoo.files import write_atomically, write_json
from sepc_zoo.inference.drawing import contact_sheet, draw_batch
from sepc_zoo.methods.losses import mean_over_processes
from sepc_zoo.models.detector import Detector
from sepc_zoo.ops.devices import to_device
from sepc_zoo.ops.distributed import sum_over_processes
from sepc_zoo.training.checkpoint import save_state
from sepc_zoo.training.logging import quiet_writers
from sepc_zoo.training.options import TrainError, TrainOptions
from sepc_zoo.training.recipes import set_train_mode, step_unless
from sepc_zoo.training.resilience.async_scalars import Later, Outcome, steps_ahead
from sepc_zoo.training.resilience.faults import FaultError, any_not_finite
from sepc_zoo.training.resilience.signals import SIGNALS, Interrupted
from sepc_zoo.training.setup import Run, images_per_step, prepare, start
from sepc_zoo.training.summary import show_end, show_start

SAMPLES = 8  # photos of the validation split that are drawn after each epoch


def train(options: TrainOptions, resume: bool = False) -> dict[str, Any]:
    """Train, validate after each epoch, and leave a run folder.

    Returns:
        The metrics of the last epoch, and ``best_AP``.

    Raises:
        ConfigError, DataError, HubError, TrainError: before the first step, with all that is wrong.
        TrainError: the run cannot go on: too many faults, or a full disk.
        Interrupted: by SIGINT or SIGTERM, after the state was saved.
    """
    run = prepare(options, resume)
    begin = time.monotonic()
    try:
        start(run, resume)
        show_start(run)
        with run.interrupt, quiet_writers():
            metrics = fit(run)
        run.log.bar.close()
        show_end(run, time.monotonic() - begin)
        return metrics
    except (FaultError, ImageError, OSError) as error:
        raise TrainError(f"the run cannot go on: {error}\n{how_to_go_on(run)}") from error
    finally:
        run.log.bar.close()
        with suppress(OSError):  # a tracker on a full disk, of which the run has told already
            run.accelerator.end_training()


def fit(run: Run) -> dict[str, Any]:
    """The loop, from wherever ``run.progress`` stands."""
    metrics: dict[str, Any] = {}
    options, progress = run.options, run.progress
    for epoch in range(progress.epoch, run.epochs):
        if run.is_stale:
            run.log.say(f"no better AP since epoch {progress.best_epoch}: stopped early")
            break
        set_train_mode(run.detector, run.recipe.freeze_bn)
        run.log.restart()
        for batches in steps_of(run, epoch):
            draw_first(run, batches)
            train_step(run, batches)
            look_around(
                run,
                log_is_due=progress.step % options.log_interval == 0,
                save_is_due=progress.step % options.save_interval == 0,
            )
        look_around(run, log_is_due=True)
        if epoch + 1 == run.epochs or (epoch + 1) % options.val_interval == 0:
            metrics = finish_epoch(run, epoch + 1)
        progress.epoch = epoch + 1
        look_around(run, save_is_due=True)
    return metrics | {"best_AP": progress.best_ap}


def steps_of(run: Run, epoch: int) -> Iterator[list[Batch]]:
    """The batches of each step of an epoch that was not made yet."""
    per_step = run.options.grad_accum_steps
    done = run.progress.step - epoch * run.steps_per_epoch
    weights = run.detector.config.weights
    loaded = run.train_loader.batches(epoch, done * per_step)
    device = run.accelerator.device
    batches = (batch.normalized(weights.mean, weights.std, device) for batch in loaded)
    while run.progress.step < run.total_steps and (group := list(islice(batches, per_step))):
        yield group


def draw_first(run: Run, batches: Sequence[Batch]) -> None:
    """Draw the first batches of the main process as the network gets them, where asked for."""
    if run.progress.step < run.options.draw_batches and run.accelerator.is_main_process:
        path = run.output / "batches" / f"step_{run.progress.step + 1:03d}.png"
        write_atomically(path, draw_seen(run, batches).save)


def draw_seen(run: Run, batches: Sequence[Batch]) -> Image.Image:
    """What the network gets in a step."""
    config = run.detector.config
    targets = [target for batch in batches for target in batch.targets]
    images = pad_and_stack([image for batch in batches for image in batch.images], 1)
    weights = config.weights
    return draw_batch(images, targets, weights.mean, weights.std, config.label_names)


def train_step(run: Run, batches: Sequence[Batch]) -> None:
    """One step of the optimizer, which changes nothing where loss or gradient are not finite.

    A GPU is not waited for, but with a moving average of the weights, which no step may enter that
    failed: how the step went is read by ``settle``, when it has been made.
    """
    statistics = changing_statistics(run.detector)
    before = [buffer.clone() for buffer in statistics]
    losses = accumulate_gradient(run, batches)
    norm = run.accelerator.clip_grad_norm_(run.model.parameters(), run.recipe.clip_grad)
    # The scaler of fp16 skips infinite gradients itself, which are its way to find its scale.
    checked = [*losses.values()] if run.accelerator.scaler else [*losses.values(), norm]
    flags = sum_over_processes(torch.cat([any_not_finite(checked), told_by_host(run)]))
    failed = flags[0] > 0
    step_unless(failed, run.optimizer, run.accelerator.scaler)
    for buffer, saved in zip(statistics, before, strict=True):
        buffer.copy_(torch.where(failed, saved, buffer))  # batch norms have seen the batch
    run.optimizer.zero_grad()
    run.progress.step += 1
    run.scheduler.step_update(run.progress.step)
    if run.ema is not None and not failed.item():
        run.ema.update(run.detector, run.progress.step)
    run.outcomes.append(Outcome(run.progress.step, batches, losses, Later(flags)))


def changing_statistics(detector: Detector) -> list[Tensor]:
    """The buffers that a forward pass may change: those of the parts in train mode."""
    parts = [module for module in detector.modules() if module.training]
    return [buffer for module in parts for buffer in module.buffers(recurse=False)]


def accumulate_gradient(run: Run, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The gradient of all batches as of a single one goes to the parameters; the loss terms.

    It is exact where the counts of the loss terms follow from the targets, or where all terms have
    one count. Otherwise (GFL) all terms are weighted as the first.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, Tensor] = {}
    known = known_divisors(run, batches) if len(batches) > 1 else {}
    divisors = known
    for i, batch in enumerate(batches):
        is_last = i + 1 == len(batches)
        with nullcontext() if is_last else run.accelerator.no_sync(run.model):
            terms = run.detector.loss_terms(run.model(batch.images), batch.targets)
            counts = {name: counts.get(name, 0) + count for name, (_, count) in terms.items()}
            divisors = divisors or mean_over_processes(counts)
            losses = [total / divisors[name] for name, (total, _) in terms.items()]
            run.accelerator.backward(torch.stack(losses).sum())
        sums = {name: sums.get(name, 0) + total.detach() for name, (total, _) in terms.items()}
    if len(batches) > 1 and not known:  # the counts of all batches are known only now
        first, divisors = divisors, mean_over_processes(counts)
        gradients = [p.grad for p in run.model.parameters() if p.grad is not None]
        name = next(iter(sums))
        torch._foreach_mul_(gradients, first[name] / divisors[name])
    return {name: total / divisors[name] for name, total in sums.items()}


def known_divisors(run: Run, batches: Sequence[Batch]) -> dict[str, Tensor]:
    """What the loss terms of all batches together are divided by, if the targets tell; else {}."""
    totals: dict[str, Tensor] = {}
    for batch in batches:
        height, width = batch.images.shape[-2:]
        counts = run.detector.loss_counts((height, width), batch.targets)
        if counts is None:
            return {}
        totals = {name: totals.get(name, 0) + count for name, count in counts.items()}
    return mean_over_processes(totals)


def told_by_host(run: Run) -> Tensor:
    """Whether this process has met each of ``SIGNALS``, and the number of its faults."""
    met = [run.interrupt.signal == number for number in SIGNALS]
    here = torch.tensor([*met, len(run.faults.met)], dtype=torch.float32)
    return to_device(here, run.accelerator.device)


def settle(run: Run, ahead: int = 0) -> list[float]:
    """Count the steps that were made or skipped, but for the last ``ahead``.

    Returns:
        ``told_by_host`` of all processes together, as the last of the steps has seen it.
    """
    signals_and_faults = [0.0] * (len(SIGNALS) + 1)
    while len(run.outcomes) > ahead:
        step, batches, losses, flags = run.outcomes.popleft()
        failed, *signals_and_faults = flags.read()
        run.faults.step = step
        if failed:
            run.progress.skipped_in_a_row += 1
            row = run.progress.skipped_in_a_row
            run.log.bar.update()
            run.faults.skip(batches, losses, row, partial(draw_seen, run, batches))
        else:
            run.progress.skipped_in_a_row = 0
            run.log.count(losses, sum(len(batch.images) for batch in batches))
    return signals_and_faults


def look_around(run: Run, log_is_due: bool = False, save_is_due: bool = False) -> None:
    """Between steps: log and save at times, and end where a signal or too many faults ask for it.

    Only where something is due, a GPU is waited for.
    """
    is_due = log_is_due or save_is_due
    *signals, faults = settle(run, ahead=0 if is_due else steps_ahead(run.accelerator.device))
    if is_due:
        *signals, faults = agreed(run)
    share_faults(run, faults)
    if is_due or any(signals):
        log_losses(run)
    if save_is_due or any(signals):
        save(run)
    for number, seen in zip(SIGNALS, signals, strict=True):
        if seen:
            raise Interrupted(how_to_go_on(run), status=128 + number)


def agreed(run: Run) -> list[float]:
    """``told_by_host`` of all processes together."""
    return sum_over_processes(told_by_host(run)).tolist()


def share_faults(run: Run, met: float) -> None:
    """Tell the faults that any process has met; where they are too many, save and end."""
    if met:
        run.faults.share()
    if run.faults.too_much:
        log_losses(run)
        save(run)
        run.faults.stop_if_too_much()


def how_to_go_on(run: Run) -> str:
    if run.saved_step is None:
        return f"nothing was saved yet in {run.output}; start the run again"
    return f"saved after step {run.saved_step}; go on with --resume {run.output}"


def save(run: Run) -> None:
    save_state(run.state, run.output)
    run.saved_step = run.progress.step


def log_losses(run: Run) -> None:
    settle(run)
    lr = max(group["lr"] for group in run.optimizer.param_groups)
    run.log.write(run.progress.step, run.progress.epoch + 1, lr)


def finish_epoch(run: Run, epoch: int) -> dict[str, Any]:
    """Validate, keep the last and the best model, and draw."""
    try:
        evaluation, results = validate_model(
            run.accelerator, run.evaluated, run.val_loader, run.val_data
        )
    except ImageError:  # too many images are gone
        save(run)
        raise
    metrics = evaluation.metrics
    share_faults(run, agreed(run)[-1])  # before figures are kept that half the images are missing
    is_best = metrics["AP"] > run.progress.best_ap
    if is_best:
        run.progress.best_ap, run.progress.best_epoch = metrics["AP"], epoch
    if run.accelerator.is_main_process:
        run.log.write_metrics(run.progress.step, epoch, metrics)
        for folder in ["last", "best"] if is_best else ["last"]:
            save_model(
                run.evaluated, run.output / folder, metrics=metrics, training=training_facts(run)
            )
            write_json(run.output / folder / "metrics.json", metrics)
            write_json(run.output / folder / "detections.json", results, indent=None)
        draw_samples(run, epoch)
        if find_spec("matplotlib"):
            plot_curves(run.log.steps.path, run.output / "curves.png")
    run.accelerator.wait_for_everyone()
    return metrics


def training_facts(run: Run) -> dict[str, Any]:
    """What a model card tells of the training; no paths."""
    recipe, options = run.recipe, run.options
    names = ("opt", "weight_decay", "sched", "layer_decay", "freeze_stages", "freeze_bn")
    facts = {name: getattr(recipe, name) for name in names}
    augmentation = {k: v for k, v in asdict(options.augmentation).items() if v}
    return {
        "steps": f"{run.progress.step} of {images_per_step(options, run.accelerator)} images",
        "photos": f"{len(run.train_data.records)} to learn from, {len(run.val_data.records)} to "
        "validate on",
        "lr": f"{run.lr:.3g}",
        **facts,
        "augmentation": augmentation,
        "precision": options.amp or "float32",
        "moving average of weights": options.model_ema,
        "seed": options.seed,
    }


def draw_samples(run: Run, epoch: int) -> None:
    """The first photos of the validation split with what the model sees in them."""
    drawn = []
    for record in run.val_data.records[:SAMPLES]:
        with suppress(ImageError):  # it can no longer be read
            drawn.append(run.evaluated.predict(record.path).draw())
    if drawn:
        path = run.output / "samples" / f"epoch_{epoch:03d}.png"
        write_atomically(path, contact_sheet(drawn).save)
