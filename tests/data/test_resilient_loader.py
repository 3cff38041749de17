import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from sepc_zoo.data.resilient_loader import ResilientLoader, shield_workers


class Item:
    pass


class KillsItsWorker(Dataset):
    """Eight items; a worker that loads the fourth dies the first time."""

    def __init__(self, flag):
        self.flag = flag

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if index == 3 and torch.utils.data.get_worker_info() and not self.flag.exists():
            self.flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        item = Item()
        item.index = index
        return item


@pytest.fixture
def load(tmp_path):
    """Load all items; return their indices, in batches of one, and the messages of deaths."""

    def run():
        deaths = []
        data = KillsItsWorker(tmp_path / "died")
        loader = DataLoader(data, num_workers=1, collate_fn=list, persistent_workers=True)
        batches = ResilientLoader(loader, deaths.append)
        return [item.index for batch in batches for item in batch], deaths

    return run


def test_after_the_death_of_a_worker_every_batch_comes_once(load):
    indices, deaths = load()
    assert indices == list(range(8))
    assert len(deaths) == 1
    assert deaths[0].startswith("DataLoader worker")


@pytest.mark.slow
def test_a_worker_may_die_in_a_thread(load):
    results = []
    thread = threading.Thread(target=lambda: results.append(load()))
    thread.start()
    thread.join()
    assert results[0][0] == list(range(8))


@pytest.mark.slow
def test_a_worker_may_die_where_the_signal_does_not_exist(load, monkeypatch):
    monkeypatch.setattr(signal_handling, "IS_WINDOWS", True)
    monkeypatch.delattr(signal, "SIGCHLD")
    assert load()[0] == list(range(8))


@pytest.mark.parametrize("is_own", [True, False])
def test_torchs_signal_handler_is_replaced_by_the_one_before(is_own, monkeypatch):
    def own(*_):
        pass

    before = signal.signal(signal.SIGCHLD, own if is_own else signal.SIG_DFL)
    monkeypatch.setattr(signal_handling, "_SIGCHLD_handler_set", False)
    try:
        loader = DataLoader([Item(), Item()], num_workers=1, collate_fn=list)
        batches = iter(ResilientLoader(loader, pytest.fail))
        next(batches)
        assert signal.getsignal(signal.SIGCHLD) == (own if is_own else signal.SIG_DFL)
        assert len(list(batches)) == 1
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_no_signal_handler_is_touched_without_workers(monkeypatch):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # earlier loaders may have left torch's
    monkeypatch.setattr(signal, "signal", pytest.fail)
    loader = DataLoader([Item()] * 3, collate_fn=list)
    assert len(list(ResilientLoader(loader, pytest.fail))) == 3


def test_a_batch_is_passed_on_before_it_is_used():
    seen = []
    for batch in ResilientLoader(DataLoader([1, 2]), pytest.fail, on_batch=seen.append):
        assert seen[-1] is batch
    assert [*map(int, seen)] == [1, 2]


class Large(Dataset):
    """Four tensors that would go into shared memory, and small ones."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        item = Item()
        item.large, item.small = torch.full((3, 200, 200), index), torch.arange(index)
        return item


def refuse(*_):
    raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")


@pytest.mark.parametrize("is_full", [False, True])
def test_batches_come_whole_also_where_the_shared_memory_is_full(is_full, monkeypatch):
    """Workers are forked, and so have the patch."""
    if is_full:
        monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)
    loader = shield_workers(DataLoader(Large(), 2, num_workers=2, collate_fn=list))
    items = [item for batch in ResilientLoader(loader, pytest.fail) for item in batch]
    assert [item.large.unique().tolist() for item in items] == [[0], [1], [2], [3]]
    assert [item.small.tolist() for item in items] == [[], [0], [0, 1], [0, 1, 2]]
    assert {item.large.is_shared() for item in items} == {not is_full}


IN_SMALL_SHARED_MEMORY = """
import torch
from sepc_zoo.data.resilient_loader import ResilientLoader, shield_workers
from test_resilient_loader import Large
from torch.utils.data import DataLoader
loader = shield_workers(DataLoader(Large(), 1, num_workers=2, collate_fn=list))
batches = list(ResilientLoader(loader, print))  # held, so that none is freed
print([batch[0].large.is_shared() for batch in batches])
"""


@pytest.mark.slow
def test_a_small_shared_memory_takes_what_fits_and_the_rest_is_copied():
    """As in a Docker container, whose ``/dev/shm`` has 64 MiB; here 2.5 MiB, and 960 kB an item."""
    mount = "mount -t tmpfs -o size=2500k tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("this user cannot mount a small /dev/shm")
    paths = [str(Path(__file__).parent), *sys.path]
    python = [sys.executable, "-c", IN_SMALL_SHARED_MEMORY]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", f'{mount} && exec "$@"', "-", *python],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert sorted(eval(done.stdout)) == [False, False, True, True], done.stderr
