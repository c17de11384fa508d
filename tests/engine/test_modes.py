"""Every mode ends with exactly the units that were asked for gone, and the same way each time."""

import copy
from contextlib import contextmanager

import pytest
import torch

from graphprune.engine.data import load_blocks
from graphprune.engine.modes import Job, needs_data, run_mode
from graphprune.errors import DataError
from graphprune.masking import masked
from graphprune.reshape import reshape
from graphprune.reshape.history import history_of
from graphprune.schema import PruneSpec

TARGETS = [{"role": "attention.group", "count": 1}, {"role": "mlp.channel", "ratio": 0.25}]


def make_spec(mode="joint", criterion="lora", compact="auto", **rest):
    training = {"mode": mode, "steps": 6, "batch_size": 4, "sequence_length": 16, "learning_rate": 1e-2}
    training["compact"] = compact
    schedule = {"every": 1, "warmup": 0.0, "cooldown": 0.3}
    return PruneSpec.model_validate(
        {"targets": TARGETS, "criterion": criterion, "training": training, "schedule": schedule, **rest}
    )


class Watch:
    """A stage clock and a measurer that note what they were asked for."""

    def __init__(self, ids):
        self.ids, self.stages, self.logits = ids, [], []

    @contextmanager
    def stage(self, name):
        self.stages.append(name)
        yield

    def measure(self, model):
        model.eval()
        with torch.no_grad():
            self.logits.append(model(self.ids).logits)


def run(llama, graph, tokens, spec, watch=None):
    watch = watch or Watch(tokens[:2])
    data = load_blocks(tokens, sequence_length=16) if needs_data(spec) else None
    return run_mode(Job(copy.deepcopy(llama), graph, spec, data, watch.stage, watch.measure, progress=False))


CASES = [("joint", "lora"), ("separate", "lora"), ("none", "lora"), ("separate", "taylor"), ("none", "magnitude")]


@pytest.mark.parametrize(("mode", "criterion"), CASES)
def test_the_outcome_is_a_plain_smaller_model(mode, criterion, llama, graph, tokens):
    outcome = run(llama, graph, tokens, make_spec(mode, criterion))
    assert {len(u) for n, u in outcome.plan.removed.items() if n.endswith("attention.group")} == {1}
    assert {len(u) for n, u in outcome.plan.removed.items() if n.endswith("mlp.channel")} == {6}
    assert len(outcome.plan.removed) == 6
    layer = outcome.model.model.layers[2]
    assert layer.mlp.up_proj.weight.shape == (18, 32)
    assert layer.self_attn.k_proj.weight.shape == (12, 32)
    assert layer.self_attn.q_proj.weight.shape == (24, 32)
    assert [n for n, _ in outcome.model.named_parameters()] == [n for n, _ in llama.named_parameters()]
    assert set(outcome.scores) == set(outcome.plan.removed)


@pytest.mark.parametrize(("mode", "criterion"), [("joint", "lora"), ("separate", "taylor")])
def test_the_same_job_twice_gives_the_same_model(mode, criterion, llama, graph, tokens):
    first, second = (run(llama, graph, tokens, make_spec(mode, criterion)) for _ in range(2))
    assert first.plan == second.plan
    assert first.events == second.events
    for (name, a), b in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_the_seed_matters(llama, graph, tokens):
    first, second = (run(llama, graph, tokens, make_spec(seed=seed)) for seed in (0, 1))
    assert any(not torch.equal(first.scores[name], second.scores[name]) for name in first.scores)


@pytest.mark.parametrize("mode", ["joint", "separate", "none"])
def test_what_is_measured_before_tuning_is_the_original_under_the_final_masks(mode, llama, graph, tokens):
    watch = Watch(tokens[:2])
    outcome = run(llama, graph, tokens, make_spec(mode), watch)
    with torch.no_grad(), masked(llama, outcome.plan, graph):
        expected = llama(tokens[:2]).logits
    assert len(watch.logits) == 1
    assert (watch.logits[0] - expected).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["joint", "separate"])
def test_tuning_changes_the_weights_and_none_does_not(mode, llama, graph, tokens):
    watch = Watch(tokens[:2])
    outcome = run(llama, graph, tokens, make_spec(mode), watch)
    with torch.no_grad():
        assert (outcome.model(tokens[:2]).logits - watch.logits[0]).abs().max() > 1e-3


def test_adapters_stay_on_where_merging_is_off(llama, graph, tokens):
    merged = run(llama, graph, tokens, make_spec())
    apart = run(llama, graph, tokens, make_spec(export={"merge_lora": False}))
    assert any("lora_A" in name for name, _ in apart.model.named_parameters())
    with torch.no_grad():
        difference = apart.model(tokens[:2]).logits - merged.model(tokens[:2]).logits
    assert difference.abs().max() < 1e-5


def test_stages_are_timed(llama, graph, tokens):
    for mode, stages in {
        "joint": ["train", "reshape", "merge"],
        "separate": ["score", "reshape", "train", "merge"],
        "none": ["score", "reshape"],
    }.items():
        watch = Watch(tokens[:2])
        run(llama, graph, tokens, make_spec(mode), watch)
        assert watch.stages == stages


@pytest.mark.parametrize("adapted", [None, ["q_proj", "up_proj"]])
def test_an_interrupted_job_leaves_the_model_as_it_was(adapted, llama, graph, tokens, monkeypatch):
    """Ctrl-C in the middle of training: no adapters, no hooks, the same outputs.

    Hooks on an adapted layer go with its adapter, so in one case the masked layers have none.
    """
    from graphprune.engine import pruner

    def interrupt(self, step, seen):
        if step == 4:
            raise KeyboardInterrupt

    spec, watch = make_spec(lora={"target_modules": adapted}, compact="never"), Watch(tokens[:2])
    original = pruner.Pruner.score
    monkeypatch.setattr(
        pruner.Pruner, "score", lambda self, step, *seen: interrupt(self, step, seen) or original(self, step, *seen)
    )
    model = copy.deepcopy(llama)
    data = load_blocks(tokens, sequence_length=16)
    with pytest.raises(KeyboardInterrupt):
        run_mode(Job(model, graph, spec, data, watch.stage, watch.measure, progress=False))
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in llama.named_parameters()]
    assert all(p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(tokens[:2]).logits, llama(tokens[:2]).logits)


def test_an_interrupted_job_says_that_units_were_cut_out(llama, graph, tokens, monkeypatch, caplog):
    """They cannot come back; the smaller model is whole, free of hooks and adapters, and knows what was done to it."""
    from graphprune.engine import pruner

    original = pruner.Pruner.score

    def interrupt(self, step, *seen):
        if step == 4:
            raise KeyboardInterrupt
        return original(self, step, *seen)

    monkeypatch.setattr(pruner.Pruner, "score", interrupt)
    model = copy.deepcopy(llama)
    data, watch = load_blocks(tokens, sequence_length=16), Watch(tokens[:2])
    with pytest.raises(KeyboardInterrupt):
        run_mode(Job(model, graph, make_spec(), data, watch.stage, watch.measure, progress=False))
    assert "training was broken off after" in caplog.text
    (step,) = history_of(model).steps
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in llama.named_parameters()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    with torch.no_grad():
        expected = reshape(copy.deepcopy(llama), step.plan, graph)(tokens[:2]).logits
        torch.testing.assert_close(model.eval()(tokens[:2]).logits, expected)


def test_compaction_changes_nothing_but_the_cost(llama, graph, tokens):
    outcomes, watches = [], []
    for compact in ("always", "never"):
        watch = Watch(tokens[:2])
        outcomes.append(run(llama, graph, tokens, make_spec(compact=compact, lora={"dropout": 0.0}), watch))
        watches.append(watch)
    left, right = outcomes
    assert left.plan == right.plan
    assert left.notes == right.notes == ()
    losses = [row["train_loss"] for outcome in outcomes for row in outcome.log if "train_loss" in row]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    torch.testing.assert_close(watches[0].logits, watches[1].logits, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        logits = [outcome.model(tokens[:2]).logits for outcome in outcomes]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


def test_what_needs_data():
    assert needs_data(make_spec("joint", "magnitude"))
    assert needs_data(make_spec("none", "lora"))
    assert not needs_data(make_spec("none", "magnitude"))


def test_training_without_data_is_an_error(llama, graph, tokens):
    watch = Watch(tokens[:2])
    with pytest.raises(DataError, match=r"training\.mode joint needs text to train on"):
        run_mode(Job(llama, graph, make_spec(), None, watch.stage, watch.measure))


def test_separate_tunes_what_is_left_after_whole_layers_went(llama, tokens):
    """Adapters go on layers by the names that these have after the cut."""
    from graphprune.engine.run import prune

    spec = {
        "targets": [{"role": "layer", "count": 1}],
        "criterion": "magnitude",
        "training": {"mode": "separate", "steps": 2, "batch_size": 4, "sequence_length": 16},
    }
    result = prune(llama, spec, train_data=tokens, progress=False)
    assert result.model.config.num_hidden_layers == 2 and result.log
