"""What a run needs beside the device is estimated, and too little of it is told."""

import resource
import shutil
from types import SimpleNamespace

import pytest
from commands import call
from tiny_runs import options

from sepc_zoo.cli.arguments import command_line
from sepc_zoo.training.dry_run import list_needs
from sepc_zoo.training.run import Run
from sepc_zoo.training.trainer import train

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.mark.parametrize("opt", ["sgd", "adamw"])
def test_the_disk_that_a_run_needs_is_what_it_writes_and_a_model_more(opt, shapes, tmp_path):
    asked = options(shapes, tmp_path / "run", opt=opt, model_ema=True)
    needed = {need.what: need.needed for need in list_needs(Run(asked))}["disk"]
    train(asked)
    files = [p for p in (tmp_path / "run").rglob("*") if p.suffix in (".pt", ".safetensors")]
    written = sum(p.stat().st_size for p in files) / 1e6
    model = (tmp_path / "run" / "best" / "model.safetensors").stat().st_size / 1e6
    assert needed == pytest.approx(written + model, rel=0.1)


def test_what_is_too_little_is_told_at_the_start_and_by_a_dry_run(
    shapes, tmp_path, monkeypatch, capsys
):
    flags = command_line(options(shapes, tmp_path / "run", workers=1, epochs=1))
    assert call("train", *flags, "--dry-run") == 0
    told = capsys.readouterr().out
    for what in ("shared memory: about ", "open files: about ", "disk: about "):
        assert what in told
    assert "--shm-size" not in told
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20, 20))
    for more in (["--dry-run"], []):
        assert call("train", *flags, *more) == 0
        told = capsys.readouterr().out
        for advice in ("--shm-size", "ulimit -n", "free some space in"):
            assert advice in told
