"""Runs of several processes, started as users start them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_runs import options, state_of

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.cli.arguments import command_line
from sepc_zoo.data import read_data
from sepc_zoo.factory import create_model

REPO = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def launch(processes, command, *arguments, status=0):
    """Run a script on the CPU, by torchrun unless it is one process."""
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    line = [*launcher, REPO / "scripts" / f"{command}.py", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    environment |= {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        list(map(str, line)), env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, done.stderr
    return done


def contents(folder, *names):
    return {name: (folder / name).read_bytes() for name in names}


@pytest.fixture(scope="module")
def coco(shared_data):
    return shared_data / "coco_by_sa"


def make_model(data, folder, size):
    """The folder of a small model that finds something everywhere."""
    known = {"label_names": data.label_names, "category_ids": data.category_ids}
    changes = {"channels": 16, "neck": {"blocks": 1}, "weights": {"image_size": size}}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model("retinanet_mnv4s_pconv", **known, **changes)
        for part in (model.head.cls, model.head.box):
            torch.nn.init.normal_(part.weight, std=0.004)
        torch.nn.init.constant_(model.head.cls.bias, -3.2)
    return save_model(model, folder)


@pytest.fixture(scope="module")
def model(coco, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "coco"
    return make_model(read_data(coco, "val"), folder, (96, 160))


def validate(processes, model, data, output, *more):
    """The files that ``validate`` writes."""
    flags = ("--model", model, "--data", data, "--output", output, "--workers", 1, *more)
    done = launch(processes, "validate", *flags, "--no-report")
    said = done.stdout.count("metrics.json, detections.json are in")
    assert said == 1  # the processes know of each other
    return contents(output, "metrics.json", "detections.json")


def test_metrics_are_those_of_one_process(model, coco, tmp_path):
    alone = validate(1, model, coco, tmp_path / "1")
    assert len({row["image_id"] for row in json.loads(alone["detections.json"])}) > 80
    assert json.loads(alone["metrics.json"])["AR100"] > 0
    for processes in (2, 3):
        assert validate(processes, model, coco, tmp_path / str(processes)) == alone


def test_processes_without_a_batch_do_not_hold_up_the_others(shapes, tmp_path):
    """One batch for three processes, and several views of it."""
    model = make_model(read_data(shapes, "val"), tmp_path / "model", (64, 64))
    flags = ("--batch-size", 4, "--tta-flip", "--tta-scales", 1, 1.5)
    alone = validate(1, model, shapes, tmp_path / "1", *flags)
    assert len(json.loads(alone["detections.json"])) > 0
    assert validate(3, model, shapes, tmp_path / "3", *flags) == alone


def test_predictions_are_those_of_one_process(model, coco, tmp_path):
    """The main process alone reports and lists an unreadable image."""
    images = tmp_path / "images"
    images.mkdir()
    for file in (coco / "val2017").iterdir():
        (images / file.name).symlink_to(file)
    (images / "000000000000.jpg").write_bytes(b"no image")
    found = []
    for processes in (1, 2, 3):
        output = tmp_path / str(processes)
        flags = (images, "--model", model, "--output", output, "--score-threshold", 0.08)
        done = launch(processes, "predict", *flags, status=1)
        assert done.stderr.count("not done: ") == 1
        found.append(contents(output, *sorted(path.name for path in output.iterdir())))
    assert len(found[0]) == 92
    content = json.loads(found[0]["detections.json"])
    assert [image["id"] for image in content["images"]] == list(range(2, 93))
    assert len(content["annotations"]) > 91
    assert found[1] == found[0]
    assert found[2] == found[0]


def test_the_metrics_of_a_run_are_those_of_the_saved_model(shapes, tmp_path):
    """Processes learn batch-norm statistics of their own; those of the main one are saved."""
    run, again = tmp_path / "run", tmp_path / "again"
    kwargs = {"channels": 16, "neck": {"blocks": 1}, "postprocess": {"score_threshold": 0.0}}
    asked = {"epochs": 1, "save_interval": 1, "freeze_bn": False, "lr": 0.01, "batch_size": 2}
    done = launch(2, "train", *command_line(options(shapes, run, model_kwargs=kwargs, **asked)))
    assert len(state_of(run)["random"]) == 2
    assert done.stdout.count("use it:") == 1  # only the main process prints
    again_flags = ("--data", shapes, "--output", again, "--batch-size", 2, "--workers", 0)
    launch(1, "validate", "--model", run / "last", *again_flags, "--no-report")
    names = "metrics.json", "detections.json"
    assert contents(run / "last", *names) == contents(again, *names)
