"""What a spec will make of a model, against what it really makes of it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from graphprune import ranking
from graphprune.engine.prepare import positions
from graphprune.errors import SpecError
from graphprune.export.fit import fit
from graphprune.forecast import check_length, preview
from graphprune.reshape import reshape
from graphprune.reshape.history import history_of
from graphprune.schema import PruneSpec
from graphprune.trace import trace


def decoder(device):
    with torch.device(device):
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=48,
                num_hidden_layers=3,
                num_attention_heads=8,
                num_key_value_heads=4,
                head_dim=6,
                intermediate_size=40,
                vocab_size=97,
            )
        )


def spec(*targets, **parts):
    return PruneSpec.model_validate({"targets": list(targets), **parts})


@pytest.mark.parametrize(
    ("target", "tier"),
    [
        ({"role": "mlp.channel", "ratio": 0.5}, "hf"),
        ({"role": "mlp.channel", "keep": 12, "multiple_of": 8}, "hf"),
        ({"role": "attention.group", "ratio": 0.5}, "hf"),
        ({"role": "mlp.channel", "ratio": 0.5, "layers": 0}, "hf-remote-code"),
    ],
)
def test_the_forecast_comes_true(target, tier):
    model, wanted = decoder("cpu"), spec(target)
    graph = trace(model)
    fitted = fit(wanted, graph, decoder("meta"))
    assert fitted.tier == tier
    generator = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(g.size, generator=generator) for g in graph}
    plan = ranking.plan(graph, wanted, scores)
    history = history_of(reshape(model, plan, graph))
    assert history.stock == (tier == "hf")
    assert history.why_not in fitted.why_not
    kept = sum(plan.sizes_after()[g.name] for g in graph.select(role=target["role"], layers=target.get("layers")))
    assert preview(wanted, graph, fitted)[0].endswith(f"-> {kept} units")


def test_the_preview_knows_what_the_export_asks_for():
    wanted = spec({"role": "mlp.channel", "ratio": 0.5}, export={"multiple_of": 16})
    graph, model = trace(decoder("meta")), decoder("meta")
    assert preview(wanted, graph, fit(wanted, graph, model)) == [
        "targets[0]: mlp.channel, 3 groups, layers 0-2: 120 -> 48 units"
    ]


def test_the_preview_has_one_line_per_target():
    wanted = spec({"role": "mlp.channel", "ratio": 0.5}, {"role": "attention.group", "layers": "1:", "count": 1})
    assert preview(wanted, trace(decoder("meta"))) == [
        "targets[0]: mlp.channel, 3 groups, layers 0-2: 120 -> 60 units",
        "targets[1]: attention.group, 2 groups, layers 1-2: 8 -> 6 units",
    ]


def test_sequences_must_fit_the_model_where_any_are_read():
    model = decoder("meta")
    model.config.max_position_embeddings = 100
    assert positions(model) == 100
    target = {"role": "mlp.channel", "ratio": 0.5}
    check_length(model, spec(target, training={"sequence_length": 100}))
    check_length(model, spec(target, criterion="magnitude", training={"sequence_length": 101, "mode": "none"}))
    with pytest.raises(SpecError, match="expected at most 100, the positions this model knows, got 101"):
        check_length(model, spec(target, training={"sequence_length": 101}))
