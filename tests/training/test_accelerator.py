import pytest
import torch
from accelerate import PartialState
from commands import call

from sepc_zoo.errors import ConfigError
from sepc_zoo.training.accelerator import make_accelerator, start_processes


@pytest.fixture(autouse=True)
def _on_the_default_device_afterwards():
    yield
    start_processes()


@pytest.mark.parametrize("device", ["cpu", None])
def test_an_earlier_run_leaves_its_device_to_no_other(device):
    default = start_processes(device).device
    assert start_processes("meta").device.type == "meta"
    assert make_accelerator(None, device).device == default


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_accelerate_uses_the_device_that_is_asked_for(device):
    layer = make_accelerator(None, device).prepare(torch.nn.Linear(1, 1))
    assert layer.weight.device.type == device


@pytest.mark.parametrize("command", ["train", "validate", "compare", "tune", "suggest", "predict"])
def test_an_unknown_device_is_refused(command, shapes, tmp_path, capsys):
    model = ("--model", "retinanet_mnv4s_pconv")
    arguments = {
        "validate": ("--data", shapes, *model, "--output", tmp_path / "out"),
        "compare": (model[1], model[1], "--data", shapes, "--output", tmp_path / "out"),
        "suggest": (shapes, *model),
        "predict": (shapes / "val", *model),
    }
    train = ("--data", shapes, *model, "--output", tmp_path / "out", "--max-steps", 1)
    assert call(command, *arguments.get(command, train), "--device", "bogus") == 2
    assert "no device 'bogus'" in capsys.readouterr().err


def test_each_of_several_processes_has_its_own_device(monkeypatch):
    monkeypatch.setitem(PartialState(cpu=True)._shared_state, "num_processes", 2)
    assert start_processes("cpu").num_processes == 2
    with pytest.raises(ConfigError, match="--device cuda:1: each of the 2 processes has its own"):
        start_processes("cuda:1")
