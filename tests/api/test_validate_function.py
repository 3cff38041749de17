"""`sepc_zoo.validate`: the figures of the command, for a model, a folder or a name."""

import json
from pathlib import Path

import pytest
from commands import SHAPES
from made_up_models import finds_everywhere

import sepc_zoo
from sepc_zoo.cli import main
from sepc_zoo.errors import ConfigError, HubError
from sepc_zoo.options import OptionError

TINY = {"device": "cpu", "workers": 0}


@pytest.fixture(scope="module")
def model():
    return finds_everywhere()


def test_the_figures_are_those_of_the_command(model, shapes, tmp_path):
    folder = sepc_zoo.save_model(model, tmp_path / "model")
    for flags in ((), ("--bootstrap", "5", "--voc-ap", "--frequency-split", "train")):
        output = tmp_path / str(len(flags))
        command = ("validate", "--model", str(folder), "--data", str(shapes), *flags)
        machine = ("--device", "cpu", "--workers", "0")
        assert main([*command, "--no-report", "--output", str(output), *machine]) == 0
        more = {"bootstrap": 5, "voc_ap": True, "frequency_split": "train"} if flags else {}
        figures = sepc_zoo.validate(folder, shapes, **more, **TINY)
        assert figures == json.loads((output / "metrics.json").read_text())


def test_a_detector_is_measured_as_it_is_and_keeps_its_config(model, shapes):
    config = model.config
    plain = sepc_zoo.validate(model, shapes, **TINY)
    soft = sepc_zoo.validate(model, data=[shapes], soft_nms="gaussian", **TINY)
    assert soft["AP"] != plain["AP"]
    assert model.config is config
    assert {*plain["per_class"]} == {*SHAPES}


def test_files_are_written_only_where_an_output_is_given(model, shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sepc_zoo.validate(model, shapes, **TINY)
    assert not [*tmp_path.iterdir()]
    figures = sepc_zoo.validate(model, shapes, output=Path("out"), **TINY)
    names = {"metrics.json", "detections.json", "report.html"}
    assert {path.name for path in Path("out").iterdir()} == names
    assert json.loads(Path("out/metrics.json").read_text()) == figures
    assert model.config.architecture in Path("out/report.html").read_text()


def test_another_split_has_other_figures(model, shapes):
    splits = (sepc_zoo.validate(model, shapes, split, **TINY) for split in ("train", "val"))
    assert next(splits)["AP"] != next(splits)["AP"]


@pytest.mark.parametrize(
    ("source", "options", "error", "named"),
    [
        ("no/such", {}, HubError, "no such folder"),
        (
            None,
            {"batchsize": 2},
            ConfigError,
            "unknown option 'batchsize'; did you mean 'batch_size'",
        ),
        (None, {"workers": -1}, OptionError, "workers is -1; it must be at least 0"),
    ],
)
def test_what_does_not_fit_is_refused(source, options, error, named, model, shapes):
    with pytest.raises(error, match=named):
        sepc_zoo.validate(source or model, shapes, **TINY | options)
