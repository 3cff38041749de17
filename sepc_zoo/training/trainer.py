"""Training: one loop for one process or many."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from functools import partial
from itertools import islice
from typing import Any

import torch
from accelerate.tracking import GeneralTracker
from torch import Tensor
from torch import distributed as dist

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.data import Batch
from sepc_zoo.data.images import ImageError
from sepc_zoo.data.resilient_loader import kill_workers
from sepc_zoo.data.transforms.pipeline import Transform
from sepc_zoo.evaluation.validate import validate_model
from sepc_zoo.files import write_json
from sepc_zoo.models.detector import Detector
from sepc_zoo.ops.devices import to_device
from sepc_zoo.ops.distributed import sum_over_processes
from sepc_zoo.terminal import quoted
from sepc_zoo.training.callback import Callback, Stop
from sepc_zoo.training.callbacks import draw_inputs
from sepc_zoo.training.checkpoint import save_state
from sepc_zoo.training.dry_run import list_needs, settle_batch_size
from sepc_zoo.training.gradients import update_weights
from sepc_zoo.training.logging import quiet_tracker_threads
from sepc_zoo.training.options import TrainError, TrainOptions
from sepc_zoo.training.recipes import set_train_mode
from sepc_zoo.training.resilience.faults import FaultError, any_not_finite
from sepc_zoo.training.resilience.signals import SIGNALS, Interrupted, WaitEnded
from sepc_zoo.training.run import AsyncScalars, Run, StepResult
from sepc_zoo.training.run_folder import locked
from sepc_zoo.training.summary import describe, show, show_end, training_facts


def train(
    options: TrainOptions,
    resume: bool = False,
    callbacks: Sequence[Callback] = (),
    transform: Transform | None = None,
    trackers: Sequence[GeneralTracker] = (),
) -> dict[str, Any]:
    """Train a model, validate it after each epoch, and write a run folder; arguments as in ``Run``.

    It can be called from any thread; signals save the run where that is the main one.

    Returns:
        The metrics of the last validation, and ``best_AP``; -1 where that is unknown.

    Raises:
        ConfigError, DataError, HubError, TrainError: before the first step, with all that is wrong.
        TrainError: the run cannot go on, because of too many faults, a full disk or a lost machine.
        Interrupted: SIGINT, SIGTERM or SIGHUP arrived; the state was saved.
    """
    run = Run(settle_batch_size(options), resume, callbacks, transform, trackers)
    begin = time.monotonic()
    try:
        with locked(run.output):
            run.start()
            show(describe(run))
            for need in list_needs(run) if not resume else []:
                if not need.fits:
                    run.log.say(str(need))
            with run.interrupt, quiet_tracker_threads(), closing(run.log.bar):
                metrics = fit(run)
            call(run, "after_training")
        show_end(run, time.monotonic() - begin)
        return metrics
    except (FaultError, ImageError, OSError) as error:
        raise TrainError(f"the run cannot go on: {error}\n{how_to_go_on(run)}") from error
    except RuntimeError as error:
        if run.accelerator.num_processes == 1 or not is_lost_connection(error):
            raise
        reason = str(error).splitlines()[0]
        raise TrainError(
            f"the run cannot go on: another process or machine is gone or hangs ({reason:.200})\n"
            f"{how_to_go_on(run)}"
        ) from error
    finally:
        with suppress(OSError):  # a tracker on a full disk; it was reported before
            run.accelerator.finish_trackers()


def fit(run: Run) -> dict[str, Any]:
    """Run the training loop from ``run.progress`` to the end."""
    options, progress = run.options, run.progress
    try:
        for epoch in range(progress.epoch, run.num_epochs):
            call(run, "before_epoch")
            set_train_mode(run.detector, run.recipe.freeze_bn)
            run.log.restart()
            for batches in steps_of(run, epoch):
                call(run, "before_step", batches)
                train_step(run, batches)
                finish_step(
                    run,
                    log=progress.step % options.log_interval == 0,
                    save=progress.step % options.save_interval == 0,
                )
            is_validated = epoch + 1 == run.num_epochs or (epoch + 1) % options.val_interval == 0
            finish_step(run, log=True, save=is_validated and run.saved_step != progress.step)
            if is_validated:
                validate(run, epoch + 1)
            progress.epoch = epoch + 1
            finish_step(run, save=True)
            call(run, "after_epoch")
    except Stop as stop:
        run.log.say(str(stop))
        finish_step(run, save=True)
        run.log.say(how_to_go_on(run))
    except WaitEnded:  # by a signal, between two steps
        kill_workers()
        finish_step(run, log=True)
    return {**run.metrics, "best_AP": max(progress.best_ap, -1.0)}


def train_step(run: Run, batches: Sequence[Batch]) -> None:
    """Make one step of the optimizer; it changes nothing if the loss or gradient is not finite.

    The host does not wait for the device: ``finish_step`` reads the result, a step later.
    """
    statistics = batch_statistics(run.detector)
    before = [buffer.clone() for buffer in statistics]
    losses, norm = update_weights(run, batches)
    # With fp16, infinite gradients are usual until the scaler has found its scale.
    checked = [*losses.values()] if run.options.amp == "fp16" else [*losses.values(), norm]
    flags = sum_over_processes(torch.cat([any_not_finite(checked), host_flags(run)]))
    failed = flags[0] > 0
    for buffer, saved in zip(statistics, before, strict=True):
        buffer.copy_(torch.where(failed, saved, buffer))
    run.progress.step += 1
    run.scheduler.step_update(run.progress.step)
    run.in_flight.append(StepResult(run.progress.step, batches, losses, AsyncScalars(flags)))
    call(run, "after_step", failed)


def call(run: Run, moment: str, *args: Any) -> None:
    for callback in run.callbacks:
        getattr(callback, moment)(run, *args)


def steps_of(run: Run, epoch: int) -> Iterator[list[Batch]]:
    """Yield the batches of each remaining step of an epoch."""
    per_step = run.options.grad_accum_steps
    done = run.progress.step - epoch * run.steps_per_epoch
    weights = run.detector.config.weights
    loaded = run.train_loader.batches(epoch, done * per_step)
    device = run.accelerator.device
    batches = (batch.normalized(weights.mean, weights.std, device) for batch in loaded)
    if run.class_weights is not None:
        batches = (weighted(batch, run.class_weights) for batch in batches)
    while run.progress.step < run.num_steps and (group := list(islice(batches, per_step))):
        yield group


def weighted(batch: Batch, class_weights: Tensor) -> Batch:
    """Give each target the weights of its boxes, ``class_weights (K,)`` of their labels."""
    targets = [t | {"weights": class_weights[t["labels"]]} for t in batch.targets]
    return batch._replace(targets=targets)


def batch_statistics(detector: Detector) -> list[Tensor]:
    """The buffers that a forward pass may change: those of modules in train mode."""
    training = [module for module in detector.modules() if module.training]
    return [buffer for module in training for buffer in module.buffers(recurse=False)]


def host_flags(run: Run) -> Tensor:
    """Whether each of ``SIGNALS`` has reached this process, and the number of its new faults."""
    flags = [float(run.interrupt.signal == number) for number in SIGNALS]
    return to_device(torch.tensor([*flags, len(run.faults.new)]), run.accelerator.device)


def finish_step(run: Run, log: bool = False, save: bool = False) -> None:
    """Log and save where that is due; end on a signal or after too many faults.

    Called by all processes between steps. The host waits for the device only to log and to save.
    """
    in_flight = 0 if log or save else max_in_flight(run.accelerator.device)
    *signals, faults = read_results(run, in_flight)
    if log or save:
        *signals, faults = flags_now(run)
    report_faults(run, faults)
    if log or save or any(signals):
        write_log(run)
    if save or any(signals):
        save_run(run)
    end_on_signal(run, signals)


def max_in_flight(device: torch.device) -> int:
    """The number of steps that the host may start before it reads how they went."""
    return 1 if device.type == "cuda" else 0


def end_on_signal(run: Run, signals: Sequence[float]) -> None:
    """End a run that is saved if a process has got a signal."""
    for number, arrived in zip(SIGNALS, signals, strict=True):
        if arrived:
            raise Interrupted(how_to_go_on(run), status=128 + number)


def read_results(run: Run, in_flight: int = 0) -> list[float]:
    """Count the steps that were made or skipped, but for the last ``in_flight``.

    Returns:
        The sum of ``host_flags`` over all processes, as of the last step that was read.
    """
    flags = [0.0] * (len(SIGNALS) + 1)
    while len(run.in_flight) > in_flight:
        step, batches, losses, scalars = run.in_flight.popleft()
        failed, *flags = scalars.read()
        run.faults.step = step
        run.progress.skipped_in_a_row = run.progress.skipped_in_a_row + 1 if failed else 0
        if failed:
            run.log.bar.update()
            draw = partial(draw_inputs, run, batches)
            run.faults.skip_step(batches, losses, run.progress.skipped_in_a_row, draw)
        else:
            run.log.count(losses, sum(len(batch.images) for batch in batches))
    return flags


def flags_now(run: Run) -> list[float]:
    """The sum of ``host_flags`` over all processes, at this moment."""
    return sum_over_processes(host_flags(run)).tolist()


def report_faults(run: Run, num_new: float) -> None:
    """Report the new faults of all processes; where there are too many, save and end."""
    if num_new:
        run.faults.share()
    if run.faults.fatal:
        write_log(run)
        save_run(run)
        raise FaultError(run.faults.fatal)


def write_log(run: Run) -> None:
    read_results(run)
    lr = max(group["lr"] for group in run.optimizer.param_groups)
    run.log.write(run.progress.step, run.progress.epoch + 1, lr)


def save_run(run: Run) -> None:
    save_state(run.stateful_parts(), run.output)
    run.saved_step = run.progress.step
    call(run, "after_save")


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether an error of torch means that another process does not answer."""
    return isinstance(error, dist.DistError) or "gloo" in str(error)


def how_to_go_on(run: Run) -> str:
    if run.saved_step is None:
        return f"nothing was saved yet in {run.output}; start the run again"
    return f"saved after step {run.saved_step}; go on with --resume {quoted(run.output)}"


def validate(run: Run, epoch: int) -> None:
    """Validate the model after an epoch; save it as the last one, and as the best where it is."""
    try:
        evaluation, results = validate_model(
            run.accelerator,
            run.evaluated,
            run.val_loader,
            run.val_data,
            after_batch=lambda: end_on_signal(run, flags_now(run)[:-1]),
        )
    except ImageError:  # too many images cannot be read
        save_run(run)
        raise
    metrics = evaluation.metrics
    # Too many unreadable images end the run before metrics without them are saved.
    report_faults(run, flags_now(run)[-1])
    # COCO's AP is -1 where no box can be counted: then the last model is the best that is known.
    is_best = metrics["AP"] > run.progress.best_ap or metrics["AP"] < 0
    if is_best:
        run.progress.best_ap, run.progress.best_epoch = metrics["AP"], epoch
    if run.accelerator.is_main_process:
        run.log.write_metrics(run.progress.step, epoch, metrics)
        for folder in ["last", "best"] if is_best else ["last"]:
            path = run.output / folder
            save_model(run.evaluated, path, metrics=metrics, training=training_facts(run))
            write_json(path / "metrics.json", metrics)
            write_json(path / "detections.json", results, indent=None)
    run.metrics = metrics
    call(run, "after_validation", metrics)
    run.accelerator.wait_for_everyone()
