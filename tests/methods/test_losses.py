import pytest
import torch
import torchvision

from sepc_zoo.methods import losses as losses_module
from sepc_zoo.methods.losses import (
    background,
    focal_negative,
    focal_positive,
    mean_over_processes,
    sum_background,
)

LOGITS = torch.randn(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 6


@pytest.mark.parametrize(("focal", "target"), [(focal_positive, 1.0), (focal_negative, 0.0)])
def test_focal_loss_equals_torchvisions(focal, target):
    targets = torch.full_like(LOGITS, target)
    expected = torchvision.ops.sigmoid_focal_loss(LOGITS, targets, alpha=0.25, gamma=2.0)
    torch.testing.assert_close(focal(LOGITS), expected)


@pytest.mark.parametrize("focal", [focal_positive, focal_negative])
def test_focal_loss_and_its_gradient_are_finite_for_wild_logits(focal):
    logits = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], requires_grad=True)
    loss = focal(logits)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("focal", [focal_positive, focal_negative])
def test_gradients_are_those_of_the_loss(focal):
    logits = LOGITS[:20].clone().requires_grad_()
    assert torch.autograd.gradcheck(focal, logits)


def test_one_process_keeps_its_counts_but_for_zero():
    assert mean_over_processes({"a": torch.tensor(7), "b": torch.tensor(0)}) == {"a": 7, "b": 1}


@pytest.fixture
def batch(monkeypatch):
    """Logits of two images, which of their anchors count, and places that repeat; in 4 chunks."""
    monkeypatch.setattr(losses_module, "CACHED_LOGITS", 15)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 7, 4, generator=generator, dtype=torch.float64) * 4
    counted = torch.rand(2, 7, generator=generator) > 0.3
    return logits.requires_grad_(), counted, torch.tensor([0, 31, 5, 31, 55])


@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_the_sum_over_the_background_is_that_of_its_terms(batch, gamma):
    logits, counted, picked = batch
    total, own = sum_background(logits, counted, gamma, picked)
    torch.testing.assert_close(total, background(logits, gamma)[counted].sum())
    assert torch.equal(own, logits.flatten()[picked])


@pytest.mark.parametrize("gamma", [2.0, 1.5])
def test_the_sum_over_the_background_has_the_gradient_of_its_terms(batch, gamma):
    logits, counted, picked = batch
    assert torch.autograd.gradcheck(lambda x: sum_background(x, counted, gamma, picked), logits)


def test_the_background_may_be_learned_from_twice(batch):
    logits, counted, picked = batch
    total, own = sum_background(logits, counted, 2.0, picked)
    loss = 3 * total + (own * torch.arange(5)).sum()
    [first] = torch.autograd.grad(loss, logits, retain_graph=True)
    [second] = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(first, second)


def test_no_gradient_is_made_where_none_is_wanted(batch, monkeypatch):
    logits, counted, picked = batch
    monkeypatch.setattr(torch, "empty_like", None)
    with torch.no_grad():
        assert not sum_background(logits, counted, 2.0, picked)[0].requires_grad
    assert not sum_background(logits.detach(), counted, 2.0, picked)[0].requires_grad


def test_the_background_of_logits_in_another_order(batch):
    logits, counted, picked = batch
    turned = logits.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    for x in (logits, turned):
        sum(part.sum() for part in sum_background(x, counted, 2.0, picked)).backward()
    torch.testing.assert_close(turned.grad, logits.grad)


def test_a_float32_sum_of_many_terms_is_exact():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 50_000, 80, generator=generator) - 4
    counted, none = torch.ones(1, 50_000, dtype=torch.bool), torch.zeros(0, dtype=torch.long)
    total, _ = sum_background(logits, counted, 2.0, none)
    exact, _ = sum_background(logits.double(), counted, 2.0, none)
    assert total.item() == pytest.approx(exact.item(), rel=1e-6)
