import os
import signal
import subprocess
import sys

import pytest

from sepc_zoo.training.resilience import signals as engine
from sepc_zoo.training.resilience.signals import Interrupt

CRASH = """
import torch
from sepc_zoo.data.resilient_loader import shield_workers
from torch.utils.data import DataLoader

loader = shield_workers(DataLoader(range(8), num_workers=1, persistent_workers=True))
batches = iter(loader)
next(batches)
raise RuntimeError("a run that ends without ending its workers")
"""


def test_a_signal_that_is_passed_on_twice_is_one():
    with Interrupt() as interrupt:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert interrupt.signal == signal.SIGINT


def test_a_second_signal_has_its_usual_effect(monkeypatch):
    monkeypatch.setattr(engine, "ECHO_SECONDS", 0.0)
    with Interrupt() as interrupt:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupt.signal == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.slow
def test_shielded_workers_do_not_keep_a_process_from_ending():
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, timeout=40)
    assert done.returncode == 1
    assert b"without ending its workers" in done.stderr
