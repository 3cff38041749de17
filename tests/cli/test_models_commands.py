"""`sepc-zoo convert`, `list` and `info`."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from authors_checkpoints import their_state
from commands import assert_refused, call
from new_process import run_python

from sepc_zoo.factory import create_model
from sepc_zoo.metric_names import METRICS
from sepc_zoo.registry import list_models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """As the authors published it, but for the values."""
    path = tmp_path_factory.mktemp("authors") / "retinanet_r50_pconv.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": their_state("retinanet_r50_pconv")}, path)
    return path


def test_convert_makes_a_model_folder_of_a_checkpoint(checkpoint, tmp_path, capsys):
    flags = ("--model", "retinanet_r50_pconv", "--output", tmp_path / "a b")
    assert call("convert", checkpoint, *flags) == 0
    model = create_model(f"local-dir:{tmp_path}/a b")
    theirs = their_state("retinanet_r50_pconv")
    assert torch.equal(model.head.cls.weight, theirs["bbox_head.retina_cls.weight"])
    assert len(model.state_dict()) == len(theirs)
    assert f"sepc-zoo predict IMAGE --model '{tmp_path}/a b'" in capsys.readouterr().out


def test_convert_takes_a_publisher_by_its_own_name_of_a_model(checkpoint, tmp_path, capsys):
    flags = ("--output", tmp_path / "out")
    theirs = "retinanet_r50_fpn_1x_coco"
    assert call("convert", checkpoint, "--model", theirs, *flags) == 2
    assert_refused(capsys, f"no checkpoint of {theirs}")
    flags = (*flags, "--model", "retinanet_r50_pconv")
    assert call("convert", checkpoint, *flags, "--source", "torchvision") == 2
    assert_refused(capsys, "torchvision published no 'retinanet_r50_pconv'")
    assert call("convert", checkpoint, *flags, "--source", "nobody") == 2
    assert_refused(capsys, "--source is 'nobody'; there are sepc, openmmlab")


def test_a_checkpoint_of_another_variant_is_refused_by_its_tensors(checkpoint, tmp_path, capsys):
    flags = ("--model", "retinanet_r50_ibn_pconv", "--output", tmp_path / "out")
    assert call("convert", checkpoint, *flags) == 2
    assert_refused(capsys, "no checkpoint of retinanet_r50_ibn_pconv", "neck.pconvs.0.norm")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_a_checkpoint_ends_with_2(tmp_path, capsys):
    (tmp_path / "bad.pth").write_bytes(b"no checkpoint")
    for name in ("bad.pth", "missing.pth"):
        flags = ("--model", "retinanet_r50_pconv", "--output", tmp_path / "out")
        assert call("convert", tmp_path / name, *flags) == 2
        assert_refused(capsys, name)


def test_a_model_that_the_authors_did_not_publish_is_named(checkpoint, tmp_path, capsys):
    flags = ("--model", "retinanet_r18_pconv", "--output", tmp_path / "out")
    assert call("convert", checkpoint, *flags) == 2
    assert_refused(capsys, "retinanet_r18_pconv")


# list and info


def test_list_prints_the_names_that_list_models_gives(capsys):
    assert call("list", "--names") == 0
    assert capsys.readouterr().out.split() == list_models()
    flags = ("--exclude", "*_fpn", "free*", "--names")
    assert call("list", "*_r50_*", "fsaf_r18_*", *flags) == 0
    expected = list_models(["*_r50_*", "fsaf_r18_*"], exclude_filters=["*_fpn", "free*"])
    assert capsys.readouterr().out.split() == expected
    assert call("list", "--pretrained", "--names") == 0
    assert capsys.readouterr().out.split() == list_models(pretrained=True)


def test_list_shows_size_operations_ap_and_whose_it_is(capsys):
    assert call("list", "fsaf_r50_fpn", "fsaf_r18_fpn", "--sort", "ap") == 0
    out = capsys.readouterr().out
    columns = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines() if "  " in line]
    header, first, second = (line for line in columns if len(line) > 3)
    assert header == ["model", "AP", "M parameters", "GMACs", "input", "weights of", "licence"]
    assert first == ["fsaf_r50_fpn", "36.8", *first[2:4], "800x1333", "sepc", "apache-2.0"]
    assert second == ["fsaf_r18_fpn", "-", *second[2:4], "800x1333", "-", "-"]
    assert float(first[2]) > float(second[2]) > 10
    assert "sepc: the authors of SEPC" in out


def test_list_has_a_column_of_measured_ap_once_there_are_figures(capsys, monkeypatch):
    measured = {"fsaf_r50_fpn.coco_1x": 36.74}
    monkeypatch.setattr("sepc_zoo.catalog.measured_ap", lambda: measured)
    assert call("list", "fsaf_r50_fpn", "--pretrained") == 0
    out = capsys.readouterr().out
    assert "AP measured" in out
    assert " 36.7 " in out


def test_list_as_json_has_all_that_is_known(capsys):
    assert call("list", "fsaf_r50_sepc", "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["name"] == "fsaf_r50_sepc"
    assert entry["weights"] == "fsaf_r50_sepc.coco_1x"
    assert entry["ap"] == 41.6
    assert entry["image_size"] == [800, 1333]
    assert entry["url"].startswith("https://")


def test_list_says_that_no_name_fits(capsys):
    assert call("list", "no_such_model") == 0
    assert "no model has such a name" in capsys.readouterr().out


def test_list_needs_neither_torch_nor_timm():
    code = "import sys; from sepc_zoo.cli import main; main(['list']); print(*sys.modules)"
    modules = run_python("-c", code).stdout.split()
    assert {"torch", "timm", "huggingface_hub"} & {*modules} == set()


def test_list_ends_quietly_where_nobody_reads_on():
    command = f"{sys.executable} -u -m sepc_zoo list --json | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("[\n", "", 0)


def test_info_of_a_name_shows_its_published_weights_and_their_terms(capsys):
    assert call("info", "fsaf_r50_sepc_lite") == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in ("resnet50.tv_in1k", "GMACs at 800x1344", "not measured yet"):
        assert text in out
    assert "coco_1x: AP 40.5 on COCO val2017 stated by the authors of SEPC" in out
    assert "licence apache-2.0" in out


def test_info_of_a_folder_shows_its_labels_and_metrics(model, tmp_path, capsys):
    folder = shutil.copytree(model, tmp_path / "model")
    assert call("info", folder) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "64x64" in out
    assert "4: disc, square, triangle, star" in out
    assert "published no weights" in out
    assert "metrics" not in out
    figures = dict.fromkeys(METRICS, 0.125) | {"per_class": {}}
    (folder / "metrics.json").write_text(json.dumps(figures))
    assert call("info", folder) == 0
    out = capsys.readouterr().out
    assert "metrics of its own validation" in out
    assert out.count("0.125") == len(METRICS)


@pytest.mark.parametrize("content", ["no JSON", "[]", '{"AP": 0.5}'])
def test_info_of_a_folder_with_damaged_metrics_names_them(content, model, tmp_path, capsys):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "metrics.json").write_text(content)
    assert call("info", folder) == 2
    assert_refused(capsys, "metrics.json")


def test_info_of_a_folder_that_is_not_there_says_so(capsys):
    assert call("info", "runs/none/best") == 2
    assert_refused(capsys, "runs/none/best", "no such folder")


def test_info_needs_the_config_alone_and_says_that_the_weights_are_missing(model, tmp_path, capsys):
    assert call("info", model) == 0
    whole = capsys.readouterr().out.split()
    assert "missing:" not in whole
    shutil.copy(model / "config.json", tmp_path)
    for source in (tmp_path, f"local-dir:{tmp_path}"):
        assert call("info", source) == 0
        missing = ["weights", "missing:", "the", "folder", "has", "no", "model.safetensors"]
        assert capsys.readouterr().out.split() == [*whole, *missing]


@pytest.mark.parametrize("source", ["org/cells", "org/cells@v1"])
def test_info_of_a_hub_id_without_its_prefix_names_the_whole_name(source, capsys):
    assert call("info", source) == 2
    assert_refused(capsys, f"{source}: no such folder or file", f"hub is hf-hub:{source}\n")


def test_info_of_a_run_names_the_folder_of_its_model(model, tmp_path, capsys):
    shutil.copytree(model, tmp_path / "run" / "best")
    assert call("info", tmp_path / "run") == 2
    assert_refused(
        capsys, "is no model folder: it has no config.json; did you mean its folder best"
    )


def test_info_of_an_unknown_name_suggests_the_nearest(capsys):
    assert call("info", "fsaf_r50_spec") == 2
    assert_refused(capsys, "fsaf_r50_sepc")
