"""Recorded gradients are those of autograd, and nothing stays on the model."""

import torch

from graphprune.importance.base import Signal
from graphprune.observe import Observer
from graphprune.observe.gradients import GradientRecorder

NAMES = ["mlp.up.weight", "mlp.up.bias", "moe.up", "embed.weight", "offset", "unused"]


def direct(model, ids, name):
    parameter = model.get_parameter(name)
    parameter.requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(ids, labels=ids).loss, parameter)
    parameter.requires_grad_(False)
    return gradient


def test_the_sum_over_backward_calls(lm, ids):
    expected = {n: direct(lm, ids, n) for n in NAMES[:4]}
    recorder = GradientRecorder(lm, NAMES, sums=True, squares=False)
    recorder.open()
    for row in ids:
        (lm(row[None], labels=row[None]).loss / len(ids)).backward()
    for name, value in expected.items():
        torch.testing.assert_close(recorder.sum(name), value)
    recorder.close()


def test_buffers_and_parameters_out_of_reach_have_zero_gradient(lm, ids):
    recorder = GradientRecorder(lm, NAMES, sums=True, squares=True)
    recorder.open()
    lm(ids, labels=ids).loss.backward()
    for name, shape in (("offset", (6,)), ("unused", (8,))):
        assert torch.equal(recorder.sum(name), torch.zeros(shape, dtype=torch.float64))
        assert torch.equal(recorder.sum_of_squares(name), torch.zeros(shape, dtype=torch.float64))
    recorder.close()


def test_a_tied_parameter_counts_once(lm, ids):
    recorder = GradientRecorder(lm, ["embed.weight", "head.weight"], sums=True, squares=False)
    expected = direct(lm, ids, "embed.weight")
    recorder.open()
    lm(ids, labels=ids).loss.backward()
    torch.testing.assert_close(recorder.sum("head.weight"), expected)
    torch.testing.assert_close(recorder.sum("embed.weight"), expected)
    recorder.close()


def test_squares_are_the_mean_over_samples_of_squared_gradients(lm, graph, ids):
    expected = torch.stack([direct(lm, row[None], "mlp.up.weight") ** 2 for row in ids]).mean(0)
    with Observer(lm, graph, graph.groups, {Signal.SQUARED_GRADIENT}) as seen:
        for row in ids:
            (lm(row[None], labels=row[None]).loss / len(ids)).backward()
        torch.testing.assert_close(seen.squared_gradient("mlp.up.weight"), expected)


def test_nothing_is_left_on_parameters_that_were_frozen(lm, ids):
    stale = torch.ones(8, dtype=torch.float64)
    lm.mlp.up.bias.grad = stale
    recorder = GradientRecorder(lm, NAMES, sums=True, squares=True)
    recorder.open()
    lm(ids, labels=ids).loss.backward()
    assert all(p.grad is None for p in lm.parameters()), "not even while recording, or clipping would meet them"
    assert torch.equal(recorder.sum("mlp.up.bias"), direct(lm, ids, "mlp.up.bias"))
    recorder.close()
    assert lm.mlp.up.bias.grad is stale
    lm.mlp.up.bias.grad = None
    assert not any(p.requires_grad or p.grad is not None for p in lm.parameters())


def test_trainable_parameters_keep_their_gradient(lm, ids):
    expected = direct(lm, ids, "mlp.up.weight")
    weight = lm.mlp.up.weight.requires_grad_(True)
    recorder = GradientRecorder(lm, ["mlp.up.weight"], sums=True, squares=False)
    recorder.open()
    lm(ids, labels=ids).loss.backward()
    weight.grad.mul_(100)  # clipping
    torch.testing.assert_close(recorder.sum("mlp.up.weight"), expected)
    recorder.close()
    torch.testing.assert_close(weight.grad, 100 * expected)
    assert weight.requires_grad
    assert not weight._backward_hooks


def test_half_precision_sums_are_kept_in_float32(ids):
    layer = torch.nn.Linear(4, 4, bias=False, dtype=torch.bfloat16).requires_grad_(False)
    recorder = GradientRecorder(layer, ["weight"], sums=True, squares=False)
    recorder.open()
    x = torch.ones(1, 4, dtype=torch.bfloat16)
    layer(x).sum().backward()
    assert recorder.sum("weight").dtype == torch.bfloat16, "one backward costs no more memory than it must"
    for _ in range(300):
        layer(x).sum().backward()
    assert torch.equal(recorder.sum("weight"), torch.full((4, 4), 301.0)), "bfloat16 stops counting at 256"
    recorder.close()
