import csv

import numpy as np
import pytest
from PIL import Image

from sepc_zoo.evaluation.plots import plot_curves


def log_rows():
    rows = [{"step": s, "epoch": s // 5, "loss": 1.0, "loss_cls": 0.6} for s in range(10)]
    rows[4] |= {"AP": -1.0, "AP50": 0.2}
    rows[9] |= {"AP": 0.1, "AP50": 0.3}
    return rows


def test_rows_and_their_csv_file_give_the_same_curves(tmp_path):
    pytest.importorskip("matplotlib")
    rows = log_rows()
    with open(tmp_path / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], "AP", "AP50"], restval="")
        writer.writeheader()
        writer.writerows(rows)
    plot_curves(rows, tmp_path / "rows.png")
    plot_curves(tmp_path / "log.csv", tmp_path / "csv.png")
    with Image.open(tmp_path / "rows.png") as a, Image.open(tmp_path / "csv.png") as b:
        assert (np.asarray(a) == np.asarray(b)).all()


def test_curves_before_the_first_validation(tmp_path):
    pytest.importorskip("matplotlib")
    plot_curves(log_rows()[:1], tmp_path / "curves.svg")
    assert "not validated yet" in (tmp_path / "curves.svg").read_text()


def test_a_log_without_rows_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match="no rows"):
        plot_curves([], tmp_path / "curves.png")


def test_missing_matplotlib_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"sepc_zoo\[plots\]"):
        plot_curves(log_rows(), tmp_path / "curves.png")
