"""Rows of weights that bitsandbytes has quantised."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from graphprune.errors import GraphPruneError
from graphprune.packed import Packed, keep_trainable, packed, packed_in, packed_kinds
from tests.quantised import bitsandbytes, linear

#: Rows that begin and end inside of quantisation blocks, a last block that is not full, several blocks of scales.
SHAPES = [(8, 64), (13, 40), (7, 33), (1, 2), (257, 130), (40, 700)]


def dequantised(layer):
    """What bitsandbytes itself makes of the whole weight."""
    if hasattr(layer.weight, "quant_state"):
        return bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
    return bitsandbytes.functional.int8_vectorwise_dequant(layer.weight.data, scales)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("kind", ["int8", "nf4", "nf4-double"])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_those_of_bitsandbytes(shape, kind, transposed):
    layer = linear(kind, torch.randn(shape), transposed=transposed)
    expected = dequantised(layer).reshape(shape)
    expected = expected.t() if transposed else expected
    found = packed_in(layer)
    assert found.shape == expected.shape and found.kind == kind.removesuffix("-double")
    assert torch.equal(found.whole(), expected)
    rows = random.Random(0)
    for _ in range(5):
        start = rows.randrange(len(expected))
        stop = rows.randrange(start, len(expected)) + 1
        assert torch.equal(found.rows(start, stop), expected[start:stop])
    assert found.rows(0, 10**9).shape == expected.shape


@pytest.mark.parametrize(
    "options",
    [
        {"quant_type": "fp4"},
        {"blocksize": 128},
        {"quant_storage": torch.bfloat16},
        {"quant_storage": torch.float32, "quant_type": "fp4"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_of_every_4_bit_format(options, dtype):
    layer = linear("nf4-double", torch.randn(24, 200, dtype=dtype), **options)
    expected = dequantised(layer)
    rows = packed_in(layer).rows(5, 19)
    assert rows.dtype == dtype and torch.equal(rows, expected[5:19])


def test_rows_are_right_where_the_kernel_of_bitsandbytes_is_not():
    """On CPUs with AVX-512 it takes wrong scales where rows do not hold whole blocks: 96 = 1.5 · 64."""
    weight = torch.randn(64, 96)
    layer = linear("nf4", weight)
    state, codes = layer.weight.quant_state, layer.weight.data.reshape(-1)
    order = torch.stack([codes >> 4, codes & 15], 1).reshape(-1).long()
    expected = (state.code[order] * state.absmax.repeat_interleave(64)).reshape(64, 96)
    assert torch.equal(packed_in(layer).rows(3, 50), expected[3:50])


def test_8_bit_codes_are_found_after_a_forward_has_moved_them():
    layer = linear("int8", torch.randn(16, 24))
    before = packed_in(layer).rows(3, 9)
    layer(torch.randn(2, 24))
    assert layer.weight.SCB is None and layer.state.SCB is not None
    assert torch.equal(packed_in(layer).rows(3, 9), before)


@pytest.mark.parametrize("kind", ["int8", "nf4-double"])
def test_no_more_than_the_rows_is_dequantised(kind):
    """Counted in every tensor that the operations make."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            views = any(
                t.untyped_storage().data_ptr() == out.untyped_storage().data_ptr()
                for t in args
                if isinstance(t, torch.Tensor)
            )
            self.size = self.size if views else max(self.size, out.numel())
            return out

    layer = linear(kind, torch.randn(256, 192))
    found = packed_in(layer)
    with Largest() as largest:
        found.rows(32, 48)
    assert 16 * 192 <= largest.size <= 18 * 192


def test_ordinary_tensors_are_not_packed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.quantised, self.plain = linear("nf4", torch.randn(64, 64)), nn.Linear(4, 4)
            self.register_buffer("table", torch.arange(3))

    net = Net()
    assert isinstance(packed(net, "quantised.weight"), Packed)
    assert packed(net, "quantised.bias") is packed(net, "plain.weight") is packed(net, "table") is None
    assert packed_kinds(net) == ("nf4",) and packed_kinds(net.plain) == ()


@pytest.mark.skipif(not bitsandbytes.functional.has_avx512bf16(), reason="bitsandbytes repacks on no other CPU")
@pytest.mark.parametrize("kind", ["nf4", "nf4-double"])
def test_layers_that_were_repacked_for_inference_can_be_trained_again(kind):
    layer = linear(kind, torch.randn(64, 128)).eval()
    before = packed_in(layer).whole()
    with torch.no_grad():
        layer(torch.randn(2, 128))
    with pytest.raises(GraphPruneError, match=r"repacked by bitsandbytes .* Call graphprune.packed.keep_trainable"):
        packed_in(layer).rows(0, 2)
    keep_trainable(layer)
    assert torch.allclose(packed_in(layer).whole(), before, rtol=2e-2, atol=1e-3)
    for mode in (False, True):
        x = torch.randn(2, 128, requires_grad=True)
        out = layer.train(mode)(x)
        out.sum().backward()
        assert torch.allclose(x.grad, packed_in(layer).whole().sum(0).expand(2, -1), atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["int8", "nf4", "nf4-double"])
@pytest.mark.parametrize("shape", [*SHAPES, (64, 96)])
def test_rows_on_an_accelerator(shape, kind):
    if not torch.accelerator.is_available():
        pytest.skip("needs an accelerator")
    layer = linear(kind, torch.randn(shape)).to(torch.accelerator.current_accelerator())
    expected = dequantised(layer).reshape(shape)
    last = shape[0] - shape[0] // 3
    assert torch.equal(packed_in(layer).rows(shape[0] // 4, last), expected[shape[0] // 4 : last])
