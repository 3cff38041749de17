import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sepc_zoo.config import BackboneConfig, ConfigError
from sepc_zoo.models.backbone import Backbone
from sepc_zoo.models.deform import DeformConv2d

SMALL = {"layers": [1, 1, 2, 2], "channels": [4, 4, 8, 8], "stem_width": 4}


def make(stages=(4,), name="resnet18", **kwargs):
    torch.manual_seed(0)
    return Backbone(BackboneConfig(name=name, deform_stages=stages, kwargs=kwargs or SMALL))


def deformable(backbone):
    return [n for n, m in backbone.trunk.named_modules() if isinstance(m, DeformConv2d)]


def make_conv(stride, channels=3, seed=0):
    """A deformable convolution whose taps move by about one pixel."""
    torch.manual_seed(seed)
    conv = DeformConv2d(nn.Conv2d(channels, 5, 3, stride, 1, bias=False)).double()
    nn.init.normal_(conv.offset.weight, std=0.3)
    nn.init.normal_(conv.offset.bias)
    return conv


def naive(x, conv):
    """One tap of one cell after the other."""
    offset, stride = conv.offset(x), conv.stride[0]
    (count, _, height, width), padded = x.shape, F.pad(x, (2, 2, 2, 2))

    def pixel(image, y, x):
        inside = -2 <= y < height + 2 and -2 <= x < width + 2
        return padded[image, :, y + 2, x + 2] if inside else padded.new_zeros(padded.shape[1])

    out = x.new_zeros(count, len(conv.weight), *offset.shape[2:])
    for image, row, column in torch.ones(count, *offset.shape[2:]).nonzero().tolist():
        for tap in range(9):
            dy, dx = offset[image, 2 * tap : 2 * tap + 2, row, column].tolist()
            y, x = row * stride + tap // 3 - 1 + dy, column * stride + tap % 3 - 1 + dx
            top, left = int(y // 1), int(x // 1)
            value = sum(
                (1 - abs(y - j)) * (1 - abs(x - i)) * pixel(image, j, i)
                for j in (top, top + 1)
                for i in (left, left + 1)
            )
            out[image, :, row, column] += conv.weight[:, :, tap // 3, tap % 3] @ value
    return out


@pytest.mark.parametrize("stride", [1, 2])
@torch.no_grad()
def test_a_tap_reads_the_map_where_its_offset_points(stride):
    conv, x = make_conv(stride), torch.randn(2, 3, 5, 4, dtype=torch.float64)
    torch.testing.assert_close(conv(x), naive(x, conv), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_are_those_of_the_loss(stride):
    conv = make_conv(stride)
    x = torch.randn(1, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    inputs = (x, *conv.parameters())
    assert torch.autograd.gradcheck(lambda x, *_: conv(x), inputs, fast_mode=True)


@pytest.mark.parametrize("name", ["resnet18", "resnet26"])
@torch.no_grad()
def test_a_new_model_equals_the_plain_one_with_the_same_weights(name):
    plain, deform = make((), name).eval(), make((3, 4), name).eval()
    assert not deform.load_state_dict(plain.state_dict(), strict=False).unexpected_keys
    image = torch.randn(1, 3, 65, 97)
    torch.testing.assert_close(deform(image), plain(image))


def test_the_given_stages_are_deformable_with_their_own_offsets():
    backbone = make((2, 4))
    blocks = ["layer2.0", "layer4.0", "layer4.1"]
    assert deformable(backbone) == [f"{block}.conv2" for block in blocks]
    new = set(backbone.trunk.state_dict()) - set(make(()).trunk.state_dict())
    kinds = ("weight", "bias")
    assert new == {f"{block}.conv2.offset.{kind}" for block in blocks for kind in kinds}


def test_weights_of_the_plain_model_are_kept():
    plain = nn.Conv2d(3, 4, 3, padding=1)
    deform = DeformConv2d(plain)
    assert deform.weight is plain.weight
    assert deform.bias is plain.bias


def test_a_training_step_moves_the_taps():
    backbone = make((3, 4), **SMALL, zero_init_last=False).train()
    sum(x.square().sum() for x in backbone(torch.randn(2, 3, 64, 64))).backward()
    assert all(p.grad.any() for n, p in backbone.named_parameters() if ".offset." in n)


def test_stages_hold_the_offsets_of_their_blocks():
    backbone = make((3, 4))
    names = {id(p): name for name, p in backbone.body.named_parameters()}
    stages = [{names[id(p)] for p in stage} for stage in backbone.stages()]
    assert {name.split(".")[0] for name in stages[3]} == {"layer3"}
    assert {name.split(".")[0] for name in stages[4]} == {"layer4"}
    assert sum(map(len, stages)) == len(names)


@pytest.mark.parametrize("last", [False, True])
def test_gradients_through_a_norm_are_exact_for_maps_of_width_1(last):
    """PyTorch's batch norm on the CPU errs where map and gradient differ in memory format."""
    conv, norm = make_conv(1), nn.BatchNorm2d(5).double()
    x, weight = torch.randn(2, 3, 4, 1, dtype=torch.float64), torch.randn(2, 5, 4, 1).double()
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    (norm(conv(x)) * weight).sum().backward()
    got = [p.grad.clone() for p in conv.parameters()]
    conv.zero_grad()
    y = conv(x)
    mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, correction=0)
    ((y - mean) / (var + norm.eps).sqrt() * weight).sum().backward()
    for ours, parameter in zip(got, conv.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad)


def test_it_is_built_without_memory():
    with torch.device("meta"):
        backbone = make((4,), "resnet50c", in_chans=3)
    assert len(deformable(backbone)) == 3
    assert all(p.is_meta for p in backbone.parameters())
    maps = backbone(torch.empty(1, 3, 64, 96, device="meta"))
    assert [x.shape[1:] for x in maps] == [(512, 8, 12), (1024, 4, 6), (2048, 2, 3)]


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("convnext_atto", {"in_chans": 3}),  # no convolution of this name
        ("resnext50_32x4d", {"in_chans": 3}),  # with groups
        ("resnetv2_50x1_bit", {"in_chans": 3}),  # with standardized weights
        ("resnet18", {"output_stride": 16}),  # dilated, and not at stride 32
    ],
)
def test_backbones_without_such_blocks_are_refused(name, kwargs):
    with torch.device("meta"), pytest.raises(ConfigError, match=f"deform_stages.*4.*{name}"):
        make((4,), name, **kwargs)
