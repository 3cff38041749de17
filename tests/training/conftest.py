"""What tests of whole runs need."""

import pytest

from sepc_zoo.training.callbacks import Callback, DrawSamples


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take most of a tiny run's time."""
    monkeypatch.setattr(DrawSamples, "after_validation", Callback.after_validation)
