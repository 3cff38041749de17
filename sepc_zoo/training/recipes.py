"""Recipes: optimizer, learning rate schedule, frozen layers and augmentation."""

import math
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from timm.layers import BatchNormAct2d
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler import CosineLRScheduler, MultiStepLRScheduler
from timm.scheduler.scheduler import Scheduler
from torch import nn

from sepc_zoo.config import DetectorConfig
from sepc_zoo.data import Annotations
from sepc_zoo.data.sampling import epoch_length, repeat_factors
from sepc_zoo.errors import ConfigError
from sepc_zoo.models.backbone import Backbone
from sepc_zoo.models.detector import Detector
from sepc_zoo.registry import BACKBONES
from sepc_zoo.training.options import Learned, RecipeName, Schedule, TrainOptions

SGD = ("sgd", "momentum")
FUSED = (*SGD, "nesterov", "adam", "adamw")  # optimizers of torch with a fused kernel
OFFSET_LR = 0.1  # factor on the learning rate of offsets with adaptive optimizers
AUTHORS_BACKBONES = [
    BACKBONES[name] for name in ("r18", "r34", "r50", "r101", "x101_32x4d", "x101_64x4d")
]

# Entries in which a recipe differs from "paper" (see ``default_recipe``).
RECIPES: dict[RecipeName, dict[str, Any]] = {
    "paper": {},
    "small": {
        "opt": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.05,
        "batch_size": 4,
        "min_steps": 1000,
        "sched": "cosine",
        "clip_grad": 10.0,
        "scale": (0.8, 1.2),
    },
    "strong": {
        "opt": "adamw",
        "lr": 5e-4,
        "weight_decay": 0.05,
        "batch_size": 16,
        "epochs": 36,
        "min_steps": 3000,
        "sched": "cosine",
        "clip_grad": 10.0,
        "model_ema": True,
        "color_jitter": True,
        "scale": (0.6, 1.0),
        "mosaic": 0.5,
    },
}
RATE = {"opt", "lr", "weight_decay", "batch_size"}  # entries that hold for one optimizer only
FINETUNED_LR = 0.25  # factor on the learning rate for a trained detector, except in "paper"
MIN_SCALED_EPOCHS = 10  # with fewer, "small" does not vary the image size
MIXED_PART = 0.8  # share of the epochs, from the first on, in which images are mixed
# "auto" takes "small" below any of these, and "strong" for more epochs.
MANY = {"images": 5000, "boxes": 20_000, "steps": 5000}
MANY_EPOCHS = 24


@dataclass(frozen=True)
class Recipe:
    """The way a model is trained; the defaults are those of the SEPC authors."""

    name: RecipeName = "paper"
    reason: str = ""  # why it was chosen
    epochs: int = 12
    min_steps: int = 0  # more epochs where ``epochs`` give fewer steps
    batch_size: int = 16  # images per step of all processes for which ``lr`` holds
    opt: str = "sgd"
    lr: float = 0.01
    weight_decay: float = 1e-4
    sched: Schedule = "multistep"  # x 0.1 after 8/12 and 11/12 of the run; or "cosine" to 0
    warmup_steps: int = 500
    layer_decay: float = 1.0  # factor of the learning rate, per stage from the head down
    clip_grad: float = 35.0  # maximum norm of the gradient
    freeze_stages: int = 1  # stem and first stage, in a pretrained backbone
    freeze_bn: bool = True  # keep the batch norm statistics of a pretrained backbone
    model_ema: bool = False  # moving average of the weights
    color_jitter: bool = False
    scale: tuple[float, float] = (1.0, 1.0)  # range of the random factor on the image size
    mosaic: float = 0.0  # probability
    mix_epochs: int | None = None  # first epochs with mosaic; None: all


# Entries that are options too; one that is given wins over the recipe.
OPTIONAL = sorted({e.name for e in fields(Recipe)} & {e.name for e in fields(TrainOptions)})
OPTIONAL.remove("batch_size")


class Task(NamedTuple):
    """The facts by which ``auto`` chooses a recipe."""

    images: int
    boxes: int
    steps: int  # of --max-steps or --epochs, else of the authors' number of epochs
    epochs: int
    learned: Learned  # part of the model that starts from trained weights


def choose_by_task(task: Task) -> tuple[RecipeName, str]:
    """Choose a recipe; return its name and the reason."""
    if task.learned == "detector":
        return "small", "a trained detector is fine-tuned"
    for what, many in MANY.items():
        count = getattr(task, what)
        if count < many:
            return "small", f"there are {count:,} {what}, fewer than {many:,}"
    if task.epochs >= MANY_EPOCHS:
        return "strong", f"there are {task.epochs} epochs"
    if task.learned == "nothing":
        return "strong", "the backbone is not pretrained"
    return "paper", "there are many images for a pretrained backbone"


def choose_recipe(
    options: TrainOptions, config: DetectorConfig, data: Annotations, num_processes: int
) -> Recipe:
    """The recipe that the options name or that fits the data; each option that is given wins.

    The learning rate is scaled to the batches of the run. A backbone with random weights is not
    frozen.
    """
    batch_size = options.images_per_pass * options.grad_accum_steps * num_processes
    length = epoch_length(repeat_factors(data, options.repeat_factor)[1])
    per_epoch = max(1, length // batch_size)
    steps = options.max_steps or per_epoch * (options.epochs or Recipe.epochs)
    epochs = math.ceil(steps / per_epoch)
    name, reason = options.recipe, "--recipe"
    if name == "auto":
        images, boxes = len(data.records), len(data.records.boxes)
        name, reason = choose_by_task(Task(images, boxes, steps, epochs, options.learned))
    recipe = named_recipe(name, config, options.opt)
    lr = scaled_lr(recipe, batch_size)
    if name != "paper" and options.learned == "detector":
        lr *= FINETUNED_LR
    recipe = replace(recipe, lr=lr, batch_size=batch_size, reason=reason)
    if options.learned == "nothing":
        recipe = replace(recipe, freeze_stages=0, freeze_bn=False)
    if options.max_steps is None:
        epochs = options.epochs or max(recipe.epochs, math.ceil(recipe.min_steps / per_epoch))
    if name == "small" and epochs < MIN_SCALED_EPOCHS:
        recipe = replace(recipe, scale=(1.0, 1.0))
    if recipe.mosaic:
        recipe = replace(recipe, mix_epochs=max(1, round(MIXED_PART * epochs)))
    given = {n: value for n in OPTIONAL if (value := getattr(options, n)) is not None}
    return replace(recipe, **{"epochs": epochs} | given)


def fill_in(options: TrainOptions, recipe: Recipe) -> TrainOptions:
    """The options with the recipe's values, so that a run is resumed with the same ones."""
    values = {name: getattr(recipe, name) for name in OPTIONAL}
    return replace(options, **values | {"epochs": None if options.max_steps else recipe.epochs})


def named_recipe(name: RecipeName, config: DetectorConfig, opt: str | None = None) -> Recipe:
    """The recipe of a name for a model; another optimizer has the rates of ``default_recipe``."""
    changes = RECIPES[name]
    if opt not in (None, changes.get("opt")):
        changes = {entry: value for entry, value in changes.items() if entry not in RATE}
    return replace(default_recipe(config, opt or changes.get("opt")), name=name, **changes)


def default_recipe(config: DetectorConfig, opt: str | None = None) -> Recipe:
    """The authors' recipe for their backbones; AdamW with a cosine for all others.

    Another optimizer brings its own learning rate and weight decay.
    """
    if config.backbone.name in AUTHORS_BACKBONES:
        clip_grad = 10.0 if config.method.name == "fsaf" else 35.0
        with_norm = getattr(config.neck, "norm", False)
        recipe = Recipe(batch_size=32 if with_norm else 16, clip_grad=clip_grad)
    else:
        recipe = Recipe(opt="adamw", sched="cosine", clip_grad=10.0, freeze_stages=0)
    opt = opt or recipe.opt
    lr, weight_decay = (0.01, 1e-4) if opt in SGD else (5e-4, 0.05)
    return replace(recipe, opt=opt, lr=lr, weight_decay=weight_decay)


def scaled_lr(recipe: Recipe, batch_size: int) -> float:
    """Scale the recipe's learning rate to another number of images per step.

    In proportion for SGD (Goyal et al. 2017), with the square root for adaptive optimizers.
    """
    ratio = batch_size / recipe.batch_size
    return recipe.lr * (ratio if recipe.opt in SGD else ratio**0.5)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Make timm's optimizer of the recipe's name, over all parameters that are not frozen.

    SGD is the authors': without Nesterov momentum, with weight decay for every parameter.
    """
    is_sgd = recipe.opt == "sgd"
    extra: dict[str, Any] = {"nesterov": False} if is_sgd else {}
    extra |= {"fused": True} if recipe.opt in FUSED else {}
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=recipe.opt,
            lr=recipe.lr,
            weight_decay=recipe.weight_decay,
            filter_bias_and_bn=not is_sgd,
            layer_decay=None if recipe.layer_decay == 1 else recipe.layer_decay,
            **extra,
        )
    except (AssertionError, ValueError) as error:
        near = get_close_matches(recipe.opt, list_optimizers(), 1)
        hint = f"did you mean {near[0]!r}?" if near else "timm.optim.list_optimizers() names all"
        raise ConfigError(f"no optimizer {recipe.opt!r}: {error}; {hint}") from error
    if recipe.opt not in SGD:
        slow_down_offsets(optimizer, model)
    return optimizer


def slow_down_offsets(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Move the offsets of deformable convolutions to groups with a tenth of the learning rate.

    Their gradients are small, so SGD moves taps by little; adaptive optimizers move all parameters
    alike, which throws taps about by pixels.
    """
    offsets = {p for name, p in model.named_parameters() if ".offset." in name}
    for group in [*optimizer.param_groups]:
        slow = [p for p in group["params"] if p in offsets]
        if slow:
            group["params"] = [p for p in group["params"] if p not in offsets]
            scale = OFFSET_LR * group.get("lr_scale", 1.0)
            optimizer.add_param_group(group | {"params": slow, "lr_scale": scale})


def warmup_steps(recipe: Recipe, total_steps: int) -> int:
    """Steps of the warm-up: the recipe's, but at most a tenth of the run."""
    return min(recipe.warmup_steps, total_steps // 10)


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, total_steps: int) -> Scheduler:
    """Make the schedule of the learning rate, in steps; its warm-up rises from a third of it."""
    common: dict[str, Any] = {
        "warmup_t": warmup_steps(recipe, total_steps),
        "warmup_lr_init": recipe.lr / 3,
        "t_in_epochs": False,
    }
    if recipe.sched == "cosine":
        # timm warns of a cosine of a single step.
        return CosineLRScheduler(optimizer, t_initial=max(2, total_steps), **common)
    # timm drops the rate a step before a milestone
    milestones = [total_steps * 8 // 12 + 1, total_steps * 11 // 12 + 1]
    return MultiStepLRScheduler(optimizer, milestones, decay_rate=0.1, **common)


def freeze_stages(backbone: Backbone, num_stages: int) -> None:
    """Freeze the stem and the first stages; 0 freezes nothing."""
    stages = backbone.stages()
    if num_stages and not stages[num_stages]:
        have = [i for i, parameters in enumerate(stages) if parameters]
        raise ConfigError(
            f"--freeze-stages {num_stages}: this backbone has parameters in {have} only"
        )
    for parameters in stages[: num_stages + 1] if num_stages else ():
        for parameter in parameters:
            parameter.requires_grad_(False)


def set_train_mode(model: Detector, freeze_bn: bool) -> None:
    """Set train mode; with ``freeze_bn`` the backbone's batch norms keep their statistics.

    Their scale and shift are still trained, as in the authors' recipe. A neck that is frozen as a
    whole keeps its statistics too.
    """
    model.train()
    for part in (model.fpn, model.neck):
        part.train(any(parameter.requires_grad for parameter in part.parameters()))
    if freeze_bn:
        for module in model.backbone.modules():
            if isinstance(module, (nn.modules.batchnorm._BatchNorm, BatchNormAct2d)):
                module.eval()
