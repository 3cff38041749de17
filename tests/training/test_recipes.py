import math
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import pytest
import torch

from sepc_zoo.config import ConfigError
from sepc_zoo.data.annotations import Annotations, Records
from sepc_zoo.factory import create_model
from sepc_zoo.registry import model_config
from sepc_zoo.training.options import ScheduleOptions, TrainOptions
from sepc_zoo.training.recipes import (
    FINETUNED_LR,
    MANY,
    MANY_EPOCHS,
    RECIPES,
    Recipe,
    Task,
    choose_by_task,
    choose_recipe,
    default_recipe,
    fill_in,
    freeze_stages,
    make_optimizer,
    make_scheduler,
    scaled_lr,
    set_train_mode,
)

BASICS = {"data", "model", "output"}


def small(name="retinanet_r18_sepc_lite"):
    return create_model(name, num_classes=2, channels=16, neck={"blocks": 1})


def lr_by_step(total_steps, **recipe):
    """The learning rate of each step of a run."""
    recipe = Recipe(**recipe)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    scheduler = make_scheduler(optimizer, recipe, total_steps)
    rates = []
    for step in range(total_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(step + 1)
    return rates


def recipe_for(images=100, processes=1, name="retinanet_r50_sepc", classes=1, **changes):
    """The recipe of a run on images with two boxes each, of the same class."""
    counts, column = [2] * images, np.zeros(2 * images)
    labels, bbox = np.arange(images).repeat(2) % classes, np.zeros((2 * images, 4))
    sizes, paths = [(8, 8)] * images, ["1.jpg"] * images
    records = Records.make(range(images), sizes, paths, counts, bbox, labels, column, column, bbox)
    data = Annotations(records, tuple(map(str, range(classes))), tuple(range(classes)))
    options = TrainOptions(data="d", model=name, output="o", **changes)
    return choose_recipe(options, model_config(name), data, processes)


def one_step(model):
    """Forward and backward on noise, in the mode that the model is in."""
    predictions = model(torch.randn(2, 3, 64, 64))
    targets = [{"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}] * 2
    sum(model.loss(predictions, targets).values()).backward()


def statistics(model, part):
    return {
        name: value.clone()
        for name, value in model.named_buffers()
        if name.startswith(part) and "running" in name
    }


@pytest.mark.parametrize(
    ("name", "batch_size", "clip_grad"),
    [
        ("retinanet_r50_fpn", 16, 35.0),
        ("retinanet_r50_pconv", 16, 35.0),
        ("retinanet_r50_ibn_pconv", 32, 35.0),
        ("freeanchor_x101_64x4d_sepc", 32, 35.0),
        ("fsaf_r101_fpn", 16, 10.0),
        ("fsaf_r18_sepc_lite", 32, 10.0),
    ],
)
def test_resnets_get_the_authors_recipe(name, batch_size, clip_grad):
    assert default_recipe(model_config(name)) == Recipe(
        epochs=12,
        batch_size=batch_size,
        opt="sgd",
        lr=0.01,
        weight_decay=1e-4,
        sched="multistep",
        warmup_steps=500,
        clip_grad=clip_grad,
        freeze_stages=1,
        freeze_bn=True,
    )


@pytest.mark.parametrize("backbone", ["mnv2", "mnv4s", "convnext_tiny", "swin_tiny"])
def test_other_backbones_get_adamw_and_a_cosine(backbone):
    recipe = default_recipe(model_config(f"retinanet_{backbone}_sepc"))
    assert (recipe.opt, recipe.sched, recipe.freeze_stages) == ("adamw", "cosine", 0)
    assert (recipe.lr, recipe.weight_decay) == (5e-4, 0.05)


PLENTY = Task(**{name: 2 * many for name, many in MANY.items()}, epochs=12, learned="backbone")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "paper"),
        ({"images": 100}, "small"),
        ({"boxes": 100}, "small"),
        ({"steps": 100}, "small"),
        ({"learned": "detector"}, "small"),
        ({"learned": "nothing"}, "strong"),
        ({"epochs": MANY_EPOCHS}, "strong"),
        ({"epochs": MANY_EPOCHS, "images": 100}, "small"),
    ],
)
def test_the_recipe_follows_from_data_budget_and_weights(changes, name):
    assert choose_by_task(PLENTY._replace(**changes))[0] == name


def test_the_paper_recipe_is_the_default_of_the_model_at_the_batch_of_the_run():
    own = default_recipe(model_config("retinanet_r50_sepc"))
    recipe = recipe_for(recipe="paper", pretrained_backbone=True, batch_size=8, processes=2)
    assert asdict(recipe) == asdict(own) | {
        "lr": own.lr * 16 / own.batch_size,
        "batch_size": 16,
        "reason": "--recipe",
    }


@pytest.mark.parametrize("name", RECIPES)
def test_each_option_given_wins_over_the_recipe(name):
    given = {"opt": "lamb", "lr": 0.5, "weight_decay": 0.3, "sched": "multistep", "epochs": 7}
    given |= {"warmup_steps": 5, "clip_grad": 1.0, "freeze_stages": 2, "freeze_bn": False}
    given |= {"model_ema": False, "scale": (1.0, 1.0), "mosaic": 0.0, "color_jitter": False}
    recipe = recipe_for(recipe=name, pretrained_backbone=True, **given)
    assert {key: getattr(recipe, key) for key in given} == given


def test_a_recipe_is_chosen_and_says_why():
    few = recipe_for(images=100)
    assert (few.name, few.reason) == ("small", "there are 100 images, fewer than 5,000")
    assert recipe_for(images=9000, max_steps=300).reason.startswith("there are 18,000 boxes")
    assert recipe_for(images=20000, max_steps=300).reason.startswith("there are 300 steps")


def test_few_images_get_more_epochs_unless_the_length_is_given():
    steps = RECIPES["small"]["min_steps"]
    assert recipe_for(images=40, batch_size=4).epochs == steps / 10
    assert recipe_for(images=2 * steps, batch_size=4).epochs == Recipe.epochs
    assert recipe_for(images=40, batch_size=4, epochs=3).epochs == 3


def test_repeated_images_make_an_epoch_longer_and_a_run_of_fewer_epochs():
    """One of 40 classes is on each image: at a threshold of 4/40 each comes twice."""
    asked = {"images": 40, "classes": 40, "batch_size": 1}
    steps = RECIPES["small"]["min_steps"]
    assert recipe_for(**asked).epochs == math.ceil(steps / 40)
    assert recipe_for(**asked, repeat_factor=4 / 40 + 1e-9).epochs == math.ceil(steps / 80)


def test_a_trained_detector_is_finetuned_at_a_lower_rate():
    new, trained = recipe_for(recipe="small"), recipe_for(recipe="small", pretrained=True)
    assert trained.lr == pytest.approx(FINETUNED_LR * new.lr)
    assert recipe_for(recipe="paper", pretrained=True).lr == recipe_for(recipe="paper").lr


def test_another_optimizer_drops_the_rates_of_a_recipe():
    recipe = recipe_for(recipe="small", opt="sgd", batch_size=16)
    assert (recipe.lr, recipe.weight_decay) == (0.01 / 2, 1e-4)  # 0.01 for 32 images
    assert recipe.sched == RECIPES["small"]["sched"]


def test_mosaics_end_before_the_run():
    assert recipe_for(recipe="strong", epochs=10).mix_epochs == 8
    assert recipe_for(recipe="strong", epochs=10, mix_epochs=9).mix_epochs == 9


@pytest.mark.parametrize("length", [{}, {"epochs": 3}, {"max_steps": 9}])
@pytest.mark.parametrize("name", ["auto", *RECIPES])
def test_the_filled_in_options_give_the_same_recipe_again(name, length):
    options = TrainOptions(data="d", model="retinanet_r50_sepc", output="o", recipe=name, **length)
    recipe = recipe_for(recipe=name, **length)
    filled = fill_in(options, recipe)
    assert (filled.epochs is None) == ("max_steps" in length)
    given = {entry: value for entry, value in vars(filled).items() if entry not in BASICS}
    assert recipe_for(**given) == recipe


def test_another_optimizer_brings_its_own_learning_rate():
    resnet, mobilenet = model_config("retinanet_r50_sepc"), model_config("retinanet_mnv4s_sepc")
    adamw, sgd = default_recipe(resnet, "adamw"), default_recipe(mobilenet, "sgd")
    assert (adamw.opt, adamw.lr, adamw.weight_decay) == ("adamw", 5e-4, 0.05)
    assert (sgd.opt, sgd.lr, sgd.weight_decay) == ("sgd", 0.01, 1e-4)
    assert (adamw.sched, sgd.sched) == ("multistep", "cosine")


def test_the_learning_rate_grows_with_the_batch_for_sgd_and_its_root_for_others():
    assert scaled_lr(Recipe(lr=0.01, batch_size=16), 4) == pytest.approx(0.0025)
    assert scaled_lr(Recipe(opt="adamw", lr=0.01, batch_size=16), 4) == pytest.approx(0.005)
    assert scaled_lr(Recipe(lr=0.01, batch_size=16), 16) == 0.01


def test_sgd_is_without_nesterov_and_decays_every_parameter():
    model = small()
    optimizer = make_optimizer(model, Recipe())
    (group,) = optimizer.param_groups
    assert isinstance(optimizer, torch.optim.SGD)
    assert (group["nesterov"], group["momentum"], group["weight_decay"]) == (False, 0.9, 1e-4)
    assert len(group["params"]) == len(list(model.parameters()))


def test_adamw_leaves_biases_and_norms_without_decay():
    model = small()
    groups = make_optimizer(model, Recipe(opt="adamw", weight_decay=0.05)).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decay[id(parameter)] == (0.05 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize(("opt", "factor"), [("sgd", 1.0), ("adamw", 0.1)])
@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_adaptive_optimizers_move_offsets_at_a_tenth_of_the_rate(opt, factor, layer_decay):
    model = small()
    recipe = Recipe(opt=opt, layer_decay=layer_decay)
    optimizer = make_optimizer(model, recipe)
    make_scheduler(optimizer, recipe, total_steps=100).step_update(50)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    conv = model.neck.cls_branch.conv
    for name in ("weight", "bias"):
        rate, usual = rates[id(getattr(conv.offset, name))], rates[id(getattr(conv, name))]
        assert rate == pytest.approx(factor * usual)
    assert len(rates) == len(list(model.parameters()))


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_frozen_parameters_are_not_handed_to_the_optimizer(opt):
    model = small()
    freeze_stages(model.backbone, 1)
    groups = make_optimizer(model, Recipe(opt=opt)).param_groups
    given = {id(p) for group in groups for p in group["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}


def test_an_unknown_optimizer_or_schedule_is_named():
    with pytest.raises(ConfigError, match="bogus"):
        make_optimizer(small(), Recipe(opt="bogus"))
    with pytest.raises(ConfigError, match="sched is 'bogus'; it must be multistep or cosine"):
        ScheduleOptions(sched="bogus")


@pytest.mark.parametrize("sched", ["multistep", "cosine"])
def test_a_run_of_one_step_has_the_whole_rate_and_no_warning(sched, caplog):
    assert lr_by_step(1, lr=0.3, sched=sched)[0] == 0.3
    assert not caplog.records


@pytest.mark.parametrize("sched", ["multistep", "cosine"])
def test_the_warm_up_rises_from_a_third(sched):
    rates = lr_by_step(1000, lr=0.3, sched=sched, warmup_steps=20)
    assert rates[0] == pytest.approx(0.1)
    assert all(a < b for a, b in pairwise(rates[:20]))
    assert rates[20] == pytest.approx(0.3, rel=2e-3)
    assert max(rates) <= 0.3


def test_the_warm_up_of_a_short_run_is_a_tenth_of_it_or_nothing():
    rates = lr_by_step(120, lr=0.3, warmup_steps=500)
    assert rates[11] < 0.3
    assert rates[12] == pytest.approx(0.3)
    assert lr_by_step(5, lr=0.3)[0] == 0.3


def test_multistep_drops_at_eight_and_eleven_twelfths():
    rates = lr_by_step(120, lr=1.0, warmup_steps=0)
    expected = [1.0] * 80 + [0.1] * 30 + [0.01] * 10
    assert rates == pytest.approx(expected)


def test_cosine_ends_near_zero():
    rates = lr_by_step(100, lr=1.0, sched="cosine", warmup_steps=0)
    assert rates[50] == pytest.approx(0.5)
    assert rates[-1] < 1e-3
    assert all(a > b for a, b in pairwise(rates))


def test_freezing_one_stage_stops_stem_and_first_stage_alone():
    model = small()
    freeze_stages(model.backbone, 0)
    assert all(p.requires_grad for p in model.parameters())
    freeze_stages(model.backbone, 1)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    first = ("backbone.body.conv1.", "backbone.body.bn1.", "backbone.body.layer1.")
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(first)}
    assert frozen


@pytest.mark.parametrize("name", ["retinanet_r18_sepc_lite", "retinanet_mnv4s_sepc_lite"])
def test_frozen_batch_norm_keeps_statistics_while_scale_learns(name):
    model = small(name)
    set_train_mode(model, freeze_bn=True)
    backbone, neck = statistics(model, "backbone."), statistics(model, "neck.")
    one_step(model)
    after = statistics(model, "")
    assert backbone
    assert all(torch.equal(after[key], value) for key, value in backbone.items())
    assert not any(torch.equal(after[key], value) for key, value in neck.items())
    norms = [m for m in model.backbone.modules() if hasattr(m, "running_mean")]
    assert all(norm.weight.grad is not None and norm.bias.grad is not None for norm in norms)


def test_batch_norm_that_is_not_frozen_follows_the_data():
    model = small()
    set_train_mode(model, freeze_bn=False)
    before = statistics(model, "backbone.")
    one_step(model)
    after = statistics(model, "backbone.")
    assert not any(torch.equal(after[key], value) for key, value in before.items())


def test_the_mode_is_set_again_after_validation():
    model = small().eval()
    set_train_mode(model, freeze_bn=True)
    assert model.training
    assert model.neck.pconvs[0].norm.norm.training
    assert not model.backbone.body.bn1.training
