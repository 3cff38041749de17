"""Two machines: two agents of torchrun on the loopback, each with a process."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from process_pair import free_port
from tiny_runs import options, read_log, state_of

from sepc_zoo.cli.arguments import command_line
from sepc_zoo.training.config_file import read_options
from sepc_zoo.training.trainer import is_lost_connection, train

REPO = Path(__file__).parents[2]


def start_machines(*arguments):
    """Start an agent for each of two machines."""
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", *rendezvous]
    command += ["--nproc_per_node", "1", "--local-addr", "127.0.0.1", "--rdzv-id", "two"]
    command += [str(REPO / "scripts" / "train.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "GLOO_SOCKET_IFNAME": "lo"}
    how = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return [subprocess.Popen(command, text=True, **how) for _ in range(2)]


def run_machines(*arguments):
    machines = start_machines(*arguments)
    said = [machine.communicate(timeout=300)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_two_machines_train_and_resume_with_the_figures_of_one_process(shapes, tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone"
    # SGD, as the first steps of AdamW make whole steps of differences by rounding
    same = {"log_interval": 1, "sync_bn": False, "freeze_bn": True, "opt": "sgd", "epochs": 1}
    run_machines(*command_line(options(shapes, run, batch_size=2, **same)))
    run_machines("--resume", run, "--epochs", 2)
    train(options(shapes, alone, batch_size=4, **same))
    train(replace(read_options(alone), epochs=2), resume=True)
    ours, theirs = state_of(run), state_of(alone)
    torch.testing.assert_close(ours["model"], theirs["model"], rtol=1e-3, atol=1e-4)
    assert ours["progress"]["step"] == theirs["progress"]["step"] == 4
    for row, other in zip(*(read_log(r, "metrics.csv") for r in (run, alone)), strict=True):
        assert float(row["AP"]) == pytest.approx(float(other["AP"]), abs=1e-3)


@pytest.mark.slow
def test_a_machine_that_dies_ends_the_other_with_the_way_to_go_on(shapes, tmp_path):
    run = tmp_path / "run"
    asked = options(shapes, run, batch_size=1, save_interval=1, epochs=500)
    machines = start_machines(*command_line(asked))
    deadline = time.monotonic() + 200
    while not (run / "state.pt").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    lost = psutil.Process(machines[1].pid)
    for process in (lost, *lost.children(recursive=True)):
        process.send_signal(signal.SIGKILL)
    said, _ = machines[0].communicate(timeout=100)
    assert machines[0].returncode == 1
    assert "another process or machine is gone or hangs" in said
    assert f"go on with --resume {run}" in said


def test_an_error_of_our_own_is_no_lost_connection():
    lost = "[pair.cc:561] Connection closed by peer: third_party/gloo/gloo/transport/tcp/pair.cc"
    assert is_lost_connection(RuntimeError(lost))
    assert is_lost_connection(torch.distributed.DistBackendError("NCCL communicator was aborted"))
    assert not is_lost_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
