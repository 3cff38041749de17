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
