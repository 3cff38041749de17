"""What tests of whole runs need."""

import pytest

from sepc_zoo.training import trainer as engine


@pytest.fixture
def no_pictures(monkeypatch):
    """Pictures take most of a tiny run's time."""
    monkeypatch.setattr(engine, "draw_samples", lambda *_: None)
    monkeypatch.setattr(engine, "plot_curves", lambda *_: None)
