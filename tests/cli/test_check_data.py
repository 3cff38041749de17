"""`sepc-zoo check-data`: findings, figures, pictures, and a clean copy."""

import csv
import json
import os
import sys

import pytest
from PIL import Image

from sepc_zoo.cli import main
from sepc_zoo.cli.arguments import key_value, nested
from sepc_zoo.cli.data_report import describe_reach, write_samples
from sepc_zoo.data import read_data
from sepc_zoo.data.formats.reader import list_data
from sepc_zoo.data.quality.statistics import OTHER_ANCHORS
from sepc_zoo.factory import create_model


@pytest.fixture
def broken(tmp_path):
    """Drawn shapes, with a box outside of its image and a file that is no image."""
    from sepc_zoo.data import write_shapes

    root = write_shapes(tmp_path / "broken", train=3, val=2, size=(64, 64))
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"].append(
        {"id": 99, "image_id": 1, "category_id": 1, "bbox": [70, 1, 9, 9]}
    )
    path.write_text(json.dumps(content))
    (root / "val" / "000001.jpg").write_bytes(b"no image")
    return root


@pytest.fixture
def call(tmp_path):
    def run(*arguments):
        output = tmp_path / "out"
        flags = ("--samples", 2, "--output", output)
        return main(["check-data", *map(str, (*flags, *arguments))]), output

    return run


def test_good_data_ends_with_0_and_has_figures_and_pictures(shapes, call, capsys):
    status, output = call(shapes, "--samples", 5)
    assert status == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    figures = json.loads((output / "statistics.json").read_text())
    assert figures["splits"]["train"]["images"] == 8
    assert figures["splits"]["val"]["images"] == 4
    assert Image.open(output / "samples.png").width == 4 * (360 + 8) + 8
    assert Image.open(output / "statistics.png").width > 1000


def test_errors_end_with_1_and_name_file_and_entry(broken, call, capsys):
    status, output = call(broken)
    assert status == 1
    printed = capsys.readouterr().out
    with (output / "findings.csv").open(newline="") as file:
        rows = {row["kind"]: row for row in csv.DictReader(file)}
    for kind, where in (
        ("box outside the image", "(id 99)"),
        ("broken image", str(broken / "val" / "000001.jpg")),
    ):
        assert f"error {kind}: 1" in printed
        assert where in rows[kind]["where"]
        assert where in printed


def test_warnings_alone_end_with_0(broken, call):
    (broken / "val" / "000001.jpg").write_bytes((broken / "train" / "000001.jpg").read_bytes())
    path = broken / "annotations" / "instances_train.json"
    path.write_text(path.read_text().replace("[70, 1, 9, 9]", "[60, 1, 9, 9]"))
    status, output = call(broken)
    assert status == 0
    assert "picture in two splits" in (output / "findings.csv").read_text()


def test_the_first_lines_of_a_kind_are_shown_and_the_rest_counted(broken, call, capsys):
    (broken / "val" / "000002.jpg").unlink()
    for i in (1, 2, 3):
        (broken / "train" / f"00000{i}.jpg").write_bytes(b"no image")
    call(broken, "--shown", 2)
    printed = capsys.readouterr().out
    assert printed.count("not an image") == 2
    assert "... and 2 more in findings.csv" in printed


def test_a_clean_copy_is_written_where_asked(broken, call, tmp_path, capsys):
    status, _ = call(broken, "--fix", tmp_path / "clean")
    assert status == 1  # of the data that was checked
    assert "its changes.csv lists 2 changes" in capsys.readouterr().out
    assert main(["check-data", str(tmp_path / "clean"), "--output", str(tmp_path / "again")]) == 0
    assert len(read_data(tmp_path / "clean", "val").records) == 1


def test_nothing_is_written_into_the_data(broken, call, capsys):
    before = sorted(broken.rglob("*"))
    assert main(["check-data", str(broken), "--output", str(broken / "out")]) == 2
    assert call(broken, "--fix", broken / "train" / "clean")[0] == 2
    assert "is inside the data set" in capsys.readouterr().err
    assert sorted(broken.rglob("*")) == before


def test_an_existing_folder_is_not_overwritten(broken, call, tmp_path, capsys):
    (tmp_path / "clean").mkdir()
    status, output = call(broken, "--fix", tmp_path / "clean")
    assert status == 2
    assert not output.exists()  # refused before anything is read
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["nowhere"], ["--split", "test"]])
def test_missing_data_ends_with_2(flags, shapes, call, capsys):
    data = flags.pop(0) if flags[0] == "nowhere" else shapes
    assert call(data, *flags)[0] == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_seed_chooses_the_samples(shapes, tmp_path):
    clean = {"train": list_data(shapes, "train")}

    def samples(seed):
        assert write_samples(clean, tmp_path / "samples.png", 4, seed)
        return (tmp_path / "samples.png").read_bytes()

    assert samples(0) == samples(0) != samples(1)


def test_data_without_any_readable_image_ends_with_1_and_has_no_samples(broken, call):
    for path in broken.glob("*/*.jpg"):
        path.write_bytes(b"no image")
    status, output = call(broken)
    assert status == 1
    assert not (output / "samples.png").exists()
    assert json.loads((output / "statistics.json").read_text())["splits"]["val"]["images"] == 0


def test_without_matplotlib_all_but_the_histograms_is_there(shapes, call, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, output = call(shapes)
    assert status == 0
    assert "no statistics.png: " in capsys.readouterr().out
    assert {path.name for path in output.iterdir()} == {
        *("findings.csv", "statistics.json", "samples.png")
    }


def test_a_file_name_that_is_not_utf8_is_escaped(broken, call, capsys):
    (broken / "val" / os.fsdecode(b"caf\xe9.jpg")).touch()
    _, output = call(broken)
    assert r"caf\udce9.jpg: no split lists this file" in capsys.readouterr().out
    assert r"caf\udce9.jpg" in (output / "findings.csv").read_text()


def test_anchors_that_fit_need_no_advice():
    assert describe_reach({"default": 0.96, "anchors.base_scale=2": 1.0}) == []


def test_better_anchors_are_proposed_where_the_default_ones_do_not_fit():
    lines = describe_reach({"default": 0.5, "anchors.base_scale=2": 0.9, "anchors.octaves=4": 0.5})
    assert lines[0].startswith("50% of the boxes")
    assert lines[1:] == ["With --model-kwargs anchors.base_scale=2 it is 10%."]


@pytest.mark.parametrize("flag", OTHER_ANCHORS)
def test_the_anchors_proposed_are_flags_of_train(flag):
    changes = nested("model_kwargs", [key_value(flag)])
    model = create_model("retinanet_mnv4s_fpn", channels=16, num_classes=2, **changes)
    assert model.config.anchors == OTHER_ANCHORS[flag]


def test_data_of_another_format_than_the_given_one_is_refused(shapes, tmp_path, capsys):
    command = ["check-data", str(shapes), "--format", "voc", "--output", str(tmp_path / "out")]
    assert main(command) == 2
    assert "not in the layout of voc" in capsys.readouterr().err
