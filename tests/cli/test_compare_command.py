"""`sepc-zoo compare`: of models and of saved detections."""

import json

import pytest
from commands import SHAPES, assert_refused, call

from sepc_zoo.metric_names import AP_METRICS


@pytest.fixture(scope="module")
def perfect(shapes, tmp_path_factory):
    """Detections of all objects of the split."""
    truth = json.loads((shapes / "annotations/instances_val.json").read_text())
    keys = ("image_id", "category_id", "bbox")
    rows = [{key: entry[key] for key in keys} | {"score": 0.9} for entry in truth["annotations"]]
    file = tmp_path_factory.mktemp("detections") / "<perfect>.json"
    file.write_text(json.dumps(rows))
    return file


def test_a_model_and_saved_detections_are_compared(model, perfect, shapes, tmp_path, capsys):
    flags = ("--data", shapes, "--workers", 0, "--bootstrap", 5, "--output", tmp_path)
    assert call("compare", model, perfect, *flags) == 0
    content = json.loads((tmp_path / "compare.json").read_text())
    assert (content["a"], content["b"]) == (str(model), str(perfect))
    assert list(content["figures"]) == [*AP_METRICS]
    assert list(content["per_class"]) == SHAPES
    assert content["figures"]["AP"]["b"] == pytest.approx(1)
    assert content["figures"]["AP"]["b_better"] == 1
    assert content["errors"]["missed"]["b"]["count"] == 0
    assert {entry["errors_b"] for entry in content["images"]} == {0}
    output = capsys.readouterr().out
    assert "B better" in output
    assert "compare.json, compare.html are in" in output
    page = (tmp_path / "compare.html").read_text()
    assert page.count("AP50 to gain<") == 2
    assert page.count("missed") == 1  # the kind of error; other objects are not found
    assert page.count("data:image/jpeg;base64,") == 2 * len(content["images"])
    assert "&lt;perfect&gt;.json" in page
    assert "<perfect>" not in page


def test_a_figure_that_is_0_for_both_makes_neither_better(shapes, tmp_path, capsys):
    (tmp_path / "none.json").write_text("[]")
    both, flags = [tmp_path / "none.json"] * 2, ("--bootstrap", 5, "--output", tmp_path)
    assert call("compare", *both, "--data", shapes, *flags) == 0
    figures = json.loads((tmp_path / "compare.json").read_text())["figures"]
    assert (figures["AP"]["difference"], figures["AP"]["b_better"]) == (0, None)
    assert "%" not in capsys.readouterr().out.partition("images;")[0].replace("95%", "")
    assert "--share" not in (tmp_path / "compare.html").read_text().partition("<body>")[2]


def test_the_page_can_be_left_out_and_the_seed_decides(perfect, shapes, tmp_path):
    rows = json.loads(perfect.read_text())
    (tmp_path / "some.json").write_text(json.dumps(rows[::2]))
    contents = []
    for seed in (0, 0, 1):
        flags = ("--bootstrap", 20, "--seed", seed, "--no-report", "--output", tmp_path / "out")
        assert call("compare", tmp_path / "some.json", perfect, "--data", shapes, *flags) == 0
        contents.append(json.loads((tmp_path / "out/compare.json").read_text())["figures"])
    assert contents[0] == contents[1] != contents[2]
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["compare.json"]


def test_a_source_that_does_not_exist_is_named(perfect, shapes, tmp_path, capsys):
    flags = ("--data", shapes, "--output", tmp_path)
    for source in ("none.json", "retinanet_r18_bogus"):
        assert call("compare", source, perfect, *flags) == 2
        assert_refused(capsys, "sepc-zoo compare: ", source)
    assert not (tmp_path / "compare.json").exists()
