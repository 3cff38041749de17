import socket
import time
from pathlib import Path

import pytest
import timm
import torch
from made_up_models import same_tensors
from safetensors.torch import load_file, save_file

import sepc_zoo
from sepc_zoo.checkpoints import hub as our_hub
from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.checkpoints.hub import BACKBONE_TIMEOUT
from sepc_zoo.config import ConfigError, override
from sepc_zoo.errors import HubError
from sepc_zoo.factory import build, create_model, load_backbone, load_model

TINY = {"channels": 16, "neck": {"blocks": 1}}


def tiny(name="retinanet_r18_sepc_lite", **kwargs):
    return create_model(name, **(TINY | kwargs))


@pytest.fixture(scope="module")
def model():
    return tiny(label_names=["cat", "dog", "bird"])


@pytest.fixture
def folder(model, tmp_path):
    return save_model(model, tmp_path / "model")


def class_rows(model):
    """Weights and biases of the classification ``(anchors of a cell, K, …)``."""
    cls, classes = model.head.cls, model.config.num_classes
    return cls.weight.unflatten(0, (-1, classes)), cls.bias.unflatten(0, (-1, classes))


def with_random_head(model):
    torch.nn.init.normal_(model.head.cls.bias)
    return model


def test_a_model_comes_in_eval_mode():
    assert not any(module.training for module in tiny().modules())


@pytest.mark.parametrize("neck", ["fpn", "sepc"])
@pytest.mark.parametrize("method", ["retinanet", "freeanchor", "fsaf"])
def test_a_saved_model_comes_back_bit_for_bit(method, neck, tmp_path):
    changes = {"channels": 16} if neck == "fpn" else TINY
    model = create_model(f"{method}_r18_{neck}", num_classes=3, **changes)
    model.backbone.body.bn1.running_mean.normal_()
    save_model(model, tmp_path)
    again = create_model(f"local-dir:{tmp_path}")
    assert again.config == model.config
    assert same_tensors(again, model)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for ours, theirs in zip(model(images)[:2], again(images)[:2], strict=True):
            assert torch.equal(ours, theirs)


def test_load_model_takes_a_folder(model, folder):
    assert same_tensors(load_model(folder), model)
    assert same_tensors(load_model(str(folder)), model)
    assert same_tensors(load_model(f"local-dir:{folder}"), model)


def test_saving_over_an_older_model_replaces_it(folder):
    other = tiny(num_classes=2)
    save_model(other, folder)
    assert same_tensors(load_model(folder), other)


def test_rows_are_carried_over_by_name(model, folder):
    with_random_head(model)
    save_model(model, folder)
    names = ["bird", "fish", "cat"]
    other = load_model(folder, label_names=names)
    assert other.config.label_names == tuple(names)
    for new, old in zip(class_rows(other), class_rows(model), strict=True):
        assert new.shape[:2] == (9, 3)
        assert torch.equal(new[:, 0], old[:, 2])
        assert torch.equal(new[:, 2], old[:, 0])
    prior = torch.full((9,), -torch.tensor(99.0).log().item())
    torch.testing.assert_close(class_rows(other)[1][:, 1], prior)


def test_all_but_the_classification_is_kept(model, folder):
    other = load_model(folder, num_classes=7)
    assert (other.config.num_classes, other.head.cls.out_channels) == (7, 9 * 7)
    ours, theirs = other.state_dict(), model.state_dict()
    for key in ours:
        if not key.startswith("head.cls."):
            assert torch.equal(ours[key], theirs[key])


def test_another_number_of_classes_starts_the_classification_afresh(model, folder):
    with_random_head(model)
    save_model(model, folder)
    _, bias = class_rows(load_model(folder, num_classes=2))
    assert bias.unique().tolist() == pytest.approx([-torch.tensor(99.0).log().item()])


def test_the_same_number_of_classes_keeps_everything(model, folder):
    assert same_tensors(load_model(folder, num_classes=3), model)


def test_ids_follow_the_names_where_all_are_known():
    config = tiny(label_names=["dog", "person"]).config
    assert config.category_ids == (18, 1)  # COCO's
    assert tiny(label_names=["dog", "unicorn"]).config.category_ids == (1, 2)


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"num_classes": 2, "label_names": ["a"]}, "num_classes is 2, but there are 1"),
        ({"label_names": ["a", "a"]}, "duplicates"),
        ({"label_names": "cat"}, "list of names"),
        ({"label_names": [1, 2]}, "label_names"),
        ({"num_classes": 0}, "num_classes"),
        ({"chanels": 16}, "chanels"),
        ({"method": {"type": "fsaf"}}, "method follow from the model's name"),
        ({"method": {"gama": 2.0}}, "method.*gama"),
        ({"method": {"positive_iou": "half"}}, "positive_iou"),
        ({"backbone_kwargs": {"bogus": 1}}, "bogus"),
        ({"backbone_kwargs": {"out_indices": [0, 1]}}, "needs 8, 16, 32"),
        ({"backbone_kwargs": {"out_indices": [9]}}, "out_indices"),
    ],
)
def test_what_does_not_fit_is_named(kwargs, match):
    with pytest.raises(ConfigError, match=match):
        tiny(**kwargs)


def test_overrides_reach_the_model():
    model = tiny(
        channels=24,
        anchors={"octaves": 1},
        postprocess={"max_detections": 5},
        method={"positive_iou": 0.7},
    )
    assert model.fpn.p7.out_channels == 24
    assert model.head.cls.out_channels == 3 * 80
    assert model.method.positive_iou == 0.7


def test_backbone_kwargs_reach_timm_and_travel_with_the_model(tmp_path):
    model = tiny(backbone_kwargs={"drop_path_rate": 0.1, "act_layer": "silu"})
    assert isinstance(model.backbone.body.act1, torch.nn.SiLU)
    again = load_model(save_model(model, tmp_path))
    assert isinstance(again.backbone.body.act1, torch.nn.SiLU)
    more = load_model(tmp_path, backbone_kwargs={"drop_path_rate": 0.2})
    assert more.config.backbone.kwargs == {"drop_path_rate": 0.2, "act_layer": "silu"}


def test_a_checkpoint_of_the_same_model_is_loaded(model, folder):
    again = tiny(label_names=["cat", "dog", "bird"], checkpoint=folder / "model.safetensors")
    assert same_tensors(again, model)


def test_a_checkpoint_of_other_classes_is_refused(folder):
    with pytest.raises(HubError, match=r"head.cls.weight is \(27, .*not \(72"):
        tiny(num_classes=8, checkpoint=folder / "model.safetensors")


@pytest.mark.parametrize(
    "backbone", ["r18", "mnv4s", "mobilenetv4_hybrid_medium", "twins_svt_small"]
)
def test_a_file_of_timms_fits_the_backbone(backbone, tmp_path):
    model = create_model(f"fsaf_{backbone}_fpn", channels=16)
    whole = timm.create_model(model.config.backbone.name)
    save_file(whole.state_dict(), tmp_path / "whole.safetensors")
    load_backbone(model, tmp_path / "whole.safetensors")
    theirs = {key.replace(".", "_"): value for key, value in whole.state_dict().items()}
    for key, value in model.backbone.trunk.state_dict().items():
        assert torch.equal(value, theirs[key.replace(".", "_")])


def test_a_file_of_timms_fits_a_backbone_with_deformable_stages(tmp_path):
    path = tmp_path / "whole.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), path)
    plain = create_model("fsaf_r18_fpn", channels=16)
    deform = create_model("fsaf_r18_fpn", channels=16, backbone={"deform_stages": [4]})
    for model in (plain, deform):
        load_backbone(model, path)
    images = torch.randn(1, 3, 64, 64)
    for ours, expected in zip(deform.backbone(images), plain.backbone(images), strict=True):
        torch.testing.assert_close(ours, expected)


def test_a_file_of_another_backbone_is_refused(model, tmp_path):
    path = tmp_path / "r34.safetensors"
    save_file(timm.create_model("resnet34").state_dict(), path)
    load_backbone(create_model("fsaf_r34_fpn", channels=16), path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    save_file({"conv1.weight": torch.zeros(64, 3, 7, 7)}, path)
    with pytest.raises(ConfigError, match=r"fit backbone resnet18\S*:\n  missing: bn1\.weight"):
        load_backbone(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_damaged_file_for_the_backbone_is_named(model, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"not tensors")
    for name in ("bad.safetensors", "missing.safetensors"):
        with pytest.raises(HubError, match=name):
            load_backbone(model, tmp_path / name)


@pytest.fixture
def backbone_hub(hub, tmp_path):
    """A hub that has timm's weights of a tiny backbone."""
    timm_model = timm.create_model("mobilenetv4_conv_small")
    save_file(timm_model.state_dict(), tmp_path / "timm.safetensors")
    content = (tmp_path / "timm.safetensors").read_bytes()
    repo_id = timm.get_pretrained_cfg("mobilenetv4_conv_small").hf_hub_id
    hub.add_repository(repo_id, {"model.safetensors": content})
    hub.state = timm_model.state_dict()
    return hub


def test_weights_of_a_backbone_are_downloaded_once_and_then_found_offline(backbone_hub):
    for is_online in (True, False):
        model = tiny("retinanet_mnv4s_pconv", pretrained_backbone=True)
        theirs = {key.replace(".", "_"): value for key, value in backbone_hub.state.items()}
        for key, value in model.backbone.trunk.state_dict().items():
            assert torch.equal(value, theirs[key.replace(".", "_")])
        assert model.config == tiny("retinanet_mnv4s_pconv").config
        if is_online:
            backbone_hub.close()


@pytest.mark.parametrize("fault", [{"hang_up": True}, {"delay": 60}, {"status": 503}])
def test_without_the_hub_a_backbone_is_refused_at_once_with_a_way_out(fault, backbone_hub, waits):
    backbone_hub.misbehave(**fault)
    start = time.monotonic()
    with pytest.raises(
        HubError, match=r"backbone mobilenetv4_conv_small: .*--backbone-checkpoint FILE"
    ):
        tiny("retinanet_mnv4s_pconv", pretrained_backbone=True)
    assert time.monotonic() - start < BACKBONE_TIMEOUT + 2
    assert len(backbone_hub.seen()) == 1
    assert waits == []


def test_what_timm_cannot_download_itself_is_named(monkeypatch):
    def offline(*_args, **_kwargs):
        raise FileNotFoundError("no connection")

    monkeypatch.setattr("sepc_zoo.factory.fetch_backbone", lambda *_args, **_kwargs: None)
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        HubError, match=r"backbone resnet18.*no connection.*--backbone-checkpoint FILE"
    ):
        tiny(pretrained_backbone=True)


@pytest.mark.parametrize("name", ["vit_base_patch16_224.sam_in1k", "resnetv2_50x1_bit", "resnet18"])
def test_a_model_that_timm_keeps_on_the_hub_is_fetched_from_there(name, monkeypatch):
    monkeypatch.setattr(our_hub, "fetch_file", lambda request, *_: request.repo_id)
    assert our_hub.fetch_backbone(name).startswith(f"timm/{name}")


@pytest.mark.parametrize("name", ["no_such_backbone", "legacy_seresnet18"])
def test_a_model_that_timm_keeps_elsewhere_is_left_to_timm(name):
    assert our_hub.fetch_backbone(name) is None


def test_weights_in_a_folder_need_no_backbone_weights(folder, monkeypatch):
    build = timm.create_model
    asked = []

    def watched(name, pretrained=False, **kwargs):
        asked.append(pretrained)
        return build(name, pretrained, **kwargs)

    monkeypatch.setattr(timm, "create_model", watched)
    load_model(folder, pretrained_backbone=True)
    assert not any(asked)


def test_a_plain_name_does_not_reach_the_network(monkeypatch):
    def forbidden(*_args, **_kwargs):
        raise AssertionError("the network was reached")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)
    assert sepc_zoo.create_model("fsaf_r50_sepc.coco_1x", channels=16)


def test_a_model_in_float64_is_saved_as_it_is(tmp_path):
    save_model(tiny(num_classes=2).double(), tmp_path)
    assert load_file(tmp_path / "model.safetensors")["head.cls.weight"].dtype == torch.float64


def test_only_the_published_weights_carry_the_credit_of_their_authors(tmp_path):
    config = create_model("fsaf_r50_fpn.coco_1x", channels=16).config
    assert config.weights.authors_ap is None
    published = override(config, {"weights": {"authors_ap": 36.8, "tag": "coco_1x"}})
    folder = save_model(build(published), tmp_path)
    assert load_model(folder).config.weights.authors_ap == 36.8
    for change in ({"num_classes": 3}, {"postprocess": {"iou_threshold": 0.6}}):
        assert load_model(folder, **change).config.weights.authors_ap is None


@pytest.mark.parametrize("source", ["runs/nope/best", "/nope", "./nope", "~/nope", "nope"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(source):
    with pytest.raises(HubError, match=f"{source} is no model folder: there is no such folder"):
        load_model(source)


def test_an_id_of_the_hub_is_a_path_where_its_first_part_is_a_folder(hub, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for source in ("runs/none", Path("org/name")):
        with pytest.raises(HubError, match=rf"{source} is no model folder.*hf-hub:{source}"):
            load_model(source)
    assert hub.seen() == []
    with pytest.raises(HubError, match="org/name does not exist"):
        load_model("org/name")
    assert len(hub.seen()) == 1
