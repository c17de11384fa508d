"""The groups shipped in specs/architectures: the law holds for them on the real modules, from Python and the shell."""

import copy

import pytest
import torch
import transformers as tf
from typer.testing import CliRunner

import graphprune as gp
from graphprune.cli import app
from graphprune.declare import trace_with
from graphprune.declared import shipped
from tests.decoders import COMMON, tokens

TINY = {
    "dbrx": (
        tf.DbrxConfig,
        {
            "d_model": 48,
            "n_heads": 8,
            "n_layers": 3,
            "max_seq_len": 64,
            "attn_config": {"kv_n_heads": 4, "clip_qkv": 8, "rope_theta": 1e4},
            "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 5, "moe_top_k": 2, "hidden_size": 48},
        },
    ),
    "longcat_flash": (
        tf.LongcatFlashConfig,
        {
            "hidden_size": 48,
            "num_layers": 2,
            "num_attention_heads": 8,
            "ffn_hidden_size": 56,
            "expert_ffn_hidden_size": 20,
            "n_routed_experts": 6,
            "zero_expert_num": 3,
            "moe_topk": 2,
            "q_lora_rank": 20,
            "kv_lora_rank": 28,
            "qk_nope_head_dim": 6,
            "qk_rope_head_dim": 4,
            "v_head_dim": 14,
            "head_dim": 4,
        },
    ),
}


def tiny(name):
    """A tiny decoder with random parameters, in evaluation mode."""
    kind, sizes = TINY[name]
    torch.manual_seed(0)
    model = tf.AutoModelForCausalLM.from_config(kind(**{**COMMON, **sizes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def spec(name, role="moe.expert", **target):
    return gp.load_spec(
        {
            "targets": [{"role": role, **(target or {"count": 1})}],
            "groups": f"architecture:{name}",
            "criterion": "magnitude",
            "training": {"mode": "none"},
        }
    )


def test_every_shipped_architecture_is_tried_here():
    assert set(shipped()) == set(TINY)


@pytest.mark.parametrize("name", TINY)
def test_masked_equals_reshaped(name):
    model = tiny(name)
    graph = trace_with(model, spec(name))
    declared = [g for g in graph.select() if g.declared]
    assert "moe.expert" in {g.role for g in declared}
    assert gp.trace(model).select(role="moe.expert", frozen=None) and not gp.trace(model).select(role="moe.expert")
    for role in sorted({g.role for g in declared}):
        for count in (1, 3):
            removed = {g.name: range(count) for g in declared if g.role == role and g.size - count >= g.minimum}
            plan = gp.PrunePlan.remove(graph, removed)
            with torch.no_grad(), gp.masked(model, plan, graph):
                masked = model(tokens()).logits
            small = gp.reshape(copy.deepcopy(model), plan, graph)
            with torch.no_grad():
                apart, effect = small(tokens()).logits - masked, model(tokens()).logits - masked
            assert apart.abs().max() < 1e-5 * masked.abs().max()
            assert effect.abs().max() > 1e-3 * masked.abs().max()


def test_from_the_shell(tmp_path):
    model = tiny("dbrx")
    model.save_pretrained(tmp_path / "model")
    file = tmp_path / "spec.yaml"
    file.write_text(
        "targets: [{role: moe.expert, count: 2}, {role: moe.channel, count: 4}]\ngroups: architecture:dbrx\n"
        "criterion: magnitude\ntraining: {mode: none}\n"
    )

    def run(*words):
        done = CliRunner().invoke(app, [str(w) for w in words])
        assert done.exit_code == 0, done.output
        return done.stdout

    assert "moe.expert" in run("trace", tmp_path / "model", "--spec", file)
    told = run("validate", file, tmp_path / "model")
    assert "targets[0]: moe.expert, 3 groups, layers 0-2: 15 -> 9 units" in told
    assert "note: targets[0]: 3 groups declared by hand, not traced" in " ".join(told.split())
    result = gp.prune(model, gp.load_spec(file), output=tmp_path / "small", progress=False)
    small = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(small(tokens()).logits, result.model(tokens()).logits)
    run("apply", tmp_path / "model", tmp_path / "small" / "plan.json", "--out", tmp_path / "again", "--no-prove")
    again = gp.load(tmp_path / "again")
    with torch.no_grad():
        assert torch.equal(small(tokens()).logits, again(tokens()).logits)


def test_declared_groups_take_part_in_a_joint_run():
    model = tiny("dbrx")
    rows = torch.randint(3, 97, (40, 16), generator=torch.Generator().manual_seed(1)).tolist()
    wanted = {
        "targets": [{"role": "moe.expert", "count": 2}],
        "groups": "architecture:dbrx",
        "criterion": "taylor",
        "schedule": {"every": 2},
        "training": {"mode": "joint", "steps": 8, "batch_size": 4, "sequence_length": 16},
    }
    result = gp.prune(model, wanted, train_data=rows, progress=False)
    assert {len(units) for units in result.plan.removed.values()} == {2}
    assert result.plan.declared == gp.load_spec(wanted).groups
    assert {block.ffn.experts.num_experts for block in result.model.transformer.blocks} == {3}
    assert result.model(tokens()).logits.isfinite().all()
