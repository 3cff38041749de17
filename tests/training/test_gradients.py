"""Gradients of a step: accumulated over batches, and steps that are skipped."""

import pytest
import torch
from gradients_of_runs import batches_of, exactly, gradient, ready
from tiny_runs import options

from sepc_zoo.training.accelerator import make_scaler
from sepc_zoo.training.gradients import backward, clip_and_step
from sepc_zoo.training.recipes import Recipe, make_optimizer

METHODS = ("retinanet", "freeanchor", "fsaf")
PARTS = [(0, 1), (2, 3)], [(0,), (1, 2, 3)]  # of four images


@pytest.mark.parametrize("empty", [(), (0, 1), (0, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_accumulated_batches_give_the_gradient_of_one_large_batch(method, empty, shapes, tmp_path):
    with exactly():
        run = ready(
            options(shapes, tmp_path, model=f"{method}_test_efficientnet_pconv", freeze_bn=True)
        )
        whole, losses = gradient(run, batches_of(run, [range(4)], empty))
        for groups in PARTS:
            parts, losses_of_parts = gradient(run, batches_of(run, groups, empty))
            torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)
            assert losses_of_parts == pytest.approx(losses, rel=1e-10)


@pytest.fixture
def run(shapes, tmp_path):
    with exactly():
        yield ready(options(shapes, tmp_path, model="retinanet_test_efficientnet_pconv"))


def number_of_boxes(targets):
    return torch.tensor(sum(len(target["boxes"]) for target in targets))


def counts_of(_, targets):
    return {"loss_cls": torch.tensor(len(targets)), "loss_box": number_of_boxes(targets)}


def count_terms_apart(run, monkeypatch):
    """Divide ``loss_cls`` by the number of images, ``loss_box`` by the number of boxes."""
    loss_terms = run.detector.loss_terms

    def terms(outputs, targets):
        sums = loss_terms(outputs, targets)
        return {name: (sums[name][0], n) for name, n in counts_of(outputs, targets).items()}

    monkeypatch.setattr(run.detector, "loss_terms", terms)


def test_terms_with_counts_of_their_own_are_exact_where_the_counts_are_known(run, monkeypatch):
    count_terms_apart(run, monkeypatch)
    monkeypatch.setattr(run.detector, "loss_counts", counts_of)
    whole, losses = gradient(run, batches_of(run, [range(4)]))
    for groups in PARTS:
        parts, losses_of_parts = gradient(run, batches_of(run, groups))
        torch.testing.assert_close(parts, whole, rtol=1e-10, atol=1e-12)
        assert losses_of_parts == pytest.approx(losses, rel=1e-10)


def test_terms_with_unknown_counts_of_their_own_give_the_mean_over_batches(run, monkeypatch):
    count_terms_apart(run, monkeypatch)
    monkeypatch.setattr(run.detector, "loss_counts", lambda *_: None)
    batches = batches_of(run, PARTS[1])
    single = [gradient(run, [batch]) for batch in batches]
    parts, losses = gradient(run, batches)
    mean = {name: (single[0][0][name] + single[1][0][name]) / 2 for name in parts}
    torch.testing.assert_close(parts, mean, rtol=1e-10, atol=1e-12)
    assert losses == {k: pytest.approx((single[0][1][k] + single[1][1][k]) / 2) for k in losses}


def learn_a_line(opt, failing):
    """Parameters and the optimizer's state after some steps, of which those at ``failing`` fail."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(3, 2)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = make_optimizer(layer, Recipe(opt=opt, weight_decay=0.1))
    scaler = make_scaler(None, torch.device("cpu"))
    for step in range(5 + len(failing)):
        if step in failing:
            images = torch.full((4, 3), torch.nan)
        else:
            images = torch.randn(4, 3, generator=generator)
        backward(layer(images).square().sum(), scaler)
        clip_and_step(layer, optimizer, scaler, 100.0)
        optimizer.zero_grad()
    return list(layer.parameters()), optimizer.state_dict()["state"]


@pytest.mark.parametrize("opt", ["sgd", "momentum", "adam", "adamw", "lamb", "muon"])
@pytest.mark.parametrize("failing", [{0}, {0, 1}, {2, 4}])
def test_steps_that_fail_leave_no_trace(opt, failing):
    torch.testing.assert_close(learn_a_line(opt, failing), learn_a_line(opt, set()), rtol=0, atol=0)


@pytest.mark.parametrize("opt", ["sgd", "lamb"])
def test_a_finite_gradient_with_an_infinite_norm_is_skipped(opt):
    layer = torch.nn.Linear(3, 2)
    before = [p.detach().clone() for p in layer.parameters()]
    optimizer = make_optimizer(layer, Recipe(opt=opt))
    scaler = make_scaler(None, torch.device("cpu"))
    for scale in (1.0, 1e30):
        optimizer.zero_grad()
        backward(layer(torch.ones(4, 3)).sum() * scale, scaler)
        assert all(p.grad.isfinite().all() for p in layer.parameters())
        norm = clip_and_step(layer, optimizer, scaler, 1.0)
        if scale == 1.0:
            before = [p.detach().clone() for p in layer.parameters()]
    assert norm.isinf()
    torch.testing.assert_close([*layer.parameters()], before, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_spoils_the_whole_gradient():
    """Also that of parameters which the loss reaches by a finite way."""
    a, b = (torch.nn.Parameter(torch.ones(())) for _ in range(2))
    backward(a * torch.inf + b, make_scaler(None, torch.device("cpu")))
    assert a.grad.isnan()
    assert b.grad.isnan()
