import pytest
import torch
import torchvision

from sepc_zoo.methods.losses import focal_negative, focal_positive, mean_over_processes

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


def test_one_process_keeps_its_count():
    assert mean_over_processes(torch.tensor(7)).item() == 7
