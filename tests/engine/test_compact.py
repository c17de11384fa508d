"""A model that is cut while it is trained learns what the masked one learns."""

import copy
import functools
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import graphprune as gp
from graphprune.engine import compact
from graphprune.engine.adapters import attach
from graphprune.engine.callback import PruneCallback
from graphprune.engine.compact import Compactor, obstacle, resume
from graphprune.errors import PlanError, ReshapeError, SpecError
from graphprune.plan import PrunePlan
from graphprune.reshape.history import history_of
from graphprune.schema import Lora
from graphprune.testing import tiny_model
from graphprune.trace import trace
from tests.engine import trainers
from tests.engine.conftest import make_llama

WIDTHS = [{"role": "attention.group", "count": 2}, {"role": "mlp.channel", "ratio": 0.5, "layers": "1:"}]


make_trainer = functools.partial(trainers.make_trainer, gradient_accumulation_steps=1)


def make_spec(compact, targets=WIDTHS, criterion="lora", **schedule):
    return trainers.make_spec(targets, criterion, compact, **schedule)


def adapt(model, graph, groups=None):
    torch.manual_seed(1)
    groups = groups or [*graph.select(role="attention.group"), *graph.select(role="mlp.channel")]
    return attach(model, graph, groups, Lora(r=4, dropout=0.0))


def run(compact, model, graph, tokens, folder, spec=None, **options):
    """Losses, gradient norms, the callback, and the model without what the plan removes."""
    callback = PruneCallback(spec or make_spec(compact), graph)
    trainer = make_trainer(model, tokens, folder, callback, **options)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    small = gp.reshape(model, callback.plan, graph)
    return [r["loss"] for r in rows], [r["grad_norm"] for r in rows], callback, small


def said(callback):
    """Its notes, but for how the result will load."""
    return [note for note in callback.notes if not note.startswith("the result:")]


def same(left, right, rel=1e-5, weights=1e-4):
    assert left[0] == pytest.approx(right[0], rel=rel)
    assert left[1] == pytest.approx(right[1], rel=10 * rel)
    assert left[2].plan == right[2].plan
    assert [e.removed for e in left[2].events] == [e.removed for e in right[2].events]
    other = dict(right[3].named_parameters())
    for name, parameter in left[3].named_parameters():
        torch.testing.assert_close(other[name], parameter, rtol=weights, atol=weights)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 3},
        {"max_grad_norm": 0.0},
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"optim": "sgd", "weight_decay": 0.1},
    ],
    ids=["plain", "accumulation", "no-clipping", "checkpointing", "sgd"],
)
def test_the_run_is_that_of_the_masked_model(options, llama, graph, tokens, tmp_path):
    runs = [
        run(how, adapt(copy.deepcopy(llama), graph), graph, tokens, tmp_path, **options) for how in ("always", "never")
    ]
    same(*runs)


def test_in_bfloat16(llama, graph, tokens, tmp_path):
    runs = [
        run(how, adapt(copy.deepcopy(llama).bfloat16(), graph), graph, tokens, tmp_path) for how in ("always", "never")
    ]
    assert runs[0][0] == pytest.approx(runs[1][0], rel=2e-2)
    assert runs[0][2].events[0].removed == runs[1][2].events[0].removed


def test_the_model_is_small_from_the_first_event_on(llama, graph, tokens, tmp_path):
    callback = PruneCallback(make_spec("auto"), graph)
    widths = []
    model = adapt(llama, graph)
    layer = llama.model.layers[1].mlp.down_proj
    layer.base_layer.register_forward_pre_hook(lambda module, args: widths.append(args[0].shape[-1]))
    trainer = make_trainer(model, tokens, tmp_path, callback)
    trainer.train()
    left = [24 - round(12 * (1 - (1 - t / 6) ** 3)) for t in (2, 2, 4, 4)]
    assert widths == [24, 24, *left, 12, 12]
    assert not layer._forward_pre_hooks
    assert callback.compacted == callback.plan.model_copy(update={"notes": ()})
    assert said(callback) == []
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    state = trainer.optimizer.state
    assert all(v.shape in ((), p.shape) for p, values in state.items() for v in values.values())


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "gate", "taylor"])
def test_every_kind_of_signal_is_seen_in_the_smaller_model(criterion, llama, graph, tokens, tmp_path):
    runs = [
        run("-", adapt(copy.deepcopy(llama), graph), graph, tokens, tmp_path, make_spec(how, criterion=criterion))
        for how in ("always", "never")
    ]
    same(*runs)


@pytest.mark.parametrize(
    "targets",
    [
        [{"role": "hidden", "ratio": 0.25}],
        [{"role": "layer", "count": 1}, {"role": "mlp.channel", "ratio": 0.5}],
        [{"role": "attention.query", "count": 1}, {"role": "attention.group", "count": 1}],
    ],
    ids=["hidden", "layers", "heads"],
)
def test_kinds_that_cross_or_move(targets, llama, graph, tokens, tmp_path):
    """Chosen by weights, as slices that are gone do not count in the scores of units that cross them."""
    runs = []
    for how in ("always", "never"):
        groups = [g for g in graph.groups if g.role != "hidden" and g.frozen is None and g.role != "layer"]
        spec = make_spec(how, targets, "gate")
        runs.append(run(how, adapt(copy.deepcopy(llama), graph, groups), graph, tokens, tmp_path, spec))
    same(*runs)


def test_experts_and_the_channels_in_them(tokens, tmp_path):
    """Experts go with the router's rows; adapters on stacks of matrices and their moments are cut in both ways."""
    original = tiny_model("mixtral")
    graph = trace(original)
    targets = [{"role": "moe.expert", "count": 1}, {"role": "moe.channel", "ratio": 0.5}]
    groups = [*graph.select(role="moe.expert"), *graph.select(role="moe.channel")]
    runs = []
    for how in ("always", "never"):
        model = adapt(copy.deepcopy(original), graph, groups)
        ids = tokens % original.config.vocab_size
        runs.append(run(how, model, graph, ids, tmp_path, make_spec(how, targets, "gate"), learning_rate=1e-3))
    same(*runs)
    assert {graph.by_name[name].role for name in runs[0][2].compacted.removed} == {"moe.expert", "moe.channel"}


def test_a_loss_over_the_router_keeps_experts_masked(tokens, tmp_path):
    model = tiny_model("mixtral")
    graph = trace(model)
    model.config.output_router_logits = True
    targets = [{"role": "moe.expert", "count": 1}, {"role": "attention.group", "count": 1}]
    ids = tokens % model.config.vocab_size
    callback = PruneCallback(make_spec("auto", targets, "gate"), graph)
    make_trainer(model, ids, tmp_path, callback, steps=2).train()
    (note,) = said(callback)
    assert note == (
        "moe.expert is pruned by masks until the end of training, because a loss is taken over the router's choices"
    )
    assert {graph.by_name[name].role for name in callback.compacted.removed} == {"attention.group"}


def test_all_weights_and_their_moments_follow(llama, graph, tokens, tmp_path):
    runs = [
        run(how, copy.deepcopy(llama), graph, tokens, tmp_path, make_spec(how, criterion="gate"), learning_rate=1e-3)
        for how in ("always", "never")
    ]
    same(*runs)


def test_a_trained_norm_keeps_its_axis_masked(llama, graph, tokens, tmp_path):
    spec = make_spec("auto", [{"role": "hidden", "ratio": 0.25}, *WIDTHS], "gate")
    _, _, callback, small = run("auto", llama, graph, tokens, tmp_path, spec)
    (note,) = said(callback)
    assert note.startswith(
        "hidden is pruned by masks until the end of training, because a norm over its units is trained"
    )
    assert {graph.by_name[name].role for name in callback.compacted.removed} == {"attention.group", "mlp.channel"}
    assert small.model.norm.weight.shape == (24,)


@pytest.mark.parametrize("wrapped", [False, True], ids=["whole", "adapters"])
@pytest.mark.parametrize(("optim", "near"), [("adafactor", 1e-2), ("adamw_bnb_8bit", 2e-4)])
def test_optimizers_that_judge_elements_by_others_stay_near(optim, near, wrapped, tokens, tmp_path):
    """Alike until the first cut; then a mask dilutes what elements share, and a cut does not."""
    if "bnb" in optim:
        pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")
    original = make_llama(hidden_size=64, head_dim=8, intermediate_size=192)
    graph = trace(original)
    runs = []
    for how in ("auto", "never"):
        model = copy.deepcopy(original)
        spec = make_spec(how, criterion="gate")
        model = adapt(model, graph) if wrapped else model
        runs.append(run(how, model, graph, tokens, tmp_path, spec, optim=optim, learning_rate=1e-3))
    (cut, _, callback, _), (masked, *_) = runs
    assert [note.split(":")[0] for note in said(callback)] == [
        "the steps of training are not quite those of a masked model"
    ]
    assert callback.compacted.removed == callback.plan.removed
    assert cut[:2] == pytest.approx(masked[:2], rel=1e-6)
    assert cut == pytest.approx(masked, rel=near)
    assert cut != masked or wrapped  # adapters of this size have moments that are not in codes


def test_the_model_remembers_one_pruning(llama, graph, tokens, tmp_path):
    _, _, callback, small = run("always", llama, graph, tokens, tmp_path, make_spec("always", criterion="gate"))
    (step,) = history_of(small).steps
    assert step.plan.removed == callback.plan.removed
    assert history_of(small).underway is None
    gp.save(small, tmp_path / "small")
    loaded = gp.load(tmp_path / "small")
    with torch.no_grad():
        assert torch.equal(loaded(tokens[:2]).logits, small.eval()(tokens[:2]).logits)


def test_cut_to_where_a_training_was(llama, graph, tokens):
    plan = PrunePlan.remove(graph, {"model.layers.1.mlp/mlp.channel": [0, 5]})
    fresh = resume(adapt(copy.deepcopy(llama), graph), graph, plan)
    more = plan.model_copy(update={"removed": {"model.layers.1.mlp/mlp.channel": (0, 3, 5)}})
    compactor = Compactor(fresh, graph)
    assert compactor.present.gone == plan
    compactor.cut(more)
    with torch.no_grad():
        whole = gp.reshape(copy.deepcopy(llama), more, graph)(tokens).logits
        torch.testing.assert_close(fresh(tokens).logits, whole)
    with pytest.raises(PlanError, match=r"has lost unit 3 of group 'model\.layers\.1\.mlp/mlp\.channel' already"):
        gp.reshape(fresh, plan, graph)


@pytest.mark.parametrize("before", [[], [{"role": "layer", "count": 1}]], ids=["widths", "layers"])
def test_a_second_training_goes_on_where_the_first_one_ended(before, llama, graph, tokens, tmp_path):
    model = adapt(llama, graph)
    first = PruneCallback(make_spec("always", [{"role": "mlp.channel", "count": 4}, *before], "gate"), graph)
    make_trainer(model, tokens, tmp_path, first, steps=2).train()
    second = PruneCallback(make_spec("always", [{"role": "mlp.channel", "count": 6}], "gate"))
    make_trainer(model, tokens, tmp_path, second, steps=2).train()
    assert second.graph == graph
    for name, units in first.plan.removed.items():
        assert set(units) <= set(second.plan.removed[name])
    assert len(second.plan.removed["model.layers.0.mlp/mlp.channel"]) == 6
    assert len(llama.model.layers) == 3 - len(before)
    assert llama.model.layers[0].mlp.up_proj.out_features == 18


def test_states_that_are_not_of_elements_are_refused(llama, graph):
    optimizer = torch.optim.SGD(llama.parameters(), lr=0.1)
    weight = llama.model.layers[0].mlp.up_proj.weight
    optimizer.state[weight]["rows"] = torch.zeros(24)
    before = {name: tuple(p.shape) for name, p in llama.named_parameters()}
    plan = PrunePlan.remove(graph, {"model.layers.0.mlp/mlp.channel": [1]})
    with pytest.raises(ReshapeError, match=r"state 'rows' of SGD was expected to have the shape \(24, 32\)"):
        Compactor(llama, graph, optimizer).cut(plan)
    assert before == {name: tuple(p.shape) for name, p in llama.named_parameters()}


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"torch_compile": True, "torch_compile_backend": "eager"}, "it is compiled"),
        ({"load_best_model_at_end": True, "save_strategy": "steps", "eval_strategy": "steps"}, "checkpoint of other"),
    ],
    ids=["compiled", "best-checkpoint"],
)
def test_where_it_is_not_safe_masks_are_used_and_the_reason_said(options, why, llama, graph, tokens, tmp_path):
    refused = PruneCallback(make_spec("always"), graph)
    trainer = make_trainer(adapt(copy.deepcopy(llama), graph), tokens, tmp_path, refused, 2, **options, eval_steps=1)
    with pytest.raises(SpecError, match=f"training.compact.*{why}"):
        trainer.train()
    optimizer = trainer.optimizer
    assert why in obstacle(trainer.model, [], optimizer, trainer.args)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED", "MEGATRON_LM"])
def test_a_model_spread_over_processes_is_masked(kind, llama, graph, monkeypatch):
    monkeypatch.setattr(compact, "_distribution", lambda: kind)
    assert obstacle(llama, graph.groups, None) == f"{kind} spreads every tensor over processes"
    monkeypatch.setattr(compact, "_distribution", lambda: "MULTI_GPU")
    assert obstacle(llama, graph.groups, None) is None


def test_a_model_that_is_not_all_there_or_in_codes_is_masked(llama, graph):
    assert obstacle(llama, graph.groups, torch.optim.AdamW(llama.parameters())) is None
    codes = llama.model.layers[1].mlp.up_proj
    codes.weight = torch.nn.Parameter(codes.weight.to(torch.int8), requires_grad=False)
    assert (
        obstacle(llama, graph.groups, None)
        == "'model.layers.1.mlp.up_proj.weight' is quantised, and could not be cut exactly"
    )
    llama.model.layers[0].to("meta")
    assert obstacle(llama, graph.groups, None) == "it lies on several devices (cpu, meta)"


def test_a_compiled_layer_keeps_its_size(llama, graph):
    llama.model.layers[0].compile(backend="eager")
    assert "it is compiled" in obstacle(llama, graph.groups, None)


def test_a_refusal_half_way_goes_on_with_masks(llama, graph, tokens, tmp_path, monkeypatch):
    def refuse(self, plan):
        if len(plan.removed) and self.present.gone.removed:
            raise ReshapeError("no more")
        return cut(self, plan)

    cut = Compactor.cut
    expected = run("never", adapt(copy.deepcopy(llama), graph), graph, tokens, tmp_path)
    monkeypatch.setattr(Compactor, "cut", refuse)
    got = run("auto", adapt(llama, graph), graph, tokens, tmp_path)
    assert said(got[2]) == ["pruned by masks from step 4 on, because no more"]
    assert got[2].compacted.removed != got[2].plan.removed
    same(got, expected)


def test_events_are_those_of_the_schedule(llama, graph, tokens, tmp_path):
    *_, callback, _ = run("auto", adapt(llama, graph), graph, tokens, tmp_path)
    for before, after in itertools.pairwise(callback.events):
        assert all(after.removed[role] >= count for role, count in before.removed.items())
    assert callback.events[-1].fraction == 1.0


@pytest.mark.slow
def test_under_data_parallelism(tmp_path):
    """Two processes that compact agree with each other, and with two that mask."""
    found = {}
    script = Path(__file__).with_name("two_processes.py")
    for how in ("always", "never"):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [*command, script, how, tmp_path], check=False, env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found[how] = [json.loads((tmp_path / f"{how}-{rank}.json").read_text()) for rank in range(2)]
    compacted, masked = found["always"], found["never"]
    assert [run["processes"] for run in compacted] == [2, 2]
    assert [(run["compacted"], run["notes"]) for run in compacted] == [(4, [])] * 2
    assert compacted[0]["sum"] == compacted[1]["sum"]
    for run in compacted:
        assert run["plan"] == masked[0]["plan"]
        assert run["losses"] == pytest.approx(masked[0]["losses"], rel=1e-5)
        assert run["norms"] == pytest.approx(masked[0]["norms"], rel=1e-4)
        assert run["sum"] == pytest.approx(masked[0]["sum"], rel=1e-6)
