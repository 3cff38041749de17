import csv
import time

import pytest
import torch

from benchmarks import tables
from benchmarks.yardsticks import TORCHVISION_NAME
from sepc_zoo import registry
from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.cli import main
from sepc_zoo.config import ConfigError
from sepc_zoo.evaluation.speed import (
    PARTS,
    WHOLE,
    Setting,
    alternate,
    build,
    compare,
    peak_memory,
    prepare,
)
from sepc_zoo.factory import create_model
from sepc_zoo.registry import register_model

SMALL = Setting(height=64, width=64)


@pytest.fixture(scope="module")
def names():
    """A tiny model, and its plain yardstick."""
    name = "benchmark_tiny"
    register_model(name, "retinanet_resnet10t_sepc", channels=16, num_classes=3)
    yield [name, f"plain:{name}"]
    del registry._registered[name]


def test_functions_take_turns_in_each_round():
    called = []
    calls = {key: (lambda key=key: called.append(key)) for key in "abc"}
    alternate(calls, rounds=3, device="cpu")
    assert called == [*"abc"] * 5  # with two warm-up rounds


def test_ratios_are_to_the_first_function():
    calls = {"short": lambda: time.sleep(0.01), "long": lambda: time.sleep(0.03)}
    timings = alternate(calls, rounds=5, device="cpu")
    assert timings["short"].ratio == 1
    assert 2 < timings["long"].ratio < 4
    assert timings["long"].low <= timings["long"].median <= timings["long"].high


def test_every_part_of_a_model_is_timed(names):
    results = compare(names, SMALL, [*WHOLE, *PARTS], rounds=1, memory=False)
    assert {(r.model, r.part) for r in results} == {(n, p) for n in names for p in WHOLE + PARTS}
    assert all(result.timing.median > 0 for result in results)


def test_the_plain_yardstick_has_the_models_detections(names):
    setting = Setting(height=256, width=256)
    ours, plain = (prepare(build(name, setting), "detect", setting)()[0] for name in names)
    assert len(ours["boxes"]) > 0
    torch.testing.assert_close(plain["boxes"], ours["boxes"], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(plain["scores"], ours["scores"], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_torchvisions_model_is_timed_as_a_whole(names):
    results = compare([names[0], TORCHVISION_NAME], SMALL, [*WHOLE, "neck"], 1, memory=False)
    parts = [result.part for result in results if result.model == TORCHVISION_NAME]
    assert parts == list(WHOLE)


@pytest.mark.slow
def test_peak_memory_is_that_of_the_model_alone():
    ballast = torch.ones(2**28)  # 1 GiB in this process
    one, four = (peak_memory("retinanet_r18_fpn", "step", Setting(n, 96, 96)) for n in (1, 4))
    del ballast
    assert 0 < one < four < 1024


@pytest.mark.parametrize("name", ["torchvision:fasterrcnn", "plain:none", "retinanet_r18_none"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(ConfigError, match=name.removeprefix("plain:")):
        build(name, SMALL)


@pytest.mark.parametrize("is_folder", [False, True])
def test_a_model_gets_images_of_its_own_number_of_channels(is_folder, monkeypatch, tmp_path):
    small = {"channels": 16, "num_classes": 3}
    model = create_model("retinanet_resnet10t_sepc", backbone_kwargs={"in_chans": 5}, **small)
    name = str(save_model(model, tmp_path / "five"))
    if not is_folder:
        name = "five"
        monkeypatch.setitem(registry._registered, name, model.config)
    flags = ("--image-size", "64x64", "--rounds", "1", "--train", "--parts", "--device", "cpu")
    assert main(["benchmark", "--model", name, *flags]) == 0


def test_the_command_writes_a_row_per_measurement(names, tmp_path, capsys):
    path = tmp_path / "speed.csv"
    arguments = ["--model", *names, "--image-size", "64x64", "64x96", "--rounds", "1"]
    assert main(["benchmark", *arguments, "--device", "cpu", "--output", str(path)]) == 0
    rows = list(csv.DictReader(path.open(newline="")))
    assert [row["width"] for row in rows] == ["64"] * 4 + ["96"] * 4
    assert all(float(row["median_ms"]) > 0 and row["torch"] == torch.__version__ for row in rows)
    text = tables.tables(rows)
    assert "Batch of 1, 64x96 pixels" in text
    assert f"| `{names[1]}` | " in text
    assert names[0] in capsys.readouterr().out


def test_a_table_has_the_columns_that_its_mark_names(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "HERE", tmp_path)
    (tmp_path / "export.csv").write_text("model,time,bytes,problem\na,1.2345,12,\nb,,,1 | 2\n")
    start, end = "<!-- table export.csv: model, problem, time -->\n", "<!-- end of export.csv -->"
    (tmp_path / "README.md").write_text(f"before\n{start}{end}\nafter\n")
    tables.main()
    table = "| model | problem | time |\n| --- | --- | --- |\n| a |  | 1.23 |\n| b | 1 \\| 2 |  |\n"
    text = f"before\n{start}\n{table}\n{end}\nafter\n"
    assert (tmp_path / "README.md").read_text() == text


def test_a_malformed_size_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["benchmark", "--model", "retinanet_r18_fpn", "--image-size", "640"])
    assert "expected HEIGHTxWIDTH" in capsys.readouterr().err
