"""The folder of a run: nobody else's files are touched, and one run has it at a time."""

import os
import shlex
import socket
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from tiny_runs import copy_of, options, resume, start_process, state_of, train_until_crash

from sepc_zoo.cli.train import finish
from sepc_zoo.data.problems import DataError
from sepc_zoo.errors import UserError
from sepc_zoo.training.checkpoint import STATE_FILE, read_state
from sepc_zoo.training.config_file import read_options
from sepc_zoo.training.inputs import read_model_file
from sepc_zoo.training.options import TrainError
from sepc_zoo.training.run_folder import LOCK_FILE, OWNER_FILE, check_output, locked
from sepc_zoo.training.trainer import how_to_go_on, train

pytestmark = pytest.mark.usefixtures("no_pictures")


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    "names",
    [
        ["thesis.tex"],
        ["log.csv"],
        ["skipped/photo.jpg", "faults.csv"],
        ["config.yaml"],
        ["best/model.safetensors", "config.yaml"],
        [".0123abcd.notes", "a/b/c"],
    ],
)
def test_a_folder_with_files_of_the_users_is_refused_and_stays_as_it_is(names, shapes, tmp_path):
    folder = tmp_path / "run"
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    before = contents(folder)
    with pytest.raises(TrainError, match=r"is not empty: .* choose another --output"):
        train(options(shapes, folder))
    assert contents(folder) == before


def run_in(folder):
    return SimpleNamespace(saved_step=1, output=folder)


@pytest.mark.parametrize(
    ("say", "flag", "end"),
    [
        (lambda folder: check_output(folder, resume=False), "--resume", ""),
        (lambda folder: read_model_file(folder / "model.json"), "--model", "/last"),
        (lambda folder: read_state(folder / STATE_FILE), "--model", "/last"),
        (lambda folder: print(how_to_go_on(run_in(folder))), "--resume", ""),
        (lambda folder: finish(run_in(folder), {}, None, is_demo=False), "--model", "/best"),
    ],
)
def test_paths_in_printed_commands_are_quoted(say, flag, end, tmp_path, capsys):
    folder = tmp_path / "a b's"
    folder.mkdir()
    (folder / STATE_FILE).write_text("damaged")
    try:
        say(folder)
    except UserError as error:
        print(error)
    assert f"{flag} {shlex.quote(f'{folder}{end}')}" in capsys.readouterr().out


def test_a_run_whose_state_was_deleted_is_not_overwritten(shapes, tmp_path):
    run = tmp_path / "run"
    train(options(shapes, run, epochs=1))
    for file in run.glob("state*.pt"):
        file.unlink()
    with pytest.raises(TrainError, match=r"is not empty: \d+ \(best, last"):
        train(options(shapes, run, epochs=1))


def test_a_run_that_ended_before_its_first_save_is_started_again(shapes, tmp_path):
    run = tmp_path / "run"
    train_until_crash(2, options(shapes, run, log_interval=1, draw_batches=1))
    assert (run / "log.csv").exists()
    train(options(shapes, run, lr=1e-4))
    assert read_options(run).lr == 1e-4


def wait_for(file):
    deadline = time.monotonic() + 60
    while not file.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert file.exists()


def test_a_folder_in_use_is_refused_until_its_process_is_dead(shapes, tmp_path):
    run = tmp_path / "run"
    process = start_process(options(shapes, run, epochs=1000, save_interval=1))
    wait_for(run / "state.pt")
    with pytest.raises(TrainError) as refusal:
        resume(run)
    assert f"in use by process {process.pid} on {socket.gethostname()}" in str(refusal.value)
    process.kill()
    process.join()
    assert (run / OWNER_FILE).exists()
    epochs = state_of(run)["progress"]["step"] // 2 + 1
    train(replace(read_options(run), epochs=epochs), resume=True)  # the lock of the dead is stale
    assert state_of(run)["progress"]["epoch"] == epochs
    assert not list(run.glob(".*"))


def test_two_starts_at_once_are_told_apart_by_the_lock(tmp_path):
    run = tmp_path / "run"
    used = f"in use by process {os.getpid()} on "
    with locked(run):
        assert (run / LOCK_FILE).exists()
        with pytest.raises(TrainError, match=used), locked(run):
            pass
    assert not list(run.iterdir())


def test_a_refused_start_writes_nothing(shapes, tmp_path):
    data = copy_of(shapes, tmp_path)
    with pytest.raises(DataError, match="bogus"):
        train(options(data, tmp_path / "run", val_split="bogus"))
    assert not (tmp_path / "run").exists()
