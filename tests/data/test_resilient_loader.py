import os
import signal
import threading

import pytest
import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data._utils import signal_handling

from sepc_zoo.data.resilient_loader import ResilientLoader


class Item:
    problem = ""


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
        batches = ResilientLoader(loader, deaths.append, lambda _: None)
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
        batches = iter(ResilientLoader(loader, pytest.fail, lambda _: None))
        next(batches)
        assert signal.getsignal(signal.SIGCHLD) == (own if is_own else signal.SIG_DFL)
        assert len(list(batches)) == 1
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_no_signal_handler_is_touched_without_workers(monkeypatch):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # earlier loaders may have left torch's
    monkeypatch.setattr(signal, "signal", pytest.fail)
    loader = DataLoader([Item()] * 3, collate_fn=list)
    assert len(list(ResilientLoader(loader, pytest.fail, lambda _: None))) == 3


def test_messages_of_unreadable_images_are_passed_on():
    broken = Item()
    broken.problem = "a.jpg: broken"
    messages = []
    loader = DataLoader([Item(), broken], collate_fn=list)
    list(ResilientLoader(loader, pytest.fail, messages.append))
    assert messages == [[], ["a.jpg: broken"]]
