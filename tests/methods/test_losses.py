import pytest
import torch
import torchvision

from sepc_zoo.methods import losses as losses_module
from sepc_zoo.methods.losses import (
    background,
    cell_losses,
    focal_loss,
    focal_negative,
    focal_positive,
    mean_over_processes,
    quality_focal_loss,
    sum_background,
)
from sepc_zoo.methods.targets import Positives

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


@pytest.fixture
def positives_of_batch():
    """Three positive anchors of the batch, two of them in its second image."""
    image, anchor = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 6])
    labels, empty = torch.tensor([3, 0, 0]), torch.zeros(3, 4)
    return Positives(image, anchor, labels, empty, labels, None)


def test_focal_loss_leaves_out_pairs_that_are_ignored(batch, positives_of_batch):
    logits, counted, _ = batch
    pairs = torch.tensor([1, 30, 33])
    counted = counted.clone().flatten()
    counted[pairs // 4] = True
    counted = counted.view(2, 7)
    for x in (logits, logits.detach().requires_grad_()):
        wanted = torch.zeros_like(x)
        wanted[positives_of_batch.image, positives_of_batch.anchor, positives_of_batch.labels] = 1
        terms = torchvision.ops.sigmoid_focal_loss(x, wanted)
        counts = (counted[..., None] | (wanted == 1).any(2, keepdim=True)).expand_as(x).clone()
        counts.view(-1)[pairs] = False
        expected = terms[counts].sum()
        found = focal_loss(x, positives_of_batch, ~counts.any(dim=2), ignored_pairs=pairs)
        torch.testing.assert_close(found, expected)
        ours, theirs = (torch.autograd.grad(loss, x)[0] for loss in (found, expected))
        torch.testing.assert_close(ours, theirs)


def test_the_loss_of_a_cell_leaves_out_its_ignored_pairs(batch, positives_of_batch):
    logits, *_ = batch
    pairs = torch.tensor([1, 9, 10, 29, 52])  # 9 and 10 of the first positive cell, 29 of the next
    rest = logits.detach().clone().view(-1)
    rest[pairs] = -100.0
    expected = cell_losses(rest.view_as(logits), positives_of_batch)
    assert (pairs == 52).any()  # the own class of the last: not to be ignored
    found = cell_losses(logits.detach(), positives_of_batch, pairs[:-1])
    torch.testing.assert_close(found[:2], expected[:2])


def test_quality_focal_loss_equals_its_formula(batch, positives_of_batch):
    logits, counted, _ = batch
    quality = torch.tensor([0.0, 0.4, 1.0], dtype=torch.float64)
    wanted = torch.zeros_like(logits)
    place = (positives_of_batch.image, positives_of_batch.anchor, positives_of_batch.labels)
    wanted[place] = quality
    counted = counted.clone()
    counted[place[:2]] = True
    prob = logits.sigmoid()
    entropy = -wanted * prob.log() - (1 - wanted) * (1 - prob).log()
    expected = ((wanted - prob) ** 2 * entropy)[counted].sum()
    found = quality_focal_loss(logits, positives_of_batch, ~counted, quality)
    torch.testing.assert_close(found, expected)
    ours, theirs = (torch.autograd.grad(loss, logits)[0] for loss in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_counts_keep_their_precision():
    third = torch.tensor(4 / 3, dtype=torch.float64)
    means = mean_over_processes({"loss_cls": torch.tensor(7), "loss_box": third})
    assert means["loss_box"].item() == 4 / 3
    assert means["loss_cls"].item() == 7
