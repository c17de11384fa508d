"""Input norms against norms of what the layers were given."""

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from graphprune.errors import CriterionError
from graphprune.importance.base import Signal
from graphprune.observe import Observer
from graphprune.observe.inputs import InputRecorder


def inputs_of(model, layer, *batches, **kwargs):
    caught = []
    handle = layer.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    for batch in batches:
        model(batch, **kwargs)
    handle.remove()
    return torch.cat([c.reshape(-1, c.shape[-1]) for c in caught])


def test_norms_over_all_tokens_of_all_batches(lm, graph, ids):
    expected = inputs_of(lm, lm.mlp.down, ids, ids[:, :4]).norm(dim=0)
    with torch.no_grad(), Observer(lm, graph, graph.groups, {Signal.INPUT_NORM}) as seen:
        lm(ids)
        lm(ids[:, :4])
        torch.testing.assert_close(seen.input_norm("mlp.down.weight"), expected)
        assert seen.input_norm("mlp.down.weight").shape == (8,)


def test_padding_does_not_count(lm, graph, ids):
    mask = torch.ones_like(ids)
    mask[0, :4] = mask[2, 7:] = 0
    every = inputs_of(lm, lm.mlp.down, ids)
    expected = every[mask.reshape(-1).bool()].norm(dim=0)
    with torch.no_grad(), Observer(lm, graph, graph.groups, {Signal.INPUT_NORM}) as seen:
        lm(ids, attention_mask=mask)
        torch.testing.assert_close(seen.input_norm("mlp.down.weight"), expected)
        seen.reset()
        lm(ids)
        torch.testing.assert_close(seen.input_norm("mlp.down.weight"), every.norm(dim=0))


def test_what_is_no_linear_layer_has_no_norm(lm, graph, ids):
    with torch.no_grad(), Observer(lm, graph, graph.groups, {Signal.INPUT_NORM}) as seen:
        lm(ids)
        for name in ("mlp.up.bias", "mlp.scale", "moe.up", "moe.router.weight", "embed.weight", "offset"):
            assert seen.input_norm(name) is None, name


def test_evaluations_between_training_steps_do_not_count(lm, graph, ids):
    with Observer(lm, graph, graph.groups, {Signal.INPUT_NORM}) as seen:
        with torch.no_grad():
            lm(ids)
        with pytest.raises(CriterionError, match="'input_norm' was asked for before any batch was run"):
            seen.input_norm("mlp.down.weight")
        lm(ids)
        once = seen.input_norm("mlp.down.weight")
    torch.testing.assert_close(once, inputs_of(lm, lm.mlp.down, ids).norm(dim=0))


@pytest.mark.parametrize("keyword", [False, True])
def test_transposed_layers_half_precision_and_keywords(keyword):
    layer = torch.nn.Sequential(Conv1D(5, 3)).to(torch.float16)
    recorder = InputRecorder(layer, ["0.weight"])
    recorder.open()
    x = torch.full((2, 4, 3), 300.0, dtype=torch.float16)
    layer[0](x=x) if keyword else layer(x)
    norm = recorder.norm("0.weight")
    assert norm.dtype == torch.float32
    torch.testing.assert_close(norm, torch.full((3,), 300 * 8**0.5)), "the squares exceed 65504"
    recorder.close()


@pytest.mark.parametrize(("layer", "size"), [(torch.nn.Linear(3, 5), 3), (Conv1D(5, 3), 3)])
def test_a_layer_that_no_token_reached_has_zero_norm(layer, size):
    recorder = InputRecorder(torch.nn.Sequential(layer), ["0.weight"])
    assert torch.equal(recorder.norm("0.weight"), torch.zeros(size))


def test_recomputed_activations_count_once():
    block = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 3))
    model = torch.nn.Sequential(block)
    recorder = InputRecorder(model, ["0.0.weight", "0.1.weight"])
    recorder.open()
    x = torch.randn(4, 3)
    torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False).sum().backward()
    torch.testing.assert_close(recorder.norm("0.0.weight"), x.norm(dim=0))
    torch.testing.assert_close(recorder.norm("0.1.weight"), block[0](x).detach().norm(dim=0))
    recorder.close()
