"""Again and again: every round starts from the folder of the round before, whatever its tier."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import graphprune as gp
from graphprune.checkpoint.manifest import Manifest
from tests.decoders import DECODERS, tiny, tokens

ROUNDS = {
    "depth, width, depth": [("layer",), ("mlp.channel", "moe.channel"), ("layer",)],
    "heads, experts, heads": [("attention.group",), ("moe.expert", "mlp.channel"), ("attention.group",)],
}


def even(graph, roles):
    """The last unit of every layer's group, but for what must stay: sizes remain alike."""
    units = {}
    for group in graph.select(role=list(roles)):
        if group.exact and group.size > group.minimum and not any(group.size - 1 in kind for kind in group.essential):
            units[group.name] = [group.size - 1]
    return units


def uneven(graph, roles):
    """Nothing of the first layer's groups, so that no stock config describes the rest."""
    return {name: units for name, units in even(graph, roles).items() if graph.by_name[name].layer != 0}


def answers(model):
    model.config._experts_implementation = "eager"
    with torch.no_grad():
        text = model.generate(tokens(), max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=0)
        return model(tokens()).logits, text


CASES = [
    ("llama", "depth, width, depth", even),
    ("gpt2", "depth, width, depth", uneven),
    ("mixtral", "heads, experts, heads", even),
    ("phi3", "heads, experts, heads", uneven),
]
ALL = [
    (name, r, which) for name in DECODERS for r in ROUNDS for which in (even, uneven) if (name, r, which) not in CASES
]


@pytest.mark.parametrize(
    ("name", "rounds", "which"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL)]
)
def test_each_round_starts_from_the_folder_of_the_one_before(name, rounds, which, tmp_path):
    original = tiny(name, **{"n_layer" if "n_layer" in DECODERS[name][1] else "num_hidden_layers": 4})
    original.save_pretrained(tmp_path / "original")
    model, plans = original, []
    for number, roles in enumerate(ROUNDS[rounds]):
        model.config._experts_implementation = "eager"
        graph = gp.trace(model)
        units = which(graph, roles)
        if not units:
            continue
        plan = gp.PrunePlan.remove(graph, units)
        with torch.no_grad(), gp.masked(model, plan, graph):
            expected = model(tokens()).logits
        gp.reshape(model, plan, graph)
        folder = gp.save(model, tmp_path / f"{number}")
        again = gp.load(folder)
        for mine, theirs in zip(answers(model), answers(again), strict=True):
            assert torch.equal(mine, theirs)
        torch.testing.assert_close(answers(again)[0], expected, rtol=0, atol=1e-4)
        if Manifest.read(folder).tier == "hf":
            stock, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
            assert not any(info.values())
            assert gp.trace(stock).fingerprint == gp.trace(again).fingerprint
        plans.append(plan)
        model = again
    once = AutoModelForCausalLM.from_pretrained(tmp_path / "original")
    gp.reshape(once, gp.compose(once, plans))
    for mine, theirs in zip(answers(once), answers(model), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
