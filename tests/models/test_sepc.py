import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sepc_zoo.config import PlainNeck, SEPCNeck
from sepc_zoo.models import necks
from sepc_zoo.models.necks import build_neck
from sepc_zoo.models.necks.sepc import (
    SEPC,
    Branch,
    IntegratedBatchNorm,
    LevelConv2d,
    PyramidConv,
)

SEPC_CONFIG = SEPCNeck(norm=True, head_deform=True, pconv_deform=True)
SIZES = ((24, 33), (12, 17), (6, 9), (3, 5), (2, 3))


@pytest.fixture
def pyramid():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 8, h, w, generator=generator) for h, w in SIZES]


def grown(module):
    """The module with random kernels for the neighbours in place of the zeros at the start."""
    for part in module.modules():
        if isinstance(part, PyramidConv):
            nn.init.normal_(part.from_finer.weight, std=0.1)
            nn.init.normal_(part.from_coarser.weight, std=0.1)
    return module


def bend(module):
    """Random offsets in place of the zeros at the start."""
    for part in module.modules():
        if isinstance(part, LevelConv2d) and part.offset is not None:
            nn.init.normal_(part.offset.weight, std=0.3)
            nn.init.normal_(part.offset.bias)
    return module


def assert_close(ours, theirs):
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_zero_offsets_make_a_plain_pyramid_conv(pyramid):
    bent = grown(PyramidConv(8, SEPCNeck(pconv_deform=True)))
    plain = PyramidConv(8, SEPCNeck())
    plain.load_state_dict({k: v for k, v in bent.state_dict().items() if ".offset." not in k})
    assert_close(bent(pyramid), plain(pyramid))


def test_a_level_hears_itself_and_its_two_neighbours(pyramid):
    pconv = grown(PyramidConv(8, SEPCNeck()))
    nn.init.normal_(pconv.from_same.bias)
    for i, y in enumerate(pconv(pyramid)):
        expected = F.conv2d(pyramid[i], pconv.from_same.weight, pconv.from_same.bias, padding=1)
        if i > 0:
            finer = pconv.from_finer
            expected = expected + F.conv2d(pyramid[i - 1], finer.weight, finer.bias, 2, 1)
        if i < 4:
            coarser = pconv.from_coarser
            x = F.conv2d(pyramid[i + 1], coarser.weight, coarser.bias, padding=1)
            size = y.shape[-2:]
            expected = expected + F.interpolate(x, size, mode="bilinear", align_corners=True)
        torch.testing.assert_close(y, expected.relu())


def test_levels_two_apart_do_not_hear_each_other(pyramid):
    pconv = grown(PyramidConv(8, SEPCNeck(pconv_deform=True)))
    changed = [*pyramid[:4], pyramid[4] + 1]
    before, after = pconv(pyramid), pconv(changed)
    assert [torch.equal(x, y) for x, y in zip(before, after, strict=True)] == [True] * 3 + [
        False
    ] * 2


def test_the_finest_level_does_not_deform(pyramid):
    torch.manual_seed(0)
    pconv = grown(PyramidConv(8, SEPCNeck(pconv_deform=True)))
    before = pconv(pyramid)
    after = bend(pconv)(pyramid)
    assert [torch.equal(x, y) for x, y in zip(before, after, strict=True)] == [True] + [False] * 4


@pytest.mark.parametrize("padding", [0, 1])
def test_the_finest_level_of_a_branch_does_not_deform(pyramid, padding):
    torch.manual_seed(0)
    branch = Branch(8, SEPCNeck(head_deform=True, padding=padding))
    pyramid = [x.repeat(1, 1, 2, 2) for x in pyramid]
    before = branch(pyramid)
    after = bend(branch)(pyramid)
    assert [torch.equal(x, y) for x, y in zip(before, after, strict=True)] == [True] + [False] * 4


def test_the_neck_keeps_the_sizes_and_a_branch_without_padding_cuts_two(pyramid):
    assert [x.shape for x in SEPC(8, SEPC_CONFIG)(pyramid)[0]] == [x.shape for x in pyramid]
    pyramid = [torch.randn(1, 8, h, w) for h, w in ((33, 41), (17, 21), (9, 11), (5, 6), (3, 3))]
    bare = SEPC(8, SEPCNeck(padding=0))
    for branch in bare(pyramid):
        for x, y in zip(branch, pyramid, strict=True):
            assert x.shape[-2:] == (y.shape[-2] - 2, y.shape[-1] - 2)


def test_without_a_config_the_neck_hands_the_pyramid_on(pyramid):
    neck = build_neck(8, PlainNeck())
    assert isinstance(neck, necks.PlainNeck)
    assert not list(neck.parameters())
    assert all(x is y for branch in neck(pyramid) for x, y in zip(branch, pyramid, strict=True))


@pytest.mark.parametrize(
    ("config", "norms", "bent"),
    [
        (SEPCNeck(), 0, 0),
        (SEPCNeck(norm=True), 6, 0),
        (SEPCNeck(norm=True, head_deform=True), 6, 2),
        (SEPC_CONFIG, 6, 14),
    ],
    ids=["pconv", "ibn_pconv", "sepc_lite", "sepc"],
)
def test_variants_differ_in_norms_and_deformation_only(config, norms, bent):
    parts = list(SEPC(8, config).modules())
    convolutions = [m for m in parts if isinstance(m, LevelConv2d)]
    assert len(convolutions) == 4 * 3 + 2
    assert sum(isinstance(m, nn.BatchNorm2d) for m in parts) == norms
    assert sum(m.offset is not None for m in convolutions) == bent


def test_integrated_norm_in_training_is_a_norm_over_the_concatenation(pyramid):
    integrated, plain = IntegratedBatchNorm(8).train(), nn.BatchNorm1d(8).train()
    joined = plain(torch.cat([x.flatten(2) for x in pyramid], dim=2))
    ours = torch.cat([x.flatten(2) for x in integrated(pyramid)], dim=2)
    torch.testing.assert_close(ours, joined)
    torch.testing.assert_close(integrated.norm.running_mean, plain.running_mean)
    torch.testing.assert_close(integrated.norm.running_var, plain.running_var)
    assert integrated.norm.num_batches_tracked == 1


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_of_an_integrated_norm_is_that_of_a_norm_over_the_concatenation(
    pyramid, memory_format
):
    integrated, plain = IntegratedBatchNorm(8).train(), nn.BatchNorm1d(8).train()
    maps = [x.contiguous(memory_format=memory_format).requires_grad_() for x in pyramid]
    gradients = [torch.randn_like(x, memory_format=memory_format) for x in pyramid]
    ours = torch.autograd.grad(integrated(maps), [*maps, integrated.norm.weight], gradients)
    joined = plain(torch.cat([x.flatten(2) for x in maps], dim=2))
    gradient = torch.cat([x.flatten(2) for x in gradients], dim=2)
    theirs = torch.autograd.grad(joined, [*maps, plain.weight], gradient.contiguous())
    assert_close(ours, theirs)


def test_integrated_norm_keeps_the_sizes_of_the_levels(pyramid):
    for mode in (True, False):
        out = IntegratedBatchNorm(8).train(mode)(pyramid)
        assert [x.shape for x in out] == [x.shape for x in pyramid]


def test_integrated_norm_in_eval_is_the_norm_of_each_level(pyramid):
    integrated = IntegratedBatchNorm(8)
    integrated.train()(pyramid)
    integrated.eval()
    for x, y in zip(pyramid, integrated(pyramid), strict=True):
        torch.testing.assert_close(y, integrated.norm(x))
        torch.testing.assert_close(y, integrated([x])[0])


def test_sync_batch_norm_replaces_the_inner_norm():
    neck = nn.SyncBatchNorm.convert_sync_batchnorm(SEPC(8, SEPC_CONFIG))
    integrated = [m for m in neck.modules() if isinstance(m, IntegratedBatchNorm)]
    assert len(integrated) == 6
    assert all(isinstance(m.norm, nn.SyncBatchNorm) for m in integrated)


def test_sync_batch_norm_keeps_the_state(pyramid):
    neck = SEPC(8, SEPC_CONFIG)
    neck.train()(pyramid)
    state = {key: value.clone() for key, value in neck.state_dict().items()}
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(neck).state_dict()
    assert list(converted) == list(state)
    assert all(torch.equal(converted[key], state[key]) for key in state)


@pytest.mark.parametrize("config", [SEPCNeck(), SEPC_CONFIG])
def test_a_new_pyramid_conv_passes_each_level_on_without_its_neighbours(config, pyramid):
    pconv = PyramidConv(8, config).eval()
    before = pconv(pyramid)
    for x, y in zip(pyramid, before, strict=True):
        assert torch.corrcoef(torch.stack([x.relu().flatten(), y.flatten()]))[0, 1] > 0.8
    after = pconv([torch.zeros_like(pyramid[0]), *pyramid[1:]])
    assert_close(after[1:], before[1:])


def test_the_gain_of_a_new_neck_does_not_depend_on_its_channels():
    torch.manual_seed(0)
    gains = []
    for channels in (16, 64, 256):
        wide = [torch.randn(1, channels, h, w).relu() for h, w in SIZES]
        out = SEPC(channels, SEPCNeck())(wide)[0]
        gains.append((out[2].std() / wide[2].std()).item())
    assert max(gains) < 2 * min(gains)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)]
)
def test_a_gpu_computes_what_float64_does(dtype, tolerance, fused, pyramid, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    neck = bend(grown(SEPC(8, SEPC_CONFIG))).eval()
    exact = copy.deepcopy(neck).double()([x.double() for x in pyramid])
    for part in neck.modules():
        if isinstance(part, LevelConv2d):
            part.fused = fused
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        found = neck.cuda()([x.cuda() for x in pyramid])
    for ours, theirs in zip(found[0] + found[1], exact[0] + exact[1], strict=True):
        assert (ours.cpu().double() - theirs).abs().max() < tolerance * theirs.abs().max()


@pytest.mark.parametrize("asked", ["0", "1"])
def test_a_variable_asks_for_the_fused_kernel(asked, monkeypatch):
    monkeypatch.setenv("SEPC_ZOO_FUSED", asked)
    assert LevelConv2d(8, deform=True).fused == (asked == "1")
