"""`sepc-zoo convert`, `list` and `info`."""

import pytest
import torch
from authors_checkpoints import their_state
from commands import assert_refused, call

from sepc_zoo.factory import create_model
from sepc_zoo.registry import list_models


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """As the authors published it, but for the values."""
    path = tmp_path_factory.mktemp("authors") / "retinanet_r50_pconv.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": their_state("retinanet_r50_pconv")}, path)
    return path


def test_convert_makes_a_model_folder_of_a_checkpoint(checkpoint, tmp_path, capsys):
    flags = ("--model", "retinanet_r50_pconv", "--output", tmp_path)
    assert call("convert", checkpoint, *flags) == 0
    model = create_model(f"local-dir:{tmp_path}")
    theirs = their_state("retinanet_r50_pconv")
    assert torch.equal(model.head.cls.weight, theirs["bbox_head.retina_cls.weight"])
    assert len(model.state_dict()) == len(theirs)
    assert f"sepc-zoo predict IMAGE --model {tmp_path}" in capsys.readouterr().out


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


def test_list_prints_what_list_models_gives(capsys):
    assert call("list") == 0
    assert capsys.readouterr().out.split() == list_models()
    assert call("list", "*_r50_*", "fsaf_r18_*", "--exclude", "*_fpn", "free*") == 0
    expected = list_models(["*_r50_*", "fsaf_r18_*"], exclude_filters=["*_fpn", "free*"])
    assert capsys.readouterr().out.split() == expected
    assert call("list", "--pretrained") == 0
    assert capsys.readouterr().out.split() == list_models(pretrained=True)


def test_info_shows_parameters_and_the_authors_ap(capsys):
    assert call("info", "fsaf_r50_sepc_lite") == 0
    out = capsys.readouterr().out
    for text in ("resnet50.tv_in1k", "GMACs at 800x1344", "40.5", "not measured yet"):
        assert text in out


def test_info_reads_a_model_folder(model, capsys):
    assert call("info", model) == 0
    assert "64x64" in capsys.readouterr().out


def test_info_of_an_unknown_name_suggests_the_nearest(capsys):
    assert call("info", "fsaf_r50_spec") == 2
    assert_refused(capsys, "fsaf_r50_sepc")


def test_info_takes_a_folder_with_its_prefix(model, capsys):
    assert call("info", f"local-dir:{model}") == 0
    assert "mobilenetv4_conv_small" in capsys.readouterr().out
