"""Models for images of other than three channels."""

import json

import pytest
import timm
import torch
from safetensors.torch import save_file
from tiny_detectors import some_targets

from sepc_zoo.checkpoints.folder import save_model
from sepc_zoo.config import BackboneConfig, ConfigError, config_from_json, config_to_json
from sepc_zoo.errors import HubError
from sepc_zoo.factory import create_model, load_backbone, load_model, model_info
from sepc_zoo.models.backbone import Backbone


def model_for(channels, name="retinanet_r18_fpn", **changes):
    kwargs = {"num_classes": 4, "channels": 16, "backbone_kwargs": {"in_chans": channels}}
    return create_model(name, **kwargs | changes)


@pytest.fixture(scope="module")
def rgb_file(tmp_path_factory):
    """timm's weights of a ResNet-18, made up."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "r18.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), file)
    return file


@pytest.mark.parametrize("name", ["retinanet_r18_fpn", "fasterrcnn_r18_fpn", "gfl_mnv4s_pconv"])
@pytest.mark.parametrize("channels", [1, 5])
def test_images_of_any_number_of_channels_are_learned_from(name, channels):
    model = model_for(channels, name).train()
    images = torch.randn(2, channels, 96, 128)
    sum(model.loss(model(images, some_targets()), some_targets()).values()).backward()
    first = next(p for p in model.backbone.parameters() if p.ndim == 4)
    assert first.shape[1] == channels
    assert first.grad.abs().sum() > 0


def test_mean_and_deviation_of_rgb_are_repeated():
    weights = model_for(5).config.weights
    assert weights.mean == (0.485, 0.456, 0.406, 0.485, 0.456)
    assert weights.std == (0.229, 0.224, 0.225, 0.229, 0.224)


def test_mean_and_deviation_may_be_given():
    weights = {"mean": [0.1, 0.2], "std": [0.3, 0.4]}
    assert model_for(2, weights=weights).config.weights.mean == (0.1, 0.2)


def test_a_model_folder_keeps_the_channels(tmp_path):
    model = model_for(5)
    content = json.loads(json.dumps(config_to_json(model.config)))
    assert config_from_json(content) == model.config
    save_model(model, tmp_path)
    again, images = load_model(tmp_path), torch.randn(1, 5, 64, 64)
    assert again.config == model.config
    assert torch.equal(again(images).logits, model(images).logits)
    assert "Channels in 0 to 1 minus" in (tmp_path / "README.md").read_text()
    parameters = sum(p.numel() for p in model.parameters())
    assert model_info(str(tmp_path)).parameters == parameters


def test_pretrained_weights_are_adapted_as_by_timm(rgb_file):
    config = BackboneConfig("resnet18", kwargs={"in_chans": 5})
    found = Backbone(config, pretrained=rgb_file).trunk.state_dict()
    rgb = timm.create_model("resnet18", checkpoint_path=str(rgb_file)).state_dict()
    torch.testing.assert_close(found["conv1.weight"], rgb["conv1.weight"][:, [0, 1, 2, 0, 1]] * 0.6)
    assert torch.equal(found["layer1.0.conv1.weight"], rgb["layer1.0.conv1.weight"])


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_a_file_for_rgb_is_loaded_as_timm_would(rgb_file, channels):
    model = model_for(channels)
    load_backbone(model, rgb_file)
    config = BackboneConfig("resnet18", kwargs={"in_chans": channels})
    expected = Backbone(config, pretrained=rgb_file).trunk.state_dict()
    for key, value in model.backbone.trunk.state_dict().items():
        assert torch.equal(value, expected[key])


def test_a_file_for_other_channels_does_not_fit(tmp_path):
    file = tmp_path / "four.safetensors"
    save_file(timm.create_model("resnet18", in_chans=4).state_dict(), file)
    with pytest.raises(ConfigError, match=r"conv1.weight is \(64, 4, 7, 7\), not \(64, 5, 7, 7\)"):
        load_backbone(model_for(5), file)


@pytest.mark.parametrize("name", ["retinanet_r18_fpn", "gfl_mnv4s_pconv"])
def test_a_trained_model_is_adapted_to_more_channels(tmp_path, name):
    """On images whose channels are those of RGB twice, it finds what the model for RGB finds."""
    rgb, images = model_for(3, name), torch.randn(2, 3, 64, 64)
    save_model(rgb, tmp_path)
    six = load_model(tmp_path, backbone_kwargs={"in_chans": 6})
    assert six.config.weights.mean == rgb.config.weights.mean * 2
    with torch.no_grad():
        expected, found = rgb(images), six(images.repeat(1, 2, 1, 1))
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.deltas, expected.deltas)


@pytest.mark.parametrize("changes", [{}, {"postprocess": {"iou_threshold": 0.5}}])
def test_a_folder_of_other_channels_than_its_config_is_refused(tmp_path, changes):
    save_model(model_for(5), tmp_path / "five")
    save_model(model_for(3), tmp_path / "three")
    (tmp_path / "three/model.safetensors").rename(tmp_path / "five/model.safetensors")
    with pytest.raises(HubError, match=r"conv1.weight is \(64, 3, 7, 7\), not \(64, 5, 7, 7\)"):
        load_model(tmp_path / "five", **changes)


def test_images_with_other_channels_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"expected images \(N, 5, H, W\), got \(1, 3, 64, 64\)"):
        model_for(5)(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": {"mean": [0.5] * 3}}, r"weights.mean has 3 values, .* reads 5 channels"),
        ({"weights": {"std": [0.5] * 4}}, r"weights.std has 4 values, .* reads 5 channels"),
        ({"backbone_kwargs": {"in_chans": 0}}, "in_chans is 0, no number of channels"),
        ({"backbone_kwargs": {"in_chans": "many"}}, "in_chans is 'many', no number of channels"),
        ({"backbone_kwargs": {"in_chans": 99999}}, "numbers over 16384"),
    ],
)
def test_channels_that_disagree_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        model_for(5, **changes)
