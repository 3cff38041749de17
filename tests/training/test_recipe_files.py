"""The files in recipes/."""

import math
from pathlib import Path

import pytest
from tiny_runs import StopAfter, read_log

from sepc_zoo.api.given import read_config
from sepc_zoo.registry import model_config
from sepc_zoo.training.options import TrainOptions
from sepc_zoo.training.trainer import train

FOLDER = Path(__file__).parents[2] / "recipes"
FILES = sorted(FOLDER.glob("*.yaml"))
METHODS = ("retinanet", "atss", "gfl")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_has_valid_options_of_a_model_of_its_name(file):
    options = TrainOptions(**read_config(file, ()), output="o")
    assert options.model == f"retinanet_{file.stem.rpartition('_')[0]}_sepc"
    assert model_config(options.model)
    assert f"`{file.name}`" in (FOLDER / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_starts_a_run_of_each_method(file, method, shared_data, tmp_path):
    content = read_config(file, ())
    tiny = {"image_size": (64, 96), "batch_size": 1, "workers": 0, "log_with": (), "device": "cpu"}
    tiny |= {"data": str(shared_data / "coco_by_sa"), "output": str(tmp_path / "run")}
    tiny |= {"model": content["model"].replace("retinanet", method), "pretrained_backbone": False}
    tiny |= {"freeze_stages": 0}
    train(TrainOptions(**content | tiny), callbacks=[StopAfter(3)])
    (row,) = read_log(tmp_path / "run")
    assert row["step"] == "3"
    assert math.isfinite(float(row["loss"]))
