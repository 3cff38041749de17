"""Real data and figures that tests use where they are there."""

import os
import signal
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1].parent / "shared"
# pytest -n starts a worker for each core: more threads in each, and in what it starts, only wait.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# Shells and nohup let programs in the background ignore these, and so would the runs of the tests.
for number, usual in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
    if signal.getsignal(getattr(signal, number, signal.SIGINT)) is signal.SIG_IGN:
        signal.signal(getattr(signal, number), usual)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return _existing("SEPC_ZOO_TEST_DATA", SHARED / "data")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    return _existing("SEPC_ZOO_TEST_REFERENCE", SHARED / "reference")


@pytest.fixture(scope="session")
def shared_cases() -> Path:
    return _existing("SEPC_ZOO_TEST_CASES", SHARED / "cases")


def _existing(variable: str, default: Path) -> Path:
    path = Path(os.environ.get(variable, default))
    if not path.is_dir():
        pytest.skip(f"no folder {path}; set {variable} to run this test")
    return path


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """A data set of eight tiny pictures to learn from and four to validate on."""
    from sepc_zoo.data import write_shapes

    return write_shapes(tmp_path_factory.mktemp("data") / "shapes", train=8, val=4, size=(64, 64))


@pytest.fixture
def no_pictures(monkeypatch):
    """Runs draw no pictures and write no report."""
    from tiny_runs import draw_nothing

    draw_nothing(monkeypatch)


@pytest.fixture
def hub(tmp_path_factory, monkeypatch):
    """A hub of this test's own; the client knows no other, in this process and those it starts."""
    from hub_server import HubServer, point_client_at

    with HubServer() as server:
        point_client_at(server, tmp_path_factory.mktemp("hf_home"), monkeypatch)
        yield server


@pytest.fixture
def waits(monkeypatch):
    """Seconds that the client would have slept between its attempts; it does not sleep."""
    from types import SimpleNamespace

    from huggingface_hub import file_download
    from huggingface_hub.utils import _http

    slept: list[float] = []
    for module in (_http, file_download):
        fake = SimpleNamespace(**vars(module.time) | {"sleep": slept.append})
        monkeypatch.setattr(module, "time", fake)
    return slept
