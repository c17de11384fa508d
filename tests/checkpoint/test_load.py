"""What stock loading code does around a cut model must not meet its sizes."""

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaPreTrainedModel

import graphprune as gp
from tests.decoders import tiny


def test_stock_code_that_computes_initial_weights_by_the_uncut_config_is_not_asked(tmp_path, monkeypatch):
    """Some classes fill in by config.intermediate_size what a cut module no longer has."""
    config = tiny("llama").config
    build, initialise = LlamaMLP.__init__, LlamaPreTrainedModel._init_weights

    def with_gains(self, config):
        build(self, config)
        self.gains = torch.nn.Parameter(torch.ones(config.intermediate_size))

    def forward(self, x):
        return self.down_proj(self.gains * self.act_fn(self.gate_proj(x)) * self.up_proj(x))

    def by_the_config(self, module):
        if isinstance(module, LlamaMLP):
            torch.ones(self.config.intermediate_size).reshape(module.gains.shape)
        initialise(self, module)

    monkeypatch.setattr(LlamaMLP, "__init__", with_gains)
    monkeypatch.setattr(LlamaMLP, "forward", forward)
    monkeypatch.setattr(LlamaPreTrainedModel, "_init_weights", by_the_config)
    model = LlamaForCausalLM(config).eval()
    graph = gp.trace(model)
    group = next(iter(graph.select(role="mlp.channel", layers=0)))
    small = gp.reshape(model, gp.PrunePlan.remove(graph, {group.name: [0, 3]}), graph)
    gp.save(small, tmp_path / "out")
    ids = torch.arange(8)[None]
    assert torch.equal(gp.load(tmp_path / "out")(ids).logits, small(ids).logits)
