"""4-bit layers that lose scattered inputs while they are trained."""

import copy

import pytest
import torch

from graphprune.engine.adapters import attach
from graphprune.engine.callback import PruneCallback
from graphprune.engine.compact import Compactor, needs_recoding, resume, stays_masked
from graphprune.engine.present import Present
from graphprune.engine.recode import reader, unfit
from graphprune.errors import ReshapeError, SpecError
from graphprune.packed import packed, packed_in
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.schema import Lora
from graphprune.trace import trace
from tests.decoders import tiny
from tests.engine.trainers import make_spec, make_trainer
from tests.quantised import bitsandbytes, load

SIZES = {"hidden_size": 64, "intermediate_size": 256, "head_dim": 64}
MLP = "model.layers.{}.mlp/mlp.channel"
DOWN = "model.layers.{}.mlp.down_proj.weight"


@pytest.fixture
def model(tmp_path):
    return load("llama", "nf4-double", tmp_path, **SIZES)[0]


@pytest.fixture
def original():
    return tiny("llama", **SIZES)


def remove(graph, count, layers=(0,), start=0):
    return PrunePlan.remove(graph, {MLP.format(i): range(start, start + 2 * count, 2) for i in layers})


def codes_of(model):
    return {n: packed_in(m).whole() for n, m in model.named_modules() if packed_in(m) is not None}


def test_what_can_be_cut_at_once(model):
    groups = {g.role: g for g in trace(model).groups if g.frozen is None and g.layer == 0}
    assert needs_recoding(groups["mlp.channel"], model) and not needs_recoding(groups["attention.group"], model)
    assert "scattered over blocks of inputs" in stays_masked(groups["mlp.channel"], model)
    assert stays_masked(groups["mlp.channel"], model, anew=True) is None
    assert stays_masked(groups["attention.group"], model) is None


def test_layers_have_the_codes_of_what_is_left_of_their_originals(model, original):
    graph = trace(model)
    untouched = codes_of(model)
    compactor = Compactor(model, graph, originals=lambda: original)
    before = copy.deepcopy(original.state_dict())
    compactor.cut(remove(graph, 64))
    plan = remove(graph, 128)
    compactor.cut(plan)
    small = reshape(copy.deepcopy(original), plan, graph)
    weight = small.get_parameter(DOWN.format(0))
    coded, state = bitsandbytes.functional.quantize_4bit(weight.detach(), blocksize=64, quant_type="nf4")
    found = packed(model, DOWN.format(0))
    assert found.shape == (64, 128) and model.model.layers[0].mlp.down_proj.in_features == 128
    assert torch.equal(found.whole(), bitsandbytes.functional.dequantize_4bit(coded, state))
    rows = plan.kept(MLP.format(0))
    assert torch.equal(
        packed(model, "model.layers.0.mlp.up_proj.weight").whole(), untouched["model.layers.0.mlp.up_proj"][list(rows)]
    )
    assert torch.equal(packed(model, DOWN.format(1)).whole(), untouched["model.layers.1.mlp.down_proj"])
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())


def test_a_model_that_is_cut_to_where_a_training_was_has_the_same_codes(model, original):
    graph, twin = trace(model), copy.deepcopy(model)
    compactor = Compactor(model, graph, originals=lambda: original)
    for plan in (remove(graph, 64), remove(graph, 64, (1,)), remove(graph, 128)):
        merged = {**compactor.present.gone.removed, **plan.removed}
        compactor.cut(PrunePlan.remove(graph, merged))
    resume(twin, graph, compactor.present.gone, lambda: original)
    found, expected = codes_of(twin), codes_of(model)
    assert found.keys() == expected.keys() and all(torch.equal(v, expected[n]) for n, v in found.items())


def test_a_training_in_two_parts_ends_as_in_one(model, original, tmp_path):
    tokens = torch.randint(0, 97, (24, 16), generator=torch.Generator().manual_seed(0))
    graph, ends = trace(model), []
    targets = [{"role": "mlp.channel", "ratio": 0.75}, {"role": "attention.group", "count": 1}]
    spec = make_spec(targets, compact="always", kind="linear", warmup=0.0)
    last = tmp_path / "run" / "checkpoint-5"
    for part in (None, last):
        torch.manual_seed(1)
        groups = graph.select(role=["attention.group", "mlp.channel"])
        wrapped = attach(copy.deepcopy(model), graph, groups, Lora(r=4, dropout=0.0))
        callback = PruneCallback(spec, graph, part, original=original)
        options = {"save_strategy": "steps", "save_steps": 1}
        trainer = make_trainer(wrapped, tokens, tmp_path / "run", callback, **options)
        trainer.train(resume_from_checkpoint=part)
        assert {len(units) for units in callback.compacted.removed.values()} == {1, 192}
        ends.append((callback.plan, wrapped.state_dict(), codes_of(wrapped)))
    (plan, tensors, codes), (other_plan, others, other_codes) = ends
    assert plan == other_plan
    assert all(torch.equal(v, others[n]) for n, v in tensors.items())
    assert all(torch.equal(v, other_codes[n]) for n, v in codes.items())


def test_layers_that_moved_up_find_their_originals(model, original):
    graph = trace(model)
    (depth,) = graph.select(role="layer")
    plan = PrunePlan.remove(graph, {depth.name: [0], MLP.format(1): range(0, 256, 2)})
    Compactor(model, graph, originals=lambda: original).cut(plan)
    expected = reshape(original, plan, graph).get_parameter(DOWN.format(0))
    assert torch.allclose(packed(model, DOWN.format(0)).whole(), expected, atol=0.2 * float(expected.abs().max()))


def test_widths_with_which_a_cpu_cannot_compute_wait(model, original):
    graph = trace(model)
    compactor = Compactor(model, graph, originals=lambda: original)
    assert unfit(model, Present.of(graph), remove(graph, 10)) == {MLP.format(0)}
    assert compactor.cut(remove(graph, 10)).gone.removed == {}
    plan = PrunePlan.remove(graph, {**remove(graph, 64).removed, **remove(graph, 10, (1,)).removed})
    assert list(compactor.cut(plan).gone.removed) == [MLP.format(0)]
    later = remove(graph, 70)
    assert compactor.cut(later).gone.removed == remove(graph, 64).removed


def test_without_originals_nothing_is_coded_anew(model):
    graph = trace(model)
    compactor = Compactor(model, graph)
    assert compactor.cut(remove(graph, 64)).gone.removed == {}
    with pytest.raises(ReshapeError, match=r"down_proj\.weight' is quantised \(nf4\)"):
        resume(model, graph, remove(graph, 64))


def test_where_the_originals_are(model, original, tmp_path):
    assert reader(model, original)() is original
    found = reader(model, None)()
    assert all(torch.equal(p, original.get_parameter(n)) for n, p in found.named_parameters())
    model.config._name_or_path = ""
    with pytest.raises(SpecError, match="Pass the original's folder"):
        reader(model, None)
