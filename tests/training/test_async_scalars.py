"""On a GPU the host reads the result of a step one step later; nothing else depends on that."""

import pytest
import torch
from test_faults import spoil_gradient, spoil_image
from tiny_runs import before_step, options, read_log, read_losses, resume, state_of, train_until
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from waits import Waits

from sepc_zoo.data import collate
from sepc_zoo.factory import create_model
from sepc_zoo.methods import targets as targets_module
from sepc_zoo.methods.targets import collate_targets
from sepc_zoo.models import dense, detector
from sepc_zoo.training import trainer as engine
from sepc_zoo.training.trainer import train

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture
def ahead(monkeypatch):
    """The host is a step ahead, as with a GPU."""
    monkeypatch.setattr(engine, "max_in_flight", lambda _: 1)


def run_with_faults(shapes, output, **changes):
    with pytest.MonkeyPatch.context() as patch:
        before_step(patch, 2, spoil_image)
        before_step(patch, 5, spoil_gradient)
        train(options(shapes, output, epochs=3, log_interval=3, **changes))
    faults = [(row["step"], row["kind"]) for row in read_log(output, "faults.csv")]
    return state_of(output), read_losses(output), faults


def test_a_run_is_the_same_when_the_host_is_ahead(shapes, tmp_path, monkeypatch):
    expected = run_with_faults(shapes, tmp_path / "behind")
    monkeypatch.setattr(engine, "max_in_flight", lambda _: 1)
    state, losses, faults = run_with_faults(shapes, tmp_path / "ahead")
    assert faults == [("2", "skipped step"), ("5", "skipped step")]
    assert (losses, faults) == expected[1:]
    assert state["progress"] == expected[0]["progress"]
    for part in ("model", "optimizer"):
        torch.testing.assert_close(state[part], expected[0][part], rtol=0, atol=0)


@pytest.mark.usefixtures("ahead")
def test_a_host_that_is_ahead_saves_on_a_signal_and_goes_on(shapes, tmp_path):
    asked = options(shapes, tmp_path, max_steps=8, epochs=None, val_interval=9)
    train_until(3, asked)
    assert state_of(tmp_path)["progress"]["step"] == 3
    resume(tmp_path)
    assert state_of(tmp_path)["progress"]["step"] == 8


def on_host(function):
    def unwatched(*args, **kwargs):
        with _disable_current_modes():
            return function(*args, **kwargs)

    return unwatched


@pytest.mark.parametrize(("method", "opt"), [("retinanet", "sgd"), ("fsaf", "adamw")])
def test_a_step_does_not_wait_for_a_gpu(method, opt, shapes, tmp_path, monkeypatch):
    """The first one does, and those that are logged or saved."""
    monkeypatch.setattr(targets_module, "GATHER_ALL", True)
    # They read targets, which are on the host.
    readers = (detector, "check_targets"), (detector, "collate_targets"), (dense, "collate_targets")
    for module, name in readers:
        monkeypatch.setattr(module, name, on_host(getattr(module, name)))
    train_step, waits = engine.train_step, []

    def watched(run, batches):
        with Waits() as seen:
            train_step(run, batches)
        waits.append(seen.seen)

    monkeypatch.setattr(engine, "train_step", watched)
    model = f"{method}_mnv4s_sepc"
    train(options(shapes, tmp_path, model=model, opt=opt, grad_accum_steps=2, batch_size=2))
    assert waits[0]
    assert waits[1:] == [[], [], []]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["retinanet", "fsaf"])
def test_a_gpu_is_not_waited_for_in_a_step(method, shapes, tmp_path, monkeypatch):
    monkeypatch.setattr(targets_module, "GATHER_ALL", True)
    train_step, steps = engine.train_step, []

    def watched(run, batches):
        torch.cuda.set_sync_debug_mode("error" if steps else "default")
        train_step(run, batches)
        torch.cuda.set_sync_debug_mode("default")
        steps.append(run.progress.step)

    monkeypatch.setattr(engine, "train_step", watched)
    train(options(shapes, tmp_path, model=f"{method}_mnv4s_sepc", device=None, amp="bf16"))
    assert steps == [1, 2, 3, 4]


@pytest.mark.parametrize("neck", ["fpn", "sepc"])
@pytest.mark.parametrize("method", ["retinanet", "fsaf"])
def test_a_loss_does_not_wait_for_a_gpu(method, neck, monkeypatch):
    """The GPU is made up: it knows types and sizes of tensors, and no values."""
    monkeypatch.setattr(targets_module, "GATHER_ALL", True)
    model = create_model(f"{method}_r18_{neck}", channels=32)
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to("cuda")
        batch = collate([(torch.zeros(3, 60, 90, dtype=torch.uint8), target)] * 2)
        with Waits() as waits:
            images = batch.normalized((0.5,) * 3, (0.5,) * 3, "cuda").images
            predictions = model(images)
            targets = collate_targets([target] * 2, like=predictions.deltas)
            anchors = model.anchors(predictions.sizes, like=predictions.deltas)
            terms = model.method.loss(predictions, anchors, targets, model.config.coder)
    assert {x.device.type for term in terms.values() for x in term} == {"cuda"}
    assert waits.seen == []
