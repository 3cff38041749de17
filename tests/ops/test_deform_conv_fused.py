import os
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from fused_cases import pyramid, reference, with_gradients
from torch import nn

from sepc_zoo.ops import deform_conv
from sepc_zoo.ops.deform_conv import deform_conv2d

CASES = pytest.mark.parametrize(("stride", "padding"), [(1, 1), (2, 1), (1, 0)])
SIZES = [4, 5, 4, 5, 2, 3, 2, 3]  # of two levels, and of their results


def arguments(dtype=torch.float64):
    """Of the operator, small enough for numerical derivatives."""
    generator = torch.Generator().manual_seed(0)

    def some(*shape):
        values = torch.randn(shape, generator=generator, dtype=torch.float64)
        return (0.4 * values).to(dtype).requires_grad_()

    return some(26, 2), some(26, 18), some(9, 2, 3), some(3)


class Layer(nn.Module):
    def forward(self, rows, offset, kernel, bias):
        return deform_conv.fused_op(rows, offset, kernel, bias, SIZES, 1, 1, 1).relu()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_the_kernel_computes_the_same_in_tritons_interpreter():
    tests = Path(__file__).with_name("interpreted_deform_conv.py")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("name", ["_forward", "_input_gradient", "_kernel_gradient"])
def test_a_kernel_compiles_for_a_gpu_that_is_not_here(name):
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sepc_zoo.ops import deform_conv_triton

    tuner = getattr(deform_conv_triton, name)
    config, types = tuner.configs[0], {"offset_ptr": "*fp32"}
    types |= {f"level{i}": "i64" for i in range(deform_conv_triton.MAX_LEVELS)}
    constants = {"STRIDE": 1, "PADDING": 1, "MAGNITUDE": 6} | config.kwargs
    for argument in tuner.fn.arg_names:
        kind = "*fp32" if argument.startswith("of_") else "*bf16"
        types.setdefault(argument, kind if argument.endswith("_ptr") else "i32")
    types |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(tuner.fn, {a: types[a] for a in tuner.fn.arg_names}, constants)
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    assert compile_kernel(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]


def test_the_operator_tells_pytorch_all_it_must_know():
    torch.library.opcheck(deform_conv.fused_op, (*arguments(torch.float32), SIZES, 1, 1, 1))


def test_the_gradients_of_the_operator_are_those_of_its_function():
    def call(*inputs):
        return deform_conv.fused_op(*inputs, SIZES, 1, 1, 1)

    assert torch.autograd.gradcheck(call, arguments())


def test_a_graph_is_compiled_and_exported_with_the_operator_in_it():
    inputs, layer = arguments(torch.float32), Layer()
    expected = layer(*inputs)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(*inputs), expected)
    exported = torch.export.export(layer, inputs)
    assert "sepc_zoo.deform_conv" in str(exported.graph)
    torch.testing.assert_close(exported.module()(*inputs), expected)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@CASES
def test_the_kernel_equals_the_reference_on_a_gpu(stride, padding, dtype):
    maps, offsets, weight, bias = pyramid(stride, padding)
    maps, weight, bias = [x.to(dtype) for x in maps], weight.to(dtype), bias.to(dtype)
    exact = with_gradients(reference, maps, offsets, weight, bias, stride, padding)
    maps, offsets = [x.cuda() for x in maps], [x.cuda() for x in offsets]
    on_gpu = maps, offsets, weight.cuda(), bias.cuda()
    ours = with_gradients(partial(deform_conv2d, fused=True), *on_gpu, stride, padding)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    for y, z in zip(ours, exact, strict=True):
        assert (y.cpu().double() - z.double()).abs().max() < tolerance * z.abs().max().clamp(min=1)
