import subprocess
import sys

import pytest

CRASH = """
import torch
from sepc_zoo.engine.interrupt import shield_workers
from torch.utils.data import DataLoader

loader = shield_workers(DataLoader(range(8), num_workers=1, persistent_workers=True))
batches = iter(loader)
next(batches)
raise RuntimeError("a run that ends without ending its workers")
"""


@pytest.mark.slow
def test_shielded_workers_do_not_keep_a_process_from_ending():
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, timeout=40)
    assert done.returncode == 1
    assert b"without ending its workers" in done.stderr
