"""A training run: its parts and its position."""

import json
import math
import shutil
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.tracking import GeneralTracker
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sepc_zoo.config import config_to_json
from sepc_zoo.data import Batch
from sepc_zoo.data.resilient_loader import ResilientLoader
from sepc_zoo.data.splitting import RUN_SPLITS, SPLIT_FILE, write_assignment
from sepc_zoo.data.transforms.own import name_of
from sepc_zoo.data.transforms.pipeline import Transform
from sepc_zoo.evaluation.validate import validation_loader
from sepc_zoo.files import remove_temporary, write_json
from sepc_zoo.training import setup
from sepc_zoo.training.accelerator import make_accelerator, make_deterministic, make_scaler
from sepc_zoo.training.advice import advise
from sepc_zoo.training.callback import Callback
from sepc_zoo.training.callbacks import make_callbacks
from sepc_zoo.training.checkpoint import Progress, ResumeError, Stateful, digest, load_state
from sepc_zoo.training.config_file import check_changes, write_options
from sepc_zoo.training.inputs import class_changes, read_inputs
from sepc_zoo.training.logging import Log, list_dropped
from sepc_zoo.training.options import TrainError, TrainOptions
from sepc_zoo.training.recipes import choose_recipe, fill_in, make_optimizer, make_scheduler
from sepc_zoo.training.resilience.faults import SKIPPED_FOLDER, Faults
from sepc_zoo.training.resilience.signals import Interrupt
from sepc_zoo.training.run_folder import MODEL_FILE, check_output


class AsyncScalars:
    """A device-to-host copy in flight; ``read()`` blocks until it has arrived."""

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=values.is_cuda)
        self._arrived = torch.cuda.Event() if values.is_cuda else None
        if self._arrived is not None:
            self._arrived.record()

    def read(self) -> list[float]:
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._values.tolist()


class StepResult(NamedTuple):
    """A step that was started; the device may not have finished it."""

    step: int
    batches: Sequence[Batch]
    losses: dict[str, Tensor]
    flags: AsyncScalars  # number of processes in which the step failed, sums of ``host_flags``


class Run:
    """A training run: what it was asked for, its parts, and how far it has come.

    Making one reads the data and builds the model; it writes nothing.

    Args:
        resume: continue the run in ``options.output``.
        callbacks: called after the run's own.
        transform: applied to training images before the run's own.
        trackers: trackers of accelerate beside those of the options.

    Attributes:
        options: all options, those of the recipe too.
        detector: the model that is trained.
        evaluated: the model that is validated and saved: ``detector``, or its moving average.
        progress: ``step``, ``epoch``, ``best_ap`` and ``best_epoch``.
        num_steps: steps of the optimizer in the whole run.
        optimizer: an optimizer of torch.
        accelerator: of accelerate; ``is_main_process``, ``device``.
        log: ``log.say(text)`` prints a line above the progress bar.
        output: the run folder.

    Raises:
        ConfigError, DataError, HubError, TrainError: with all that is wrong.
    """

    def __init__(
        self,
        options: TrainOptions,
        resume: bool = False,
        callbacks: Sequence[Callback] = (),
        transform: Transform | None = None,
        trackers: Sequence[GeneralTracker] = (),
    ) -> None:
        self.output, self.resume = Path(options.output), resume
        check_output(self.output, resume)
        if resume:
            check_changes(options)
        if options.deterministic:
            make_deterministic()
        log_with = [*options.log_with, *trackers]
        self.accelerator = make_accelerator(options.amp, options.device, log_with, self.output)
        set_seed(options.seed)
        self.train_data, self.val_data, model, self.notes = read_inputs(options, resume)
        processes = self.accelerator.num_processes
        self.recipe = choose_recipe(options, model.config, self.train_data, processes)
        self.options = options = fill_in(options, self.recipe)
        self.class_weights = setup.class_weights(options, self.train_data)
        setup.prepare_model(options, self.recipe, model, self.accelerator)
        self.detector = model
        ids = self.train_data.category_ids if options.keep_classes else ()
        self.unseen_classes = [label for label, number in enumerate(ids) if number is None]

        self.log = Log(self.accelerator, self.output)
        self.faults = Faults(self.output, options.max_faults, self.log)
        train = setup.train_loader(options, self.train_data, model, self.accelerator, transform)
        val = validation_loader(self.val_data, model, options.images_per_pass, options.workers)
        self.interrupt = Interrupt()
        # A signal to one of several processes must not end its wait alone: the others would hang.
        waiting = self.interrupt.ends_wait if processes == 1 else nullcontext
        dead, unreadable = self.faults.add_dead_worker, self.faults.add_unreadable
        self.train_loader = ResilientLoader(
            train, dead, waiting, lambda batch: unreadable(batch.unreadable)
        )
        self.val_loader = ResilientLoader(
            val, dead, waiting, lambda files: unreadable(f.problem for f in files if f.problem)
        )
        self.steps_per_epoch = math.ceil(len(train) / options.grad_accum_steps)
        self.num_steps = options.max_steps or self.recipe.epochs * self.steps_per_epoch
        self.num_epochs = math.ceil(self.num_steps / self.steps_per_epoch)

        own, self.evaluated = make_callbacks(options, model)
        self.callbacks = [*own, *callbacks]
        self.optimizer = make_optimizer(model, self.recipe)
        self.scheduler = make_scheduler(self.optimizer, self.recipe, self.num_steps)
        self.scaler = make_scaler(options.amp, self.accelerator.device)
        self.model: nn.Module = model if processes == 1 else DistributedDataParallel(model)
        if options.compile:
            model.compile()
        set_seed(options.seed, device_specific=True)  # processes drop different paths

        self.in_flight: deque[StepResult] = deque()  # steps whose results the host has not read
        self.progress = Progress(
            images=len(self.train_data.records),
            train_data=digest(self.train_data),
            val_data=digest(self.val_data),
            transform="" if transform is None else name_of(transform),
        )
        self.saved_step: int | None = None
        self.metrics: dict[str, Any] = {}  # those of the last validation

    @property
    def losses(self) -> dict[str, Tensor]:
        """The terms of the loss in the last step, ``()`` each, for callbacks after a step.

        They are on the device, so reading their values waits for it.
        """
        return self.in_flight[-1].losses

    def stateful_parts(self) -> dict[str, Stateful]:
        """Collect what must be saved so that the run can be resumed."""
        parts: dict[str, Stateful] = {
            "model": self.detector,
            "optimizer": self.optimizer,
            "scaler": self.scaler,
            "progress": self.progress,
        }
        stateful = [callback for callback in self.callbacks if isinstance(callback, Stateful)]
        own = {type(callback).__name__: callback for callback in stateful}
        if len(own) < len(stateful):
            raise TrainError("two callbacks of one class have a state; make a class for each")
        return parts | own

    def load(self) -> str:
        """Load the last state of the run; return what is damaged, or ""."""
        damage, progress = load_state(self.stateful_parts(), self.output), self.progress
        self.saved_step = progress.step
        if (metrics := self.output / "last" / "metrics.json").is_file():
            self.metrics = json.loads(metrics.read_text(encoding="utf-8"))
        if progress.step > self.num_steps:
            raise ResumeError(
                f"{self.output} has made {progress.step} steps, and is to make {self.num_steps}: "
                "give more --epochs or --max-steps"
            )
        if progress.step < self.num_steps:  # a longer run may add steps to an ended epoch
            progress.epoch = min(progress.epoch, progress.step // self.steps_per_epoch)
        self.scheduler.step_update(progress.step)
        return damage

    def start(self) -> None:
        """Load the state, write the first files, and drop the logs of steps that are repeated.

        Call it while the run folder is locked.
        """
        check_output(self.output, self.resume)  # another run may have just ended
        damage = self.load() if self.resume else ""
        progress = self.progress
        if self.accelerator.is_main_process:
            remove_temporary(self.output)
            write_options(self.options)
            if not self.resume:
                self.write_first_files()
        self.faults.step = progress.step
        self.faults.file.keep(lambda row: int(row["step"]) <= progress.step)
        self.log.begin(progress.step, progress.epoch, self.num_steps)
        # TensorBoard drops the steps that will be repeated.
        purge = {"tensorboard": {"purge_step": progress.step + 1}}
        self.accelerator.start_trackers(init_kwargs=purge)
        lines = [damage] if damage else []
        lines += self.notes + list_dropped(self.train_data) + list_dropped(self.val_data)
        if not self.resume:
            config = self.detector.config
            lines += class_changes(self.options, config.label_names)
            lines += advise(self.options, config, self.train_data)
        if self.saved_step == self.num_steps and progress.epoch == self.num_epochs:
            lines.append(
                f"the run is complete, with all of its {self.num_steps} steps; to train on, give "
                "more --epochs or --max-steps"
            )
        for line in lines:
            self.log.say(line)

    def write_first_files(self) -> None:
        """Write what a resumed run reads, and remove what a run that never saved has left."""
        if self.train_data.note:  # the splits are not the data set's own, and must be remembered
            parts = self.train_data.records, self.val_data.records
            splits = zip(RUN_SPLITS, parts, strict=True)
            files = {name: map(own.path, range(len(own))) for name, own in splits}
            write_assignment(self.output / SPLIT_FILE, files)
        write_json(self.output / MODEL_FILE, config_to_json(self.detector.config))
        shutil.rmtree(self.output / SKIPPED_FOLDER, ignore_errors=True)
        for file in (self.log.steps, self.log.metrics, self.faults.file):
            file.path.unlink(missing_ok=True)
