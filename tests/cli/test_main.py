"""The command line itself: commands by name, help, errors, exit status, start-up."""

import importlib
import json
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import assert_refused, call
from new_process import run_python

from sepc_zoo import __version__, options
from sepc_zoo.cli import COMMANDS, main, module_of
from sepc_zoo.cli.arguments import classes_of
from sepc_zoo.cli.inputs import CHECKS, check_inputs
from sepc_zoo.cli.predict import Arguments as PredictArguments
from sepc_zoo.cli.reference import reference
from sepc_zoo.errors import UserError
from sepc_zoo.options import flag_of, nearest_option, option_fields
from sepc_zoo.training.options import TrainOptions

REPO = Path(__file__).parents[2]
HEAVY = {"torch", "numpy", "timm", "torchvision", "accelerate", "huggingface_hub", "rich", "PIL"}
# The fixed flags of `sepc-zoo train`.
TRAIN_FLAGS = [
    *("--data", "--train-split", "--val-split", "--model", "--output", "--epochs", "--max-steps"),
    *("--batch-size", "--image-size", "--opt", "--lr", "--sched", "--amp", "--pretrained-backbone"),
    *("--backbone-checkpoint", "--backbone-kwargs", "--mean", "--std", "--freeze-stages"),
    *("--freeze-bn", "--no-freeze-bn", "--seed", "--workers", "--log-interval"),
    *("--save-interval", "--resume", "--finetune", "--init-from", "--sync-bn", "--no-sync-bn"),
]


def help_of(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    return capsys.readouterr().out


def test_no_command_is_wrong_usage(capsys):
    assert main([]) == 2
    assert_refused(capsys, "usage: sepc-zoo COMMAND", *COMMANDS)


@pytest.mark.parametrize(
    ("typed", "nearest"), [("trian", "train"), ("check_data", "check-data"), ("prdict", "predict")]
)
def test_a_mistyped_command_is_named_with_the_nearest_one(typed, nearest, capsys):
    assert main([typed]) == 2
    assert_refused(capsys, f"no command {typed!r}; did you mean {nearest!r}?", *COMMANDS)


def test_a_command_like_no_other_is_refused_without_a_guess(capsys):
    assert main(["xyz"]) == 2
    error = capsys.readouterr().err
    assert "no command 'xyz'\n" in error
    assert "did you mean" not in error


def test_help_and_version_are_no_errors(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [name for name in COMMANDS if name not in text] == []
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"sepc-zoo {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_and_refuses_unknown_flags(command, capsys):
    assert f"usage: sepc-zoo {command}" in help_of(command, capsys)
    with pytest.raises(SystemExit) as end:
        main([command, "--bogus"])
    assert end.value.code == 2
    assert_refused(capsys, f"usage: sepc-zoo {command}")


def arguments_of(command):
    return importlib.import_module(module_of(command)).Arguments


def all_options(command):
    return [e for cls in classes_of(arguments_of(command)) for e in option_fields(cls)]


@pytest.mark.parametrize(
    ("command", "typed", "nearest"),
    [
        ("train", "--learnrate=0.1", "--lr"),
        ("train", "--epoch", "--epochs"),
        ("train", "--img-size", "--image-size"),
        ("train", "--init-frm", "--backbone-checkpoint"),
        ("train", "--no-freezebn", "--freeze-bn"),
        ("validate", "--modle", "--model"),  # rather than that --data is missing
    ],
)
def test_a_mistyped_flag_is_named_with_the_nearest_one(command, typed, nearest, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, typed, "3"])
    assert end.value.code == 2
    assert_refused(capsys, f"unknown option {typed.split('=')[0]}; did you mean {nearest}?")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_found_with_a_letter_too_many(command):
    options = all_options(command)
    assert {e.name: nearest_option(f"{flag_of(e.name)}x", options) for e in options} == {
        entry.name: entry.name for entry in options
    }


def test_a_flag_like_no_other_is_refused_without_a_guess(capsys):
    with pytest.raises(SystemExit):
        main(["list", "-q"])
    assert_refused(capsys, "unknown option -q; sepc-zoo list --help lists all")


# Paths and names


def wrong_inputs(there):
    """A command line for each option that names a place, which is not there and cannot be made."""
    file = f"{there}/config.json"
    others = {"DIR": "x", "OUT": "x", "NAME": "x", "ORG": "x", "ORG/NAME": "a/b"}
    others["CHECKPOINT"] = file
    for command in COMMANDS:
        own = option_fields(arguments_of(command))
        for tested in all_options(command):
            if tested.metavar not in CHECKS:
                continue
            words = ["--int8"] if tested.name == "calibrate" else []
            for entry in own if tested in own else [tested]:
                value = f"{file}/no/such/x" if entry == tested else others.get(entry.metavar, there)
                if entry == tested or entry.required:
                    words += [value] if entry.positional else [flag_of(entry.name), value]
            yield [command, *words]


def test_what_is_not_there_is_named_before_torch_is_imported(model, tmp_path):
    code = """
import json, sys
from sepc_zoo.cli import main
print(*[main(words) for words in json.loads(sys.argv[1])])
print(*sys.modules)
"""
    shutil.copytree(model, tmp_path / "run" / "best")
    cases = [*wrong_inputs(str(model)), ["predict", ".", "--model", "nope.onnx"]]
    cases += [["info", "fsaf_r50_spec"], ["predict", ".", "--model", str(tmp_path / "run")]]
    done = run_python("-c", code, json.dumps(cases))
    statuses, modules = done.stdout.splitlines()
    assert statuses.split() == ["2"] * len(cases)
    assert {"torch", "timm", "accelerate"} & {*modules.split()} == set()
    known = "nope.onnx: no such file", "fsaf_r50_sepc", "did you mean its folder best?"
    for (name, *_), line in zip(cases, done.stderr.splitlines(), strict=True):
        assert line.startswith(f"sepc-zoo {name}: ")
        assert any(text in line for text in ("no/such", *known))


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (["export", "--output", "x.onnx", "--model"], "give the model folder"),
        (["info"], "is no model folder but a file"),
    ],
)
def test_an_exported_file_is_refused_where_a_model_folder_is_needed(words, way, tmp_path, capsys):
    file = tmp_path / "model.onnx"
    file.touch()
    assert main([*words, str(file)]) == 2
    assert_refused(capsys, way)


def test_in_every_value_that_is_checked_as_a_path_a_tilde_is_the_home_folder():
    assert {*CHECKS} == options.PATHS


@pytest.mark.parametrize("command", ["validate", "benchmark", "export"])
@pytest.mark.parametrize("output", ["new/er", "there"])
def test_an_output_that_can_be_made_is_not_refused(output, command, tmp_path, model):
    (tmp_path / "there").mkdir()
    given = {"model": str(model), "data": str(tmp_path), "output": str(tmp_path / output)}
    names = {entry.name for entry in all_options(command)}
    check_inputs(arguments_of(command)(**{n: v for n, v in given.items() if n in names}))


def test_an_output_where_nothing_may_be_written_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    with pytest.raises(UserError, match="cannot be written"):
        check_inputs(PredictArguments(source=["0"], output=str(tmp_path / "new")))


def test_what_may_be_elsewhere_is_not_refused(model, tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "model.onnx").touch()
    sources = ["0", "/dev/video9", "rtsp://host/live", str(tmp_path / "*.jpg"), str(tmp_path)]
    for name in (None, "hf-hub:org/name", "fsaf_convnext_tiny_sepc", str(tmp_path), str(model)):
        check_inputs(PredictArguments(source=sources, model=name))


def test_help_of_train_comes_in_groups_and_has_every_flag(capsys):
    text = help_of("train", capsys)
    titles = ("Data:", "Model and initial weights:", "Optimizer and schedule:", "Hardware")
    positions = [text.index(f"\n{title}") for title in (*titles, "Run folder", "Start and resume")]
    assert positions == sorted(positions)
    options = [f"--{entry.name.replace('_', '-')}" for entry in option_fields(TrainOptions)]
    assert [flag for flag in (*TRAIN_FLAGS, *options) if f" {flag}" not in text] == []
    assert "number of epochs (default: the recipe's)" in " ".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_a_help_says_each_default_once_and_names_no_markup(command, capsys):
    for entry in all_options(command):
        assert len(re.findall(r"[(;] ?default", options.help_of(entry))) <= 1
    assert "``" not in help_of(command, capsys)


@pytest.mark.parametrize(
    ("command", "usage"),
    [("list", "[PATTERN ...]"), ("predict", "SOURCE ..."), ("compare", "A B --data DATA ...")],
)
def test_the_usage_has_what_stands_without_a_flag_and_what_is_required(command, usage, capsys):
    assert f"usage: sepc-zoo {command} {usage} [OPTION ...]\n" in help_of(command, capsys)


def test_the_reference_has_every_command_and_option():
    text = reference()
    for name in COMMANDS:
        section = text.partition(f"\n## sepc-zoo {name}\n")[2].partition("\n## ")[0]
        options = option_fields(importlib.import_module(module_of(name)).Arguments)
        assert [e.name for e in options if f"| `{e.name}` |" not in section] == []
    assert all(f"| `{entry.name}` |" in text for entry in option_fields(TrainOptions))


def test_help_and_a_mistyped_command_load_no_heavy_library():
    code = """
import contextlib, sys
from sepc_zoo.cli import COMMANDS, main, module_of
from sepc_zoo.cli.reference import reference
for command in (["--help"], ["--version"], ["trian"], *([name, "--help"] for name in COMMANDS)):
    with contextlib.suppress(SystemExit):
        main(command)
print(*sys.modules)
"""
    done = run_python("-c", code)
    assert HEAVY & {*done.stdout.splitlines()[-1].split()} == set()


def test_the_package_runs_as_a_module():
    assert run_python("-m", "sepc_zoo", "--version").stdout == f"sepc-zoo {__version__}\n"


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (KeyboardInterrupt(), 130, ""),
        (UserError("so"), 2, "sepc-zoo list: so\n"),
        (OSError("so"), 2, "sepc-zoo list: so\n"),
        (PermissionError(13, "not allowed", "file"), 2, "sepc-zoo list: file: not allowed\n"),
    ],
)
def test_the_exit_status_says_how_a_command_ended(error, status, said, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setattr("sepc_zoo.cli.list.run", fail)
    assert main(["list"]) == status
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "script", ["train", "validate", "predict", "convert", "check_data", "benchmark"]
)
def test_a_script_is_the_command_of_its_name(script, monkeypatch, capsys):
    path = REPO / "scripts" / f"{script}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(path), run_name="__main__")
    assert end.value.code == 0
    assert f"usage: sepc-zoo {script.replace('_', '-')}" in capsys.readouterr().out


def test_a_script_runs_from_any_folder(tmp_path):
    command = [sys.executable, REPO / "scripts" / "train.py", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: sepc-zoo train" in done.stdout


@pytest.mark.parametrize("flags", [("--batch-size", 0), ("--workers", -1), ("--tta-scales", 0)])
@pytest.mark.parametrize("command", ["validate", "predict"])
def test_a_value_out_of_range_ends_with_2_and_names_the_flag(command, flags, capsys):
    source = ("--data", "d") if command == "validate" else ("d",)
    with pytest.raises(SystemExit) as end:
        call(command, *source, "--model", "m", *flags)
    assert end.value.code == 2
    assert_refused(capsys, f"sepc-zoo {command}: error: {flags[0]} is ", "; it must be at least")


@pytest.mark.parametrize("flags", [(), ("--tta-scales", "2"), ("--tile", "640")])
@pytest.mark.parametrize(
    "words", [("validate", "--data"), ("predict",), ("compare", "a", "b", "--data")]
)
def test_a_fusion_of_a_single_view_is_refused(words, flags, capsys):
    with pytest.raises(SystemExit) as end:
        main([*words, "d", "--tta-fusion", "wbf", *flags])
    assert end.value.code == 2
    assert_refused(capsys, "--tta-fusion merges views", "add --tta-flip or more --tta-scales")


def test_an_overlap_without_tiles_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        call("predict", "d", "--overlap", 0.5)
    assert end.value.code == 2
    assert_refused(capsys, "--overlap is that of tiles, but there are none: add --tile")
