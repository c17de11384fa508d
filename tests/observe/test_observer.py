"""An observation is asked by name, refuses what was not recorded, and leaves no trace."""

import copy

import peft
import pytest
import torch

from graphprune import processes
from graphprune.errors import CriterionError
from graphprune.importance import build
from graphprune.importance.base import Signal
from graphprune.observe import Observer
from graphprune.observe.factors import BaseRows

ALL = frozenset(Signal)


def hooks(model):
    return [
        (name, kind, len(getattr(module, kind)))
        for name, module in model.named_modules()
        for kind in ("_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_backward_pre_hooks")
        if getattr(module, kind)
    ]


def state(model):
    return {
        "modules": [(n, id(m), m.training, sorted(vars(m))) for n, m in model.named_modules()],
        "parameters": [
            (n, id(p), p.requires_grad, p.grad, dict(p._backward_hooks or {})) for n, p in model.named_parameters()
        ],
        "hooks": hooks(model),
    }


def watched(graph):
    return [g for g in graph.groups if g.sites]


@pytest.mark.parametrize("trainable", [False, True])
def test_the_model_is_left_as_it_was(lm, graph, ids, trainable):
    lm.requires_grad_(trainable)
    before, values = state(lm), copy.deepcopy(lm.state_dict())
    with Observer(lm, graph, watched(graph), ALL) as seen:
        lm(ids, labels=ids).loss.backward()
        assert seen.gradient("mlp.up.weight").abs().sum() > 0
    lm.zero_grad()
    assert state(lm) == before
    for name, value in lm.state_dict().items():
        assert torch.equal(value, values[name])


def test_also_after_an_error(lm, graph, ids):
    before = state(lm)
    with pytest.raises(IndexError), Observer(lm, graph, watched(graph), ALL):
        lm(ids + 1000)
    assert state(lm) == before


def test_also_after_an_error_on_the_way_in(lm, graph, monkeypatch):
    before = state(lm)
    seen = Observer(lm, graph, watched(graph), ALL)
    monkeypatch.setattr(seen._gates, "open", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError), seen:
        pass
    assert state(lm) == before


def test_reset_starts_the_next_step(lm, graph, ids):
    group = graph.by_name["mlp/mlp.channel"]

    def read(seen):
        return [
            seen.gradient("mlp.up.weight"),
            seen.squared_gradient("mlp.up.weight"),
            seen.input_norm("mlp.down.weight"),
            seen.mask_gradient(group),
        ]

    with Observer(lm, graph, watched(graph), ALL - {Signal.LORA}) as seen:
        lm(ids, labels=ids).loss.backward()
        once = [value.clone() for value in read(seen)]
        seen.reset()
        lm(ids, labels=ids).loss.backward()
        for first, second in zip(once, read(seen), strict=True):
            assert torch.equal(first, second)


def test_signals_that_were_not_asked_for(lm, graph, ids):
    with Observer(lm, graph, graph.groups, {Signal.WEIGHT}) as seen:
        lm(ids)
        assert torch.equal(seen.weight("mlp.up.weight"), lm.mlp.up.weight)
        for read, name in (
            (lambda: seen.gradient("mlp.up.weight"), "weight_gradient"),
            (lambda: seen.squared_gradient("mlp.up.weight"), "squared_gradient"),
            (lambda: seen.input_norm("mlp.up.weight"), "input_norm"),
            (lambda: seen.lora("mlp.up.weight"), "lora"),
            (lambda: seen.mask_gradient(graph.groups[0]), "mask_gradient"),
        ):
            with pytest.raises(CriterionError, match=f"the signal '{name}' was not recorded"):
                read()


def test_signals_before_any_batch(lm, graph):
    with (
        Observer(lm, graph, graph.groups, {Signal.WEIGHT_GRADIENT}) as seen,
        pytest.raises(CriterionError, match="'weight_gradient' was asked for before any batch was run"),
    ):
        seen.gradient("mlp.up.weight")


def test_a_group_of_another_graph(lm, graph):
    stranger = graph.groups[0].model_copy(update={"name": "elsewhere"})
    with pytest.raises(CriterionError, match="'elsewhere' is not in the graph of this model"):
        Observer(lm, graph, [stranger], {Signal.WEIGHT})


def test_weight_rows_and_holders(lm, graph):
    with Observer(lm, graph, graph.groups, {Signal.WEIGHT}) as seen:
        assert torch.equal(seen.weight_rows("moe.up", 3, 6), lm.moe.up.reshape(-1, 6)[3:6])
        assert seen.holder("mlp.up.weight") is lm.mlp.up
        assert seen.holder("unused") is lm


def test_two_threads_may_look_at_two_tensors(lm, graph):
    """Backward passes run in one thread per device; between two looks of one thread comes one of the other."""
    with Observer(lm, graph, graph.groups, {Signal.WEIGHT}) as seen:
        first = seen.weight_rows("moe.up", 0, 3)

        class Interrupted(str):
            __slots__ = ()

            def __ne__(self, other: object) -> bool:
                """Asked whether the rows that are known are of another tensor; meanwhile they become so."""
                answer = str.__ne__(self, other)
                seen._rows = BaseRows(lm, "mlp.up.weight")
                return answer

            __hash__ = str.__hash__

        seen._rows.tensor = Interrupted("moe.up")
        assert torch.equal(seen.weight_rows("moe.up", 3, 6), lm.moe.up.reshape(-1, 6)[3:6])
        assert torch.equal(first, lm.moe.up.reshape(-1, 6)[:3])


def test_under_peft_names_are_the_graphs(lm, graph, ids):
    linear = lm.mlp.down
    model = peft.get_peft_model(lm, peft.LoraConfig(r=2, target_modules=["down"], init_lora_weights=False))
    model.eval()
    group = graph.by_name["mlp/mlp.channel"]
    with Observer(model, graph, watched(graph), ALL) as seen:
        with pytest.raises(CriterionError, match=r"adapter on 'mlp\.down\.weight' has no gradient, nor has any other"):
            seen.lora("mlp.down.weight")
        model(input_ids=ids, labels=ids).loss.backward()
        assert torch.equal(seen.weight("mlp.down.weight"), linear.weight)
        assert seen.holder("mlp.down.weight") is linear
        assert seen.gradient("mlp.down.weight").abs().sum() > 0
        assert seen.input_norm("mlp.down.weight").shape == (8,)
        factors = seen.lora("mlp.down.weight")
        assert factors.grad_b.abs().sum() > 0
        # The gate stands before base layer and adapter alike: dL/dm = Σ_ij (dL/dW)_ij (W + s·BA)_ij over a unit's
        # columns.
        merged = linear.weight + factors.scaling * factors.b @ factors.a
        expected = group.members[-1].reduce(seen.gradient("mlp.down.weight") * merged)
        torch.testing.assert_close(seen.mask_gradient(group), expected.double(), rtol=1e-6, atol=1e-9)
        assert linear.weight.grad is None


def test_what_is_not_finite_is_named(lm, graph, ids):
    with Observer(lm, graph, watched(graph), ALL - {Signal.LORA}) as seen:
        lm(ids, labels=ids).loss.backward()
        assert seen.nonfinite() is None
        seen.reset()
        (lm(ids, labels=ids).loss * float("nan")).backward()
        assert seen.nonfinite() == "the gradient of 'mlp.up.weight'"
    with Observer(lm, graph, watched(graph), {Signal.MASK_GRADIENT}) as seen:
        (lm(ids, labels=ids).loss * float("inf")).backward()
        assert seen.nonfinite() == "the mask gradient of group 'mlp/mlp.channel'"


@pytest.mark.parametrize("streamed", [False, True])
def test_what_processes_share_is_what_one_sees_of_all_their_batches(lm, graph, ids, streamed, monkeypatch):
    """One process sends what the other adds: sums are all that processes exchange."""
    criterion = build({"name": "taylor", "mean_of": "batch"})
    signals = criterion.signals if streamed else ALL
    groups = graph.groups if streamed else watched(graph)
    sent = []

    def read(seen):
        if streamed:
            return [score for group in groups for score in seen.member_scores(group)]
        tensors = [m.tensor for g in groups for m in g.members]
        norms = [seen.input_norm(t) for t in tensors]
        gradients = [f(t) for t in tensors for f in (seen.gradient, seen.squared_gradient)]
        return [*gradients, *(n for n in norms if n is not None), *map(seen.mask_gradient, groups)]

    def observed(batches, share):
        with Observer(lm, graph, groups, signals, criterion if streamed else None) as seen:
            for batch in batches:
                (lm(batch, labels=batch).loss / len(batches)).backward()
            if share:
                seen.share()
            return [value.clone() for value in read(seen)]

    def send(values):
        sent.append([value.detach().clone() for value in values])
        return list(values)

    expected = observed([ids[:2], ids[1:]], share=False)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "total", send)
    observed([ids[1:]], share=True)
    monkeypatch.setattr(processes, "total", lambda values: [a + b for a, b in zip(values, sent.pop(0), strict=True)])
    torch.testing.assert_close(observed([ids[:2]], share=True), expected)
    assert not sent
