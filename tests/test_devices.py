"""Whatever meets a parameter is on its device: on one that is not the host's, and on two."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

import graphprune as gp
from graphprune.engine import moments
from graphprune.engine.adapters import attach, merge
from graphprune.engine.compact import Compactor
from graphprune.engine.finite import check_gradients, nonfinite_gradients
from graphprune.engine.pruner import Pruner
from graphprune.masking import MaskSet
from graphprune.observe import Observer
from graphprune.score import score_groups
from graphprune.validate import resolve_targets
from tests.decoders import tiny
from tests.elsewhere import OTHER, PLACE, Elsewhere, accelerator, spread

CRITERIA: dict[str, Any] = {
    "lora": "lora",
    "lora-reference": {"name": "lora", "variant": "reference"},
    "taylor": "taylor",
    "taylor-second": {"name": "taylor", "order": "second"},
    "taylor-mixed": {"name": "taylor", "order": "mixed"},
    "taylor-batch": {"name": "taylor", "mean_of": "batch"},
    "gate": "gate",
    "wanda": "wanda",
    "magnitude": "magnitude",
    "random": "random",
    "torch_pruning": "torch_pruning",
    "torch_pruning-gradients": {"name": "torch_pruning", "importance": "GroupTaylorImportance"},
}
QUICK = ("lora", "taylor-batch", "gate", "wanda")
ROLES = ("attention.group", "attention.query", "mlp.channel", "moe.expert", "layer", "hidden")
IDS = torch.arange(3, 19).reshape(2, 8)
BATCHES = [
    {"input_ids": IDS},
    {"input_ids": IDS.flip(0), "attention_mask": torch.tensor([[1] * 8, [1] * 5 + [0] * 3])},
]


@pytest.fixture(scope="module", params=["llama", pytest.param("mixtral", marks=pytest.mark.slow)])
def traced(request):
    model = tiny(request.param).eval()
    return model, gp.trace(model)


@pytest.fixture(params=[pytest.param("one", marks=pytest.mark.slow), "two"])
def placed(request, traced):
    """The model on one device or on two, with the accelerator on."""
    model, graph = traced
    with accelerator():
        there = copy.deepcopy(model)
        there.config.use_cache = False
        yield (spread(there, there.model.layers) if request.param == "two" else there.to(PLACE)), model, graph


def roles_of(graph) -> list[str]:
    return [role for role in ROLES if any(g.role == role and g.frozen is None for g in graph.groups)]


def spec_of(role: str, criterion: Any = "random") -> gp.PruneSpec:
    sections = {"training": {"mode": "none"}, "lora": {"dropout": 0.0}}
    return gp.load_spec({"targets": [{"role": role, "ratio": 0.5}], "criterion": criterion, **sections})


@pytest.mark.parametrize(
    "criterion", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CRITERIA]
)
def test_scores_are_those_of_the_host(placed, criterion):
    there, here, graph = placed
    if criterion.startswith("torch_pruning"):
        pytest.importorskip("torch_pruning")
    if "lora" in criterion and hasattr(here.config, "num_local_experts"):
        pytest.skip("PEFT asks torch.autocast about the device of adapted experts")
    seen = 0
    for role in roles_of(graph):
        spec = spec_of(role, CRITERIA[criterion])
        try:
            expected = gp.score(here, graph, spec, BATCHES)
        except (gp.GraphPruneError, RuntimeError):  # not every criterion can score every role
            continue
        got = gp.score(there, graph, spec, BATCHES)
        seen += 1
        for name, values in expected.items():
            assert got[name].device.type == "cpu"
            torch.testing.assert_close(got[name], values, rtol=1e-4, atol=1e-5 * float(values.abs().max()))
    assert seen


def test_a_masked_model_answers_as_the_smaller_one_which_stays_where_it_was(placed):
    there, here, graph = placed
    for role in roles_of(graph):
        spec, model = spec_of(role), copy.deepcopy(there)
        plan = gp.plan(graph, spec, gp.score(here, graph, spec))
        before = {n: p.device for n, p in model.named_parameters()}
        with torch.no_grad():
            with gp.masked(model, plan, graph):
                expected = model(input_ids=IDS.to(PLACE)).logits
            small = gp.reshape(model, plan, graph)
            if role != "layer":  # then others stand where they stood
                assert all(p.device == before[n] for n, p in small.named_parameters())
            got = small(input_ids=IDS.to(PLACE)).logits
        torch.testing.assert_close(got.cpu(), expected.cpu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("criterion", ["lora", *(pytest.param(n, marks=pytest.mark.slow) for n in ("taylor", "gate"))])
def test_a_step_of_a_joint_run(placed, criterion, monkeypatch):
    """Scored, pruned by a mask, trained, cut with the optimizer's state, trained, merged."""
    there, here, graph = placed
    if hasattr(here.config, "num_local_experts"):
        pytest.skip("PEFT asks torch.autocast about the device of adapted experts")
    spec = spec_of("mlp.channel", criterion)
    groups = [g for target in resolve_targets(spec, graph) for g in target.groups]
    wrapped = attach(there, graph, groups, spec.lora)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad])
    pruner = Pruner(graph, spec, 1)
    with Observer.for_criterion(wrapped, graph, groups, pruner.criterion) as seen:
        wrapped(input_ids=IDS.to(PLACE), labels=IDS.to(PLACE)).loss.backward()
        assert seen.nonfinite() is None
        scores = score_groups(pruner.criterion, groups, seen)
    check_gradients(nonfinite_gradients(wrapped), groups, 1)
    optimizer.step()
    plan = gp.plan(graph, spec, pruner.average.update(scores))
    masks = MaskSet(wrapped, graph, [g.name for g in groups])
    for name, units in plan.removed.items():
        masks.set(name, units)
    with masks, torch.no_grad():
        expected = wrapped(input_ids=IDS.to(PLACE)).logits.cpu()
    monkeypatch.setattr(moments, "_PLAIN", (*moments._PLAIN, Elsewhere))
    Compactor(wrapped, graph, optimizer).cut(plan)
    with torch.no_grad():
        torch.testing.assert_close(wrapped(input_ids=IDS.to(PLACE)).logits.cpu(), expected, rtol=1e-4, atol=1e-5)
    optimizer.zero_grad()
    wrapped(input_ids=IDS.to(PLACE), labels=IDS.to(PLACE)).loss.backward()
    optimizer.step()
    merged = merge(wrapped)
    assert {p.device for p in merged.parameters()} <= {PLACE, OTHER}


def test_the_device_refuses_what_a_gpu_refuses():
    """The tests above could see a mistake."""
    with accelerator():
        far = torch.ones(3, device=PLACE)
        assert (far + 1).device == PLACE and far.cpu().device.type == "cpu" and float((far * torch.ones(())).sum()) == 3
        assert far[torch.tensor([0, 1])].device == PLACE  # indices may come from the host
        for mixed in (
            lambda: far + torch.ones(3),
            lambda: far + torch.ones(3, device=OTHER),
            lambda: far.index_select(0, torch.tensor([0])),
            lambda: torch.ones(3)[torch.tensor([0], device=PLACE)],
            lambda: torch.cat([far, torch.ones(3)]),
        ):
            with pytest.raises(RuntimeError, match=r"expected all tensors on one device|indices on"):
                mixed()
