"""Real data and figures that tests use where they are there."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    return _existing("SEPC_ZOO_TEST_DATA", SHARED / "data")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    return _existing("SEPC_ZOO_TEST_REFERENCE", SHARED / "reference")


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
def fresh_accelerate():
    """accelerate keeps device and precision of a process; a test of several runs needs new ones."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
