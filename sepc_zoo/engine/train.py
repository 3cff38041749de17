"""Training: one loop for one process or many."""

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator, skip_first_batches
from accelerate.data_loader import DataLoaderShard
from accelerate.utils import set_seed
from timm.scheduler.scheduler import Scheduler
from torch import Tensor
from torch.utils.data import DataLoader

from sepc_zoo.config import ConfigError, DetectorConfig, from_plain
from sepc_zoo.data import (
    Annotations,
    Batch,
    DetectionDataset,
    make_loader,
    read_data,
    train_transform,
)
from sepc_zoo.engine.accelerator import make_accelerator
from sepc_zoo.engine.checkpoint import Progress, load_state, save_state, saved_state
from sepc_zoo.engine.interrupt import Interrupt, Interrupted, shield_workers
from sepc_zoo.engine.log import Log, told_dropped
from sepc_zoo.engine.optim import (
    Recipe,
    default_recipe,
    freeze_stages,
    make_optimizer,
    make_scheduler,
    scaled_lr,
    set_train_mode,
)
from sepc_zoo.engine.validate import validate_model, validation_loader
from sepc_zoo.errors import UserError
from sepc_zoo.factory import create_model, load_backbone
from sepc_zoo.files import write_atomically, write_json
from sepc_zoo.hub import HUB_PREFIX, LOCAL_PREFIX, save_model
from sepc_zoo.model.detector import Detector
from sepc_zoo.visualize import contact_sheet, plot_curves

SAMPLES = 8  # photos of the validation split that are drawn after each epoch
OPTIONS_FILE = "config.yaml"
# Least and largest value of an option that is a number.
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(("epochs", "max_steps", "batch_size"), (1, math.inf)),
    **dict.fromkeys(("val_interval", "log_interval", "save_interval"), (1, math.inf)),
    **dict.fromkeys(("lr", "weight_decay", "warmup_steps", "workers"), (0, math.inf)),
    "clip_grad": (1e-6, math.inf),
    "freeze_stages": (0, 4),
    "hflip": (0, 1),
    "seed": (0, 2**32 - 1),
}
# Entries of a model's config that come from the data or have a flag of their own.
NOT_MODEL_KWARGS = {"num_classes", "label_names", "category_ids", "backbone_kwargs", "weights"}


class TrainError(UserError, RuntimeError):
    """A run that cannot start or go on; the message says why and what may help."""


@dataclass(frozen=True)
class TrainOptions:
    """What a run is asked for; None leaves it to the model and its recipe."""

    data: str
    model: str
    output: str
    train_split: str = "train"
    val_split: str = "val"
    epochs: int | None = None
    max_steps: int | None = None
    batch_size: int = 4  # images per process
    image_size: tuple[int, int] | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    backbone_kwargs: dict[str, Any] = field(default_factory=dict)
    pretrained_backbone: bool = False
    backbone_checkpoint: str | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    opt: str | None = None
    lr: float | None = None
    weight_decay: float | None = None
    sched: str | None = None
    warmup_steps: int | None = None
    clip_grad: float | None = None
    freeze_stages: int | None = None
    freeze_bn: bool | None = None
    amp: str | None = None  # bf16 or fp16
    hflip: float = 0.5
    color_jitter: bool = False
    scale: tuple[float, float] = (1.0, 1.0)
    drop_bad_boxes: bool = False
    val_interval: int = 1  # epochs
    log_interval: int = 10  # steps
    save_interval: int = 500  # steps
    workers: int = 2
    seed: int = 0
    cpu: bool = False

    def __post_init__(self) -> None:
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise ConfigError(f"{name} is {value}, but must lie in {least}..{most}")
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise ConfigError(f"scale is {self.scale}, but must be 0 < low <= high")
        entries = {entry.name for entry in dataclasses.fields(DetectorConfig)} - NOT_MODEL_KWARGS
        unknown = sorted(set(self.model_kwargs) - entries)
        if unknown:
            raise ConfigError(f"model_kwargs has {unknown}; it may have {sorted(entries)}")


@dataclass
class Run:
    """All that the loop needs."""

    options: TrainOptions
    recipe: Recipe
    accelerator: Accelerator
    model: torch.nn.Module  # the detector as accelerate prepared it
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    train_loader: DataLoaderShard
    val_loader: DataLoader
    val_data: Annotations
    total_steps: int
    progress: Progress
    log: Log

    @property
    def output(self) -> Path:
        return Path(self.options.output)

    @property
    def detector(self) -> Detector:
        return self.accelerator.unwrap_model(self.model)

    @property
    def epochs(self) -> int:
        return math.ceil(self.total_steps / len(self.train_loader))

    def remaining_batches(self, epoch: int) -> Iterator[Batch]:
        """Batches of an epoch that were not learned from yet."""
        done = self.progress.step - epoch * len(self.train_loader)
        loader = self.train_loader
        if done:
            loader = skip_first_batches(loader, done)
        loader.set_epoch(epoch)
        return islice(loader, self.total_steps - self.progress.step)


def train(options: TrainOptions, resume: bool = False) -> dict[str, Any]:
    """Train, validate after each epoch, and leave a run folder.

    Returns:
        The metrics of the last epoch, and ``best_AP``.

    Raises:
        ConfigError, DataError, HubError, TrainError: before the first step, with all that is wrong.
        TrainError: the loss is no longer finite.
        Interrupted: by SIGINT or SIGTERM, after the state was saved.
    """
    run = prepare(options, resume)
    with Interrupt() as interrupt:
        return fit(run, interrupt)


def fit(run: Run, interrupt: Interrupt) -> dict[str, Any]:
    """The loop, from wherever ``run.progress`` stands."""
    metrics: dict[str, Any] = {}
    for epoch in range(run.progress.epoch, run.epochs):
        set_train_mode(run.detector, run.recipe.freeze_bn)
        run.log.restart()
        for batch in run.remaining_batches(epoch):
            losses = train_step(run, batch)
            run.log.count(losses, len(batch.images))
            if run.progress.step % run.options.log_interval == 0:
                log_losses(run, epoch + 1)
            if interrupt.signal or run.progress.step % run.options.save_interval == 0:
                log_losses(run, epoch + 1)
                save_state(run.accelerator, run.output)
                stop_if_interrupted(run, interrupt)
        log_losses(run, epoch + 1)
        run.progress.epoch = epoch + 1
        if run.progress.epoch == run.epochs or run.progress.epoch % run.options.val_interval == 0:
            metrics = finish_epoch(run)
        save_state(run.accelerator, run.output)
        stop_if_interrupted(run, interrupt)
    run.log.bar.close()
    return metrics | {"best_AP": run.progress.best_ap}


def train_step(run: Run, batch: Batch) -> dict[str, Tensor]:
    """One step of the optimizer."""
    predictions = run.model(batch.images)
    losses = run.detector.loss(predictions, batch.targets)
    loss = torch.stack(list(losses.values())).sum()
    if not loss.isfinite():
        images = [target["image_id"] for target in batch.targets]
        raise TrainError(
            f"the loss is {loss.item()} at step {run.progress.step + 1} (images {images}): try a "
            f"lower --lr or --clip-grad; {run.output} has the run up to its last save"
        )
    run.accelerator.backward(loss)
    run.accelerator.clip_grad_norm_(run.model.parameters(), run.recipe.clip_grad)
    run.optimizer.step()
    run.optimizer.zero_grad()
    run.progress.step += 1
    run.scheduler.step_update(run.progress.step)
    return losses


def log_losses(run: Run, epoch: int) -> None:
    run.log.write(run.progress.step, epoch, run.optimizer.param_groups[0]["lr"])


def finish_epoch(run: Run) -> dict[str, Any]:
    """Validate, keep the last and the best model, and draw."""
    metrics, results = validate_model(run.accelerator, run.model, run.val_loader, run.val_data)
    is_best = metrics["AP"] > run.progress.best_ap
    run.progress.best_ap = max(metrics["AP"], run.progress.best_ap)
    if run.accelerator.is_main_process:
        run.log.write_ap(run.progress.step, run.progress.epoch, metrics)
        for folder in ["last", "best"] if is_best else ["last"]:
            save_model(run.detector, run.output / folder)
            write_json(run.output / folder / "metrics.json", metrics)
            write_json(run.output / folder / "detections.json", results, indent=None)
        draw_samples(run)
        if find_spec("matplotlib"):
            plot_curves(run.log.path, run.output / "curves.png")
    run.accelerator.wait_for_everyone()
    return metrics


def draw_samples(run: Run) -> None:
    """The first photos of the validation split with what the model sees in them."""
    photos = [record.path for record in run.val_data.records[:SAMPLES]]
    sheet = contact_sheet([found.draw() for found in run.detector.predict(photos)])
    path = run.output / "samples" / f"epoch_{run.progress.epoch:03d}.png"
    write_atomically(path, sheet.save)


def stop_if_interrupted(run: Run, interrupt: Interrupt) -> None:
    if interrupt.signal:
        run.log.bar.close()
        raise Interrupted(
            f"saved after step {run.progress.step}; go on with --resume {run.output}",
            status=128 + interrupt.signal,
        )


def prepare(options: TrainOptions, resume: bool = False) -> Run:
    """Read the data, build the model, and put all in the hands of accelerate."""
    output = Path(options.output)
    if saved_state(output) and not resume:
        raise TrainError(
            f"{output} holds a run: go on with --resume {output}, or choose another --output"
        )
    accelerator = make_accelerator(options.amp, options.cpu)
    set_seed(options.seed)

    train_data = read_data(options.data, options.train_split, None, options.drop_bad_boxes)
    model = build_model(options, train_data)
    val_data = read_data(
        options.data, options.val_split, model.config.label_names, options.drop_bad_boxes
    )
    if not val_data.records:
        raise TrainError(f"split {options.val_split!r} of {options.data} has no images")
    has_learned = (
        options.pretrained_backbone
        or options.backbone_checkpoint is not None
        or options.model.startswith((HUB_PREFIX, LOCAL_PREFIX))
    )
    recipe = choose_recipe(options, default_recipe(model.config, options.opt), has_learned)
    freeze_stages(model.backbone, recipe.freeze_stages)

    loader = train_loader(options, train_data, model, accelerator.num_processes)
    images_per_step = options.batch_size * accelerator.num_processes
    lr = scaled_lr(recipe, images_per_step) if options.lr is None else options.lr
    optimizer = make_optimizer(model, recipe, lr)
    prepared, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    val_loader = validation_loader(val_data, model, options.batch_size, options.workers)
    total_steps = options.max_steps or recipe.epochs * len(loader)
    scheduler = make_scheduler(optimizer, recipe, lr, total_steps)
    log = Log(output / "log.csv", total_steps, accelerator.num_processes, accelerator.device)
    progress = Progress()
    accelerator.register_for_checkpointing(scheduler, progress)
    if resume:
        load_state(accelerator, output)
        log.resume_at(progress.step)
    elif accelerator.is_main_process:
        write_options(options)
        log.path.unlink(missing_ok=True)  # of a run that ended before its first save
    for line in (*told_dropped(train_data), *told_dropped(val_data)):
        log.say(line)
    if not find_spec("matplotlib"):
        log.say('no curves.png without matplotlib: pip install "sepc_zoo[plots]"')
    log.say(
        f"{model.config.architecture} for {model.config.num_classes} classes, on "
        f"{accelerator.device}: {len(train_data.records)} images to train on, "
        f"{len(val_data.records)} to validate"
    )
    log.say(
        f"backbone {'has learned before' if has_learned else 'starts from random weights'}, frozen "
        f"stages {recipe.freeze_stages}, frozen batch norm {recipe.freeze_bn}; {recipe.opt}, "
        f"learning rate {lr:.3g} for {images_per_step} images a step, {recipe.sched}"
    )
    return Run(
        options,
        recipe,
        accelerator,
        prepared,
        optimizer,
        scheduler,
        loader,
        val_loader,
        val_data,
        total_steps,
        progress,
        log,
    )


def build_model(options: TrainOptions, data: Annotations) -> Detector:
    """The model for the classes of the data, with the input that the options ask for."""
    weights: dict[str, Any] = {"dataset": Path(options.data).resolve().name}
    for name in ("image_size", "mean", "std"):
        if getattr(options, name) is not None:
            weights[name] = getattr(options, name)
    model = create_model(
        options.model,
        label_names=data.label_names,
        category_ids=data.category_ids,
        inclusive_boxes=False,  # targets are continuous, and so the model learns
        pretrained_backbone=options.pretrained_backbone,
        backbone_kwargs=options.backbone_kwargs,
        weights=weights,
        **options.model_kwargs,
    )
    if options.backbone_checkpoint is not None:
        load_backbone(model, options.backbone_checkpoint)
    return model


def choose_recipe(options: TrainOptions, recipe: Recipe, has_learned: bool) -> Recipe:
    """The model's recipe with the options' changes; a backbone that knows nothing is not frozen."""
    if not has_learned:
        recipe = dataclasses.replace(recipe, freeze_stages=0, freeze_bn=False)
    names = [f.name for f in dataclasses.fields(Recipe) if f.name not in ("batch_size", "lr")]
    asked = {name: getattr(options, name) for name in names}
    return dataclasses.replace(recipe, **{k: v for k, v in asked.items() if v is not None})


def train_loader(
    options: TrainOptions, data: Annotations, model: Detector, processes: int
) -> DataLoader:
    """Shuffled, augmented batches."""
    weights = model.config.weights
    transform = train_transform(
        *weights.image_size,
        weights.mean,
        weights.std,
        antialias=weights.antialias,
        hflip=options.hflip,
        color_jitter=options.color_jitter,
        scale=options.scale,
    )
    if not data.records:
        raise TrainError(f"split {options.train_split!r} of {options.data} has no images")
    loader = make_loader(
        DetectionDataset(data, transform, options.seed),
        options.batch_size,
        shuffle=True,
        seed=options.seed,
        workers=options.workers,
        multiple=weights.pad_multiple,
        drop_last=len(data.records) >= options.batch_size * processes,
    )
    return shield_workers(loader)


def write_options(options: TrainOptions) -> None:
    text = yaml.safe_dump(dataclasses.asdict(options), sort_keys=False)
    path = Path(options.output) / OPTIONS_FILE
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def read_options(run: str | Path) -> TrainOptions:
    """The options that a run was started with; its folder may have moved since.

    Raises:
        TrainError: the folder holds no run.
    """
    path = Path(run) / OPTIONS_FILE
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        options = from_plain(TrainOptions, content, str(path))
    except (OSError, yaml.YAMLError, ConfigError) as error:
        raise TrainError(f"{run} is no run folder to resume: {error}") from error
    return dataclasses.replace(options, output=str(run))
