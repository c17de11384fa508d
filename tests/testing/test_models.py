"""What tiny models are for: whatever a test cuts or changes in them, the logits show it."""

from __future__ import annotations

import re

import pytest
import torch

from graphprune.testing import cases, example_inputs, tiny_config, tiny_model

FEW = ("llama@bias", "gpt2", "bloom", "deepseek_v3", "deepseek_v4", "mamba2", "qwen3_next", "olmoe", "longcat_flash")
SOME = [pytest.param(case, marks=() if case in FEW else pytest.mark.slow) for case in cases()]

# Parts that logits of a text-only forward cannot show, by a piece of their names.
TOWERS = "vision|image_e|audio|multi_modal_projector|visual_projection"
UNUSED = "encoder_attn|cross_att|patcher|pooler|mask_emb|seg_embed|r_s_bias|z_L_init"
KEY_BIAS = r"(k_proj|k_lin|key|key_proj|Wk)\.bias"  # a constant added to all scores of a softmax
TIES = r"indexer\.\w*norm"  # scales scores, and the same may be the highest


@pytest.mark.parametrize("case", SOME)
@torch.no_grad()
def test_logits_depend_on_every_parameter(case):
    model = tiny_model(case)
    inputs = example_inputs(model)
    logits = model(**inputs).logits
    skipped = set(getattr(model.config.get_text_config(decoder=True), "cross_attention_layers", None) or [])
    inert = []
    for name, parameter in model.named_parameters():
        layer = re.search(r"layers\.(\d+)\.", name)
        if re.search(f"{TOWERS}|{UNUSED}|{KEY_BIAS}|{TIES}", name) or (layer and int(layer.group(1)) in skipped):
            continue
        before = parameter.clone()
        parameter += torch.randn_like(parameter) * (parameter.std(correction=0) + 0.1)
        if (model(**inputs).logits - logits).abs().max() <= 1e-5 * logits.abs().max():
            inert.append(name)
        parameter.copy_(before)
    # The one architecture whose output bias is not added when the model runs.
    assert inert == (["lm_head.bias"] if case == "reformer" else [])


def unreached(model: torch.nn.Module) -> list[str]:
    """The experts whose weights get no gradient from the example inputs."""
    model(**example_inputs(model)).logits.sin().sum().backward()
    found = []
    for name, parameter in model.named_parameters():
        if "expert" in name and parameter.ndim == 3 and parameter.grad is not None:
            idle = (parameter.grad.flatten(1) == 0).all(1).nonzero().flatten().tolist()
            found += [f"{name}[{expert}]" for expert in idle]
    return found


MIXTURES = [
    case for case in SOME if re.search(r"experts?'", str(tiny_config(case.values[0]).get_text_config().to_dict()))
]


@pytest.mark.parametrize("case", MIXTURES)
def test_every_expert_is_chosen_by_some_token(case):
    model = tiny_model(case)
    idle = unreached(model)
    without = getattr(model.config, "zero_expert_num", 0)  # classes of the router that hand on what they get
    if without:
        experts = model.config.n_routed_experts
        idle = [name for name in idle if int(name.split("[")[1].rstrip("]")) < experts]
    if case == "zaya":  # one expert per token, behind a router of several layers
        assert len(idle) < 8
    else:
        assert idle == []


def test_tables_of_integers_choose_different_experts_per_token():
    model = tiny_model("deepseek_v4")
    tables = [buffer for name, buffer in model.named_buffers() if name.endswith("tid2eid")]
    assert len(tables) == 2
    for table in tables:
        assert set(table.unique().tolist()) == set(range(model.config.n_routed_experts))
        assert (table[:, 0] != table[:, 1]).all()


@pytest.mark.parametrize("case", ["mixtral", "olmoe", "gpt_oss", "deepseek_v3", "qwen3_moe", "dbrx"])
def test_experts_stay_aligned_when_a_quarter_of_their_channels_goes(case):
    """Grouped matrix products need rows of whole 16 bytes."""
    config = tiny_config(case)
    inner = config.ffn_config.ffn_hidden_size if case == "dbrx" else None
    width = inner or getattr(config, "moe_intermediate_size", None) or config.intermediate_size
    assert width % 4 == 0
    assert (width - width // 4) * 4 % 16 == 0


@pytest.mark.slow
@pytest.mark.parametrize("case", cases())
def test_nothing_is_left_to_chance(case):
    """Memory that a class forgets to initialise does not reach the model."""
    usual = tiny_model(case).state_dict()
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # new memory is filled with NaN
    try:
        poisoned = tiny_model(case).state_dict()
    finally:
        torch.use_deterministic_algorithms(before)
    assert [name for name in usual if not torch.equal(usual[name], poisoned[name])] == []


# Attention of blocks, of prefixes, by hashing, in both directions; experts that are shared out over all tokens.
LOOK_AHEAD = {"big_bird@sparse", "cpmant", "doge@moe", "reformer", "xlnet"}


@pytest.mark.parametrize("case", SOME)
@torch.no_grad()
def test_a_later_token_changes_no_earlier_logits(case):
    model = tiny_model(case)
    inputs = example_inputs(model)
    logits = model(**inputs).logits
    inputs["input_ids"][:, 8:] = (inputs["input_ids"][:, 8:] + 5) % 90 + 3
    change = (model(**inputs).logits - logits).abs() / logits.abs().max()
    assert (change[:, :8].max() > 1e-4) == (case in LOOK_AHEAD)
    assert change[:, 8:].max() > 1e-2
