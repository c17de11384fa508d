"""Several rounds of one-shot pruning end where one round would, having looked again in between."""

import copy
import logging

import pytest
import torch
from pydantic import ValidationError

from graphprune.engine import modes, rounds
from graphprune.engine.rounds import batches_of_round, choose
from graphprune.engine.run import prune
from graphprune.errors import PlanError
from graphprune.masking import masked
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.schema import PruneSpec
from tests.decoders import tiny

TARGETS = [{"role": "attention.group", "count": 2}, {"role": "mlp.channel", "ratio": 0.6}]


def make_spec(count=3, criterion="taylor", targets=TARGETS, mode="none", scope="layer", **training):
    training = {"calibration_batches": 2, "batch_size": 2, "sequence_length": 16, "steps": 3, **training}
    return PruneSpec.model_validate(
        {
            "targets": targets,
            "criterion": criterion,
            "scope": scope,
            "training": {"mode": mode, "rounds": count, **training},
        }
    )


def batches(tokens, number=2):
    return lambda index: [{"input_ids": tokens[(4 * index + 2 * n) % 24 :][:2]} for n in range(number)]


def sizes(plan):
    return {name: len(units) for name, units in plan.removed.items()}


@pytest.mark.parametrize("criterion", ["taylor", "lora", "gate", "wanda", "magnitude"])
def test_the_target_is_reached_exactly_and_the_model_stays(criterion, llama, graph, tokens):
    before, hooks = copy.deepcopy(llama.state_dict()), [len(m._forward_pre_hooks) for m in llama.modules()]
    once, _ = choose(llama, graph, make_spec(1, criterion), batches(tokens))
    plan, scores = choose(llama, graph, make_spec(4, criterion), batches(tokens))
    assert sizes(plan) == sizes(once)
    assert set(scores) == set(plan.removed)
    assert plan.notes == once.notes
    assert [len(m._forward_pre_hooks) for m in llama.modules()] == hooks
    assert all(torch.equal(value, before[name]) for name, value in llama.state_dict().items())


@pytest.mark.parametrize("scope", ["role", "global"])
@pytest.mark.parametrize("multiple", [1, 4])
def test_shared_pools_and_multiples_too(scope, multiple, llama, graph, tokens):
    targets = [{"role": ["attention.group", "mlp.channel"], "ratio": 0.4, "multiple_of": multiple}]
    once, several = (
        choose(llama, graph, make_spec(count, targets=targets, scope=scope), batches(tokens))[0] for count in (1, 3)
    )
    assert sum(sizes(once).values()) == sum(sizes(several).values())


def test_every_round_is_a_plan_by_the_scores_of_what_is_left(llama, graph, tokens):
    """Against rounds by hand, on models that are really cut in between."""
    spec = make_spec(3, targets=[{"role": "mlp.channel", "ratio": 0.5, "layers": 1}])
    name, left = "model.layers.1.mlp/mlp.channel", list(range(24))
    for index in range(3):
        small = copy.deepcopy(llama)
        gone = sorted(set(range(24)) - set(left))
        reshape(small, PrunePlan.remove(graph, {name: gone}), graph)
        small.zero_grad()
        for batch in batches(tokens)(index):
            (small(**batch, labels=batch["input_ids"]).loss / 2).backward()
        mlp = small.model.layers[1].mlp
        weights = [mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight.T]
        gradients = [mlp.gate_proj.weight.grad, mlp.up_proj.weight.grad, mlp.down_proj.weight.grad.T]
        score = sum((w * g).abs().sum(dim=1) for w, g in zip(weights, gradients, strict=True))
        for position in sorted(score.argsort()[:4].tolist(), reverse=True):
            del left[position]
    plan, scores = choose(llama, graph, spec, batches(tokens))
    assert list(plan.kept(name)) == left
    assert scores[name].shape == (24,)


def test_rounds_see_other_batches_and_begin_anew_where_none_is_left():
    training = make_spec(3, calibration_batches=4).training
    assert [batches_of_round(training, 10, index) for index in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]
    assert [batches_of_round(training, 3, index) for index in range(2)] == [[0, 1, 2], [0, 1, 2]]
    assert batches_of_round(training, 0, 1) == []


def test_a_run_reads_text_for_all_rounds_and_tells_of_each(llama, tokens, monkeypatch, caplog):
    seen = []
    honest = rounds.score

    def watched(model, graph, spec, batches, **options):
        seen.append(torch.cat([b["input_ids"] for b in batches]))
        return honest(model, graph, spec, batches, **options)

    monkeypatch.setattr(rounds, "score", watched)
    caplog.set_level(logging.INFO)
    result = prune(llama, make_spec(3), train_data=tokens, progress=False)
    assert [ids.shape[0] for ids in seen] == [4, 4, 4]
    assert len({tuple(row.tolist()) for ids in seen for row in ids}) == 12
    assert "round 2 of 3: PrunePlan(" in caplog.text
    assert result.model.model.layers[0].mlp.up_proj.weight.shape == (10, 32)


def test_separate_continues_from_the_plan_of_all_rounds(llama, tokens, tmp_path, monkeypatch):
    spec = make_spec(3, mode="separate")

    def run(**options):
        model = copy.deepcopy(llama)
        return prune(model, spec, train_data=tokens, checkpoints=tmp_path / "run", progress=False, **options)

    expected = run()
    with monkeypatch.context() as patch:
        patch.setattr(modes, "train", lambda *a, **k: (_ for _ in ()).throw(InterruptedError))
        with pytest.raises(InterruptedError):
            run()
    monkeypatch.setattr(rounds, "score", lambda *a, **k: pytest.fail("scored again"))
    found = run(resume=True)
    assert found.plan == expected.plan
    for (name, a), b in zip(expected.model.named_parameters(), found.model.parameters(), strict=True):
        assert torch.equal(a, b), name


def test_on_a_quantised_base_masks_silence_codes(tokens):
    pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")
    model = tiny("llama", hidden_size=64, intermediate_size=128, head_dim=8)
    spec = make_spec(2, "lora", [{"role": "mlp.channel", "ratio": 0.5}, {"role": "attention.group", "count": 1}])
    whole = copy.deepcopy(model)
    spec = spec.model_copy(update={"quantization": PruneSpec.model_validate(
        {"targets": TARGETS, "quantization": "int8"}).quantization})  # fmt: skip
    result = prune(model, spec, train_data=tokens, progress=False)
    assert {n: len(u) for n, u in result.plan.removed.items() if n.endswith("channel")} == {
        f"model.layers.{i}.mlp/mlp.channel": 64 for i in range(3)
    }
    with torch.no_grad(), masked(whole, result.plan, result.graph):
        expected = whole(tokens[:2]).logits
    assert (result.model(tokens[:2]).logits - expected).abs().max() < 1e-5


def test_groups_that_cannot_be_masked_are_refused_before_anything_is_scored(llama, graph, tokens, monkeypatch):
    monkeypatch.setattr(rounds, "score", lambda *a, **k: pytest.fail("scored"))
    blind = graph.model_copy(
        update={"groups": tuple(g.model_copy(update={"sites": ()}) if g.role == "mlp.channel" else g
                                for g in graph.groups)}
    )  # fmt: skip
    with pytest.raises(PlanError, match=r"training\.rounds 3: these groups cannot be masked:\n.*mlp\.channel.*"):
        choose(llama, blind, make_spec(3), batches(tokens))


def test_a_joint_run_has_a_schedule_instead():
    with pytest.raises(ValidationError, match=r"rounds are for modes separate and none, got 2 in a joint run"):
        make_spec(2, mode="joint")
