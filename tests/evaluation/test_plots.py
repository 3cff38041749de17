import csv
import sys

import numpy as np
import pytest

from sepc_zoo.data.listing import ListedBox, ListedImage, ListedImages
from sepc_zoo.evaluation import plots
from sepc_zoo.evaluation.plots import plot_curves, plot_statistics

COLUMNS = ("step", "epoch", "loss", "loss_cls", "AP", "AP50")


@pytest.fixture
def log(tmp_path):
    """Ten steps in two epochs; after the first the AP is undefined."""
    rows = [{"step": s, "epoch": s // 5, "loss": 1.0, "loss_cls": 0.6} for s in range(10)]
    rows[4] |= {"AP": -1.0, "AP50": 0.2}
    rows[9] |= {"AP": 0.1, "AP50": 0.3}
    with open(tmp_path / "log.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return tmp_path / "log.csv"


def keep_lines(file, number):
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:number]))


def test_curves_show_the_losses_and_the_best_epoch(log, tmp_path):
    pytest.importorskip("matplotlib")
    plot_curves(log, tmp_path / "curves.svg")
    text = (tmp_path / "curves.svg").read_text()
    for label in ("loss_cls", "AP50", "best AP: 0.100, epoch 1"):
        assert label in text


def test_curves_before_the_first_validation(log, tmp_path):
    pytest.importorskip("matplotlib")
    keep_lines(log, 2)
    plot_curves(log, tmp_path / "curves.svg")
    assert "not validated yet" in (tmp_path / "curves.svg").read_text()


def test_a_log_without_rows_is_refused(log, tmp_path):
    pytest.importorskip("matplotlib")
    keep_lines(log, 1)
    with pytest.raises(ValueError, match="no rows"):
        plot_curves(log, tmp_path / "curves.png")


def test_missing_matplotlib_is_named(log, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"sepc_zoo\[plots\]"):
        plot_curves(log, tmp_path / "curves.png")


@pytest.mark.parametrize("values", [(104, 210), (0.8, 1.1), (3, 40), (1, 9000)])
def test_a_logarithmic_axis_has_several_plain_labels(values):
    pytest.importorskip("matplotlib")
    axes = plots._new_figure(4, 3).subplots()
    plots._plot_histogram(axes, {"train": np.array(values)}, "Box side", "pixels", log=True)
    axes.axvline(32)
    axes.figure.canvas.draw()
    labels = [*axes.get_xticklabels(), *axes.get_xticklabels(minor=True)]
    numbers = [float(label.get_text()) for label in labels]
    assert len({*numbers}) == len(numbers) > 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "name",
    [
        "$5 bill $",
        "a $\\frac{$",
        "$$",
        "50 % \\$",
        "x" * 300,
        "a\n\tb\x1b[31m",
        "\U0001f436 \u7ec6",
    ],
)
def test_any_class_name_is_drawn_as_text(name, tmp_path):
    pytest.importorskip("matplotlib")
    box = ListedBox("", (1, 2, 30, 40), 0, name, 0, 1102.0)
    images = [ListedImage(1, tmp_path / "a.jpg", (48, 64), [box] * 3)]
    columns = {name: ListedImages.of(images)}
    plot_statistics(columns, {name: [3]}, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0


@pytest.mark.filterwarnings("error")
def test_a_data_set_of_which_nothing_can_be_read_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    plot_statistics({}, {}, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 0
