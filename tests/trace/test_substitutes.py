"""Models that cannot be traced as they are: made-up values, unpacked twins, and nothing left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from graphprune.errors import ReshapeError, TraceError
from graphprune.masking import masked
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.trace import substitutes, trace
from tests.decoders import config, tiny, tokens


class Careful(nn.Module):
    """A network that looks at its mask before it starts, and again in every block."""

    def __init__(self, reads=lambda mask: mask.all().item()):
        super().__init__()
        self.reads = reads
        self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, 20)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6)) for _ in range(2))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, input_ids):
        mask = input_ids >= 0
        self.seen += 1
        x = self.embedding(input_ids)
        for block in self.blocks:
            x = x + block(x) if self.reads(mask) else x
        return self.head(x)


READS = {
    "item": lambda mask: mask.all().item(),
    "tolist": lambda mask: mask.tolist()[0][0],
    "bool": lambda mask: bool(mask.all()),
    "numpy": lambda mask: mask.numpy().all(),
}


@pytest.mark.parametrize("way", READS)
def test_a_forward_that_reads_values_is_traced_on_values(way):
    model = Careful(READS[way])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    graph = trace(model)
    assert [(g.layer, g.size, g.frozen) for g in graph.select(role="mlp.channel")] == [(0, 10, None), (1, 10, None)]
    assert any(note.startswith("traced on tensors with values, because fake ones failed (") for note in graph.notes)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # its counter, too
    plan = PrunePlan.remove(graph, {"blocks.1/mlp.channel": [2, 7]})
    ids = tokens(vocab=20)
    with masked(model, plan, graph):
        expected = model(ids)
    assert torch.allclose(reshape(model, plan, graph)(ids), expected, atol=1e-6)


def test_a_small_model_without_values_gets_some():
    with torch.device("meta"):
        model = Careful()
    assert trace(model).groups == trace(Careful()).groups
    assert all(t.is_meta for t in model.state_dict().values())


def test_values_are_made_without_a_trace_in_the_random_state():
    with torch.device("meta"):
        model = Careful()
    torch.manual_seed(3)
    trace(model)
    after = torch.rand(())
    torch.manual_seed(3)
    assert after == torch.rand(())


def test_a_large_model_without_values_is_told_to_load_them(monkeypatch):
    monkeypatch.setattr(substitutes, "MOST_MADE_UP", 100)
    with torch.device("meta"):
        model = Careful()
    with pytest.raises(TraceError, match=r"too many to make them up. Load it with its weights \(from_pretrained\)"):
        trace(model)
    assert trace(Careful()).groups  # with values of its own it is traced, however large


def test_an_instance_of_the_same_config_is_built_on_the_cpu():
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config("llama"), dtype=torch.bfloat16)
    made = substitutes.with_values(model)
    assert type(made) is type(model) and made.dtype == torch.bfloat16
    assert made.config is not model.config
    rotary = made.get_submodule("model.rotary_emb").inv_freq
    assert torch.equal(rotary, tiny("llama").model.rotary_emb.inv_freq)  # as the class computes it, not made up


class Forgetful(nn.Module):
    """Keeps what it computed: a table in an attribute, a buffer, a count."""

    def __init__(self):
        super().__init__()
        self.up, self.down, self.calls, self.cache = nn.Linear(6, 10), nn.Linear(10, 6), 0, {}

    def forward(self, x):
        self.calls += 1
        self.cache[self.calls] = x
        if not hasattr(self, "table"):
            self.table = torch.arange(6.0)
            self.register_buffer("positions", torch.arange(3), persistent=False)
            self.up.register_forward_hook(lambda *_: None)
        return self.down(torch.relu(self.up(x + self.table)))


def test_a_forward_leaves_nothing_in_its_modules():
    model = Forgetful()
    trace(model, example_inputs=(torch.ones(2, 6),))
    assert model.calls == 0 and not hasattr(model, "table") and not hasattr(model, "positions")
    assert model.cache == {} and not model.up._forward_hooks
    assert model(torch.ones(2, 6)).isfinite().all() and model.calls == 1


def test_modules_keep_their_own_mode():
    model = tiny("llama").train()
    model.model.layers[1].eval()
    trace(model)
    assert [m.training for m in model.model.layers] == [True, False, True]


@pytest.fixture(params=["load_in_8bit", "load_in_4bit"])
def quantised(request, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")
    from transformers import BitsAndBytesConfig

    tiny("llama").save_pretrained(tmp_path)
    return AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(**{request.param: True})
    )


def test_a_quantised_model_is_traced_through_its_twin(quantised):
    assert any(not p.is_floating_point() for p in quantised.parameters())
    graph = trace(quantised)
    assert graph == trace(tiny("llama"))
    plan = PrunePlan.remove(graph, {"model.layers.0.mlp/mlp.channel": [1]})
    if getattr(quantised, "is_loaded_in_4bit", False):
        with pytest.raises(ReshapeError, match=r"is quantised .* cannot be cut exactly"):
            reshape(quantised, plan, graph)


class Packed(nn.Module):
    """A layer whose weights somebody packed into integers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8, 6, dtype=torch.uint8), requires_grad=False)
        self.is_quantized = True

    def forward(self, x):
        return x @ self.weight.to(x.dtype)


def test_packed_weights_without_a_config_are_refused():
    with pytest.raises(TraceError, match=r"the weights of Packed are quantised.* Trace it before it is quantised"):
        trace(Packed(), example_inputs=(torch.ones(2, 8),))


def test_a_twin_that_is_another_model_is_refused():
    model = tiny("llama")
    model.hf_quantizer = object()
    assert trace(model) == trace(tiny("llama"))
    model.config.intermediate_size = 44
    with pytest.raises(TraceError, match=r"'model.layers.0.mlp.gate_proj.weight' should have shape \(44, 48\), has"):
        trace(model)
