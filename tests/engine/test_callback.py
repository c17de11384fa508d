"""PruneCallback inside plain transformers Trainers, with gradient accumulation."""

import copy
import functools
import itertools
import shutil
from contextlib import nullcontext

import peft
import pytest
import torch
from transformers import TrainerCallback

from graphprune.engine.adapters import attach, merge
from graphprune.engine.callback import PruneCallback
from graphprune.engine.marks import checkpoints, fault, last_checkpoint
from graphprune.engine.state import EngineState
from graphprune.errors import CheckpointError, CriterionError, GraphPruneError, NonFiniteError, ReshapeError, SpecError
from graphprune.importance import Taylor
from graphprune.masking import masked
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.reshape.history import history_of
from graphprune.schema import Export, Lora
from graphprune.trace import trace
from tests.decoders import tiny
from tests.engine import trainers
from tests.engine.conftest import make_llama

CHANNELS = ["mlp.channel", "moe.channel"]
TARGETS = [{"role": "attention.group", "count": 1}, {"role": CHANNELS, "ratio": 0.5, "layers": "1:"}]


make_spec = functools.partial(trainers.make_spec, TARGETS)
make_trainer = trainers.make_trainer


def adapt(model, graph):
    groups = [*graph.select(role="attention.group"), *graph.select(role="mlp.channel")]
    return attach(model, graph, groups, Lora(r=4, dropout=0.0))


def test_a_plain_trainer_prunes_to_exactly_the_target(llama, graph, tokens, tmp_path):
    callback = PruneCallback(make_spec(), graph)
    make_trainer(adapt(llama, graph), tokens, tmp_path, callback).train()
    removed = {name: len(units) for name, units in callback.plan.removed.items()}
    assert removed == {
        **{f"model.layers.{i}.self_attn/attention.group": 1 for i in range(3)},
        **{f"model.layers.{i}.mlp/mlp.channel": 12 for i in (1, 2)},
    }
    assert [event.step for event in callback.events] == [2, 4, 6]
    assert callback.events[-1].fraction == 1.0
    assert callback.events[-1].removed == {"attention.group": 3, "mlp.channel": 24}
    assert callback.events[-1].loss is not None
    assert {name: tuple(s.shape) for name, s in callback.scores.items()} == {
        name: (graph.by_name[name].size,) for name in callback.plan.removed
    }


def test_masks_act_from_their_event_on_and_only_grow(llama, graph, tokens, tmp_path):
    callback = PruneCallback(make_spec(compact="never"), graph)
    seen = []

    model = adapt(llama, graph)
    layer = llama.model.layers[1].mlp.down_proj
    hook = layer.base_layer.register_forward_pre_hook(
        lambda module, args: seen.append((args[0] == 0).all(dim=0).all(dim=0))
    )
    make_trainer(model, tokens, tmp_path, callback).train()
    hook.remove()
    counts = [int(zero.sum()) for zero in seen]
    steps = [max(counts[2 * i : 2 * i + 2]) for i in range(8)]
    # Events at steps 2, 4, 6: the next step's forward passes feel them. 1 - (1 - t/6)^3 of 12 channels.
    expected = [0, 0, *[round(12 * (1 - (1 - t / 6) ** 3)) for t in (2, 2, 4, 4)], 12, 12]
    assert steps == expected
    for before, after in itertools.pairwise(seen):
        assert bool((after | ~before).all())
    # and after training the model is as free of hooks as before
    assert not layer._forward_pre_hooks


@pytest.mark.parametrize("compact", ["never", "auto"])
def test_the_masked_model_equals_the_merged_and_reshaped_one(compact, llama, graph, tokens, tmp_path):
    callback = PruneCallback(make_spec(compact=compact), graph)
    model = adapt(llama, graph)
    make_trainer(model, tokens, tmp_path, callback).train()
    model.eval()
    with torch.no_grad():
        with masked(model, callback.plan, graph):
            expected = model(tokens[:4]).logits
        small = reshape(merge(model), callback.plan, graph)
        assert (small(tokens[:4]).logits - expected).abs().max() < 1e-5
    assert small.model.layers[1].mlp.down_proj.weight.shape == (32, 12)


def test_training_under_masks_is_training_the_smaller_model(llama, graph, tokens, tmp_path):
    """The same losses and the same factors, whether the units are silenced or gone."""
    plan = PrunePlan.remove(
        graph, {"model.layers.1.mlp/mlp.channel": range(0, 24, 2), "model.layers.2.self_attn/attention.group": [1]}
    )
    silenced = adapt(llama, graph)
    smaller = reshape(copy.deepcopy(silenced), plan, graph)
    logs = []
    for model in (silenced, smaller):
        trainer = make_trainer(model, tokens, tmp_path, TrainerCallback(), steps=4)
        with masked(model, plan, graph) if model is silenced else nullcontext():
            trainer.train()
        logs.append([row["loss"] for row in trainer.state.log_history if "loss" in row])
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)
    cut = dict(reshape(silenced, plan, graph).named_parameters())
    for name, parameter in smaller.named_parameters():
        torch.testing.assert_close(cut[name], parameter, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("criterion", ["magnitude", "wanda", "gate", "taylor", "random"])
def test_every_kind_of_signal_can_be_had_while_training(criterion, llama, graph, tokens, tmp_path):
    callback = PruneCallback(make_spec(criterion), graph)
    model = adapt(llama, graph)
    make_trainer(model, tokens, tmp_path, callback).train()
    assert sum(len(units) for units in callback.plan.removed.values()) == 27
    assert all(p.grad is None and not p.requires_grad for n, p in model.named_parameters() if "lora" not in n)


def test_accumulated_micro_batches_give_the_scores_of_the_whole_batch(llama, graph, tokens, tmp_path):
    scores = []
    for size, accumulate in ((4, 1), (1, 4)):
        torch.manual_seed(1)
        callback = PruneCallback(make_spec(), graph)
        make_trainer(
            adapt(copy.deepcopy(llama), graph),
            tokens[:4],
            tmp_path,
            callback,
            steps=1,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulate,
        ).train()
        scores.append(callback.scores)
    for name, score in scores[0].items():
        torch.testing.assert_close(score, scores[1][name], rtol=1e-4, atol=0.0)


def test_taylor_scores_are_the_same_with_gradients_freed_inside_the_backward_pass(
    llama, graph, tokens, tmp_path, monkeypatch
):
    plans, scores = [], []
    for streams in (True, False):
        with monkeypatch.context() as patch:
            if not streams:
                patch.setattr(Taylor, "streams", lambda self, backwards: False)
            torch.manual_seed(1)
            callback = PruneCallback(make_spec("taylor"), graph)
            model = adapt(copy.deepcopy(llama), graph)
            make_trainer(model, tokens, tmp_path, callback, gradient_accumulation_steps=1).train()
        plans.append(callback.plan)
        scores.append(callback.scores)
    assert plans[0] == plans[1]
    torch.testing.assert_close(scores[0], scores[1])


@pytest.mark.parametrize("criterion", ["lora", "taylor", "gate", {"name": "taylor", "mean_of": "batch"}], ids=str)
def test_scores_do_not_carry_the_loss_scale(criterion, llama, graph, tokens, tmp_path):
    scores = []
    for scale in (None, 2.0**12):
        torch.manual_seed(1)
        callback = PruneCallback(make_spec(criterion), graph)
        model = adapt(copy.deepcopy(llama), graph)
        trainer = make_trainer(model, tokens, tmp_path, callback, steps=1, max_grad_norm=0)
        if scale:
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        trainer.train()
        scores.append(callback.scores)
    torch.testing.assert_close(scores[0], scores[1])


def test_a_step_that_overflows_is_skipped_and_forgotten(llama, graph, tokens, tmp_path, caplog):
    calls = []

    def overflow(gradient):
        calls.append(1)
        return torch.full_like(gradient, float("inf")) if len(calls) <= 2 else gradient  # at step 1

    def listen(module, args, output):
        output.register_hook(overflow)

    callback = PruneCallback(make_spec("taylor"), graph)
    trainer = make_trainer(adapt(llama, graph), tokens, tmp_path, callback, max_grad_norm=0)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    caplog.set_level("INFO")
    with llama.model.norm.register_forward_hook(listen):
        trainer.train()
    assert "step 1: overflow in half precision" in caplog.text
    assert callback.pruner.average.count == 5  # of the six steps up to the last event
    assert callback.plan.ratio("model.layers.1.mlp/mlp.channel") == 0.5


def test_reentrant_checkpointing_is_refused_where_weight_gradients_are_read(llama, graph, tokens, tmp_path):
    options = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    trainer = make_trainer(adapt(llama, graph), tokens, tmp_path, PruneCallback(make_spec("taylor"), graph), **options)
    with pytest.raises(CriterionError, match="use_reentrant=False"):
        trainer.train()
    assert not any(p.requires_grad for n, p in llama.named_parameters() if "lora" not in n)


def test_the_graph_is_traced_where_none_is_given(llama, graph, tokens, tmp_path):
    callback = PruneCallback(make_spec())
    make_trainer(adapt(llama, graph), tokens, tmp_path, callback, steps=2).train()
    assert callback.graph.fingerprint == graph.fingerprint


def test_a_training_that_stops_early_ends_at_the_target(llama, graph, tokens, tmp_path, caplog):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 3

    callback = PruneCallback(make_spec(), graph)
    trainer = make_trainer(adapt(llama, graph), tokens, tmp_path, callback)
    trainer.add_callback(Stop())
    trainer.train()
    assert callback.plan.ratio("model.layers.1.mlp/mlp.channel") == 0.5
    assert "training ended at step 3, before the schedule's last event" in caplog.text


def test_a_diverged_gradient_stops_training_with_group_and_step(llama, graph, tokens, tmp_path):
    model = adapt(llama, graph)
    factor = llama.model.layers[2].mlp.up_proj.lora_B["default"].weight
    calls = []

    def spoil(gradient):
        calls.append(1)
        return torch.full_like(gradient, float("inf")) if len(calls) > 2 * 2 else gradient  # from step 3 on

    factor.register_hook(spoil)
    callback = PruneCallback(make_spec(compact="never"), graph)  # the hook is on a tensor that would be replaced
    message = r"group 'model\.layers\.2\.mlp/mlp\.channel': the gradient of .*lora_B.* at step 3\."
    with pytest.raises(NonFiniteError, match=message):
        make_trainer(model, tokens, tmp_path, callback).train()
    callback.close()
    assert not llama.model.layers[2].mlp.down_proj._forward_pre_hooks


def test_a_spec_that_does_not_fit_is_refused_before_the_first_step(llama, tokens, tmp_path, graph):
    spec = {"targets": [{"role": "moe.expert", "ratio": 0.5}]}
    trainer = make_trainer(adapt(llama, graph), tokens, tmp_path, PruneCallback(spec, graph))
    with pytest.raises(SpecError, match=r"moe\.expert"):
        trainer.train()


def test_there_is_no_plan_before_training(graph):
    callback = PruneCallback(make_spec(), graph)
    assert callback.events == ()
    assert callback.scores == {}
    with pytest.raises(GraphPruneError, match=r"run trainer\.train\(\) first"):
        _ = callback.plan


def stopped_and_resumed(make, tokens, tmp_path, criterion="lora", **options):
    """Final parameters and plans of one training in one part, and of the same in two: steps 1 to 3, and the rest."""

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise InterruptedError

    usual = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2, "seed": 5, "num_train_epochs": 9}
    ends = []
    for parts in (1, 2):
        folder = tmp_path / str(parts)
        for part in range(parts):
            torch.manual_seed(11 * part)
            model, graph = make()
            last = last_checkpoint(folder)
            callback = PruneCallback(make_spec({"name": criterion, "average": 0.5}), graph, checkpoint=last)
            trainer = make_trainer(model, tokens, folder, callback, **{**usual, **options})
            if part + 1 < parts:
                trainer.add_callback(Stop())
            with pytest.raises(InterruptedError) if part + 1 < parts else nullcontext():
                trainer.train(resume_from_checkpoint=last)
        ends.append(({n: p.detach() for n, p in model.named_parameters()}, callback))
    return ends


def assert_same_end(first, second):
    (weights, callback), (weights_again, callback_again) = first, second
    assert callback.plan == callback_again.plan
    assert callback.events == callback_again.events
    assert callback.scores.keys() == callback_again.scores.keys()
    for name, score in callback.scores.items():
        assert torch.equal(score, callback_again.scores[name])
    for name, weight in weights.items():
        assert torch.equal(weight, weights_again[name]), name


def llama_with_adapters():
    model = make_llama()
    graph = trace(model)
    groups = [*graph.select(role="attention.group"), *graph.select(role="mlp.channel")]
    return attach(model, graph, groups, Lora(r=4, dropout=0.2)), graph


def llama_whole():
    model = make_llama()
    return model, trace(model)


def experts_whole():
    """A model whose checkpoints have other names than its parameters; a Trainer alone would resume with old weights."""
    model = tiny("mixtral")
    return model, trace(model)


@pytest.mark.parametrize(
    ("make", "criterion"),
    [(llama_with_adapters, "lora"), (llama_whole, "taylor"), (experts_whole, "magnitude")],
)
def test_a_training_in_two_parts_ends_as_in_one(make, criterion, tokens, tmp_path):
    assert_same_end(*stopped_and_resumed(make, tokens, tmp_path, criterion))


@pytest.fixture
def resumable(llama, graph, tokens, tmp_path):
    """The folder of a training of four steps with checkpoints, and a Trainer that can resume it, by its spec."""

    def trainer(spec=None, folder="run", model=None, steps=4, **callback):
        wrapped = adapt(copy.deepcopy(llama) if model is None else model, graph)
        made = PruneCallback(spec or make_spec(), graph, **callback)
        options = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
        return make_trainer(wrapped, tokens, tmp_path / folder, made, steps=steps, **options)

    trainer().train()
    return tmp_path / "run", trainer


def test_a_training_is_resumed_after_its_last_event(resumable):
    folder, trainer = resumable
    shutil.rmtree(folder / "checkpoint-4")
    last = last_checkpoint(folder)
    resumed = trainer(checkpoint=last)
    resumed.train(resume_from_checkpoint=last)
    assert resumed.state.global_step == 4


def test_a_checkpoint_is_read_once_for_each_training(resumable, monkeypatch):
    folder, trainer = resumable
    place, honest, read = folder / "checkpoint-3", EngineState.load, []
    monkeypatch.setattr(EngineState, "load", lambda found: read.append(found.name) or honest(found))
    for times in (1, 2):
        trainer(folder="other", checkpoint=place).train(resume_from_checkpoint=place)
        assert read == ["checkpoint-3"] * times


def test_checkpoints_of_a_users_trainer_are_marked_and_two_are_kept(resumable):
    folder, _ = resumable
    assert [found.name for found in checkpoints(folder)] == ["checkpoint-4", "checkpoint-3"]
    assert [fault(found) for found in checkpoints(folder)] == [None, None]


def test_a_half_written_checkpoint_is_refused_and_the_one_before_it_found(resumable, caplog):
    folder, trainer = resumable
    (folder / "checkpoint-4" / "complete.json").unlink()
    with pytest.raises(CheckpointError, match=r"checkpoint-4 is no checkpoint to continue from: it has no comp"):
        trainer(checkpoint=folder / "checkpoint-4")
    assert last_checkpoint(folder) == folder / "checkpoint-3"
    assert "checkpoint-4 is passed over: it has no complete.json" in caplog.text


def test_what_does_not_belong_to_a_checkpoint_is_named(resumable, llama):
    folder, trainer = resumable
    place = folder / "checkpoint-3"

    def refused(message, **options):
        with pytest.raises(CheckpointError, match=message):
            trainer(checkpoint=place, **options).train(resume_from_checkpoint=place)

    refused(r"checkpoint-3 belongs to another run:\n  - schedule\.every: expected 2, got 1\n", spec=make_spec(every=1))
    refused(r"steps: expected 4, got 5", steps=5)
    with torch.no_grad():
        llama.model.layers[0].mlp.up_proj.weight.add_(0.5)
    refused("model: expected the same weights, got others", model=llama)


def test_a_checkpoint_may_lie_elsewhere(resumable, tmp_path):
    folder, trainer = resumable
    kept = tmp_path / "kept"
    shutil.move(folder / "checkpoint-3", kept)
    trainer(folder="other", checkpoint=kept).train(resume_from_checkpoint=kept)
    assert [found.name for found in checkpoints(tmp_path / "other")] == ["checkpoint-4"]


@pytest.fixture
def masked_run(resumable):
    """The checkpoint of a training under masks, and a Trainer that can resume it, by its model."""
    _, trainer = resumable
    spec = make_spec(compact="never")
    trainer(spec, folder="masked").train()
    return lambda **options: trainer(spec, **{"folder": "masked", **options})


def test_under_masks_the_trainer_alone_may_know_the_checkpoint(masked_run, tmp_path):
    place = tmp_path / "masked" / "checkpoint-3"
    masked_run().train(resume_from_checkpoint=place)
    shutil.move(place, tmp_path / "kept")
    with pytest.raises(CheckpointError, match=r"elsewhere/checkpoint-3 is no checkpoint"):
        masked_run(folder="elsewhere").train(resume_from_checkpoint=tmp_path / "kept")


def test_masks_are_on_before_the_first_forward_of_a_resumed_training(masked_run, llama, tmp_path):
    resumed = masked_run(model=llama)
    seen = []
    layer = llama.model.layers[1].mlp.down_proj.base_layer
    layer.register_forward_pre_hook(lambda module, args: seen.append(int((args[0] == 0).all(dim=0).all(dim=0).sum())))
    resumed.train(resume_from_checkpoint=tmp_path / "masked" / "checkpoint-3")
    assert seen[0] == 12


@pytest.mark.parametrize("criterion", ["lora", "magnitude"])
def test_adapters_that_are_no_plain_lora_are_refused_before_the_first_step(criterion, llama, graph, tokens, tmp_path):
    model = peft.get_peft_model(llama, peft.LoraConfig(r=2, use_dora=True, target_modules=["down_proj"]))
    with pytest.raises(ReshapeError, match=r"down_proj\.weight' carries an adapter of type .*Dora.*Merge the adapter"):
        make_trainer(model, tokens, tmp_path, PruneCallback(make_spec(criterion), graph)).train()


def test_adapters_on_nothing_that_is_pruned_are_refused_before_the_first_step(llama, graph, tokens, tmp_path):
    model = peft.get_peft_model(llama, peft.LoraConfig(r=2, target_modules=["lm_head"]))
    with pytest.raises(
        CriterionError, match=r"'lora' reads adapters, and this PeftModel has none on any of the 18 ten"
    ):
        make_trainer(model, tokens, tmp_path, PruneCallback(make_spec(), graph)).train()


@pytest.mark.parametrize(
    ("criterion", "backend", "checkpointing"),
    [
        ("lora", "eager", False),
        pytest.param("taylor", "eager", False, marks=pytest.mark.slow),
        pytest.param("gate", "eager", False, marks=pytest.mark.slow),
        pytest.param("wanda", "aot_eager", False, marks=pytest.mark.slow),
        pytest.param("lora", "aot_eager", True, marks=pytest.mark.slow),
    ],
)
def test_a_compiled_training_makes_the_same_plan(criterion, backend, checkpointing, llama, graph, tokens, tmp_path):
    """Masks come on after the code was compiled, and act; observers see."""
    more = {"gradient_checkpointing_kwargs": {"use_reentrant": False}} if checkpointing else {}
    compiled = {"torch_compile": True, "torch_compile_backend": backend}
    ends = []
    for options in ({}, compiled):
        torch.manual_seed(1)
        callback = PruneCallback(make_spec(criterion, compact="never", every=3), graph)  # a compiled model is masked
        model = adapt(copy.deepcopy(llama), graph)
        trainer = make_trainer(
            model, tokens, tmp_path, callback, steps=5, gradient_checkpointing=checkpointing, **more, **options
        )
        trainer.train()
        ends.append((callback, [row["loss"] for row in trainer.state.log_history if "loss" in row]))
    (plain, losses), (other, losses_too) = ends
    assert other.plan == plain.plan and len(plain.events) == 2
    torch.testing.assert_close(other.scores, plain.scores)
    assert losses_too == pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("criterion", ["lora", "taylor", "gate", "wanda"])
def test_recomputed_activations_give_the_same_plan(criterion, llama, graph, tokens, tmp_path):
    ends = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        callback = PruneCallback(make_spec(criterion), graph)
        options = {"gradient_checkpointing": checkpointing, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
        make_trainer(adapt(copy.deepcopy(llama), graph), tokens, tmp_path, callback, **options).train()
        ends.append(callback)
    assert ends[0].plan == ends[1].plan
    torch.testing.assert_close(ends[0].scores, ends[1].scores, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize("criterion", ["lora", "taylor", "gate", "wanda"])
def test_mixed_precision_in_bfloat16_scores_alike(criterion, llama, graph, tokens, tmp_path):
    ends = []
    for bf16 in (False, True):
        torch.manual_seed(1)
        callback = PruneCallback(make_spec(criterion), graph)
        make_trainer(adapt(copy.deepcopy(llama), graph), tokens, tmp_path, callback, steps=1, bf16=bf16).train()
        ends.append(callback)
    for name, scores in ends[0].scores.items():
        rounded = ends[1].scores[name]
        assert rounded.dtype == torch.float32
        assert (rounded - scores).norm() < 0.15 * scores.norm()
        assert len(ends[1].plan.removed[name]) == len(ends[0].plan.removed[name])


def test_a_callback_tells_one_training_from_the_next(llama, graph, tokens, tmp_path):
    callback, identities = PruneCallback(make_spec("magnitude", compact="never"), graph), []
    for scale in (1.0, 0.5):
        with torch.no_grad():
            llama.model.norm.weight.mul_(scale)
        model = adapt(copy.deepcopy(llama), graph)
        options = {"save_strategy": "steps", "save_steps": 1, "steps": 1}
        make_trainer(model, tokens, tmp_path / f"{scale}", callback, **options).train()
        identities.append(EngineState.load(tmp_path / f"{scale}" / "checkpoint-1").identity)
    assert identities[0].weights != identities[1].weights


def test_a_callback_ends_with_the_sizes_that_the_export_asks_for(llama, graph, tokens, tmp_path):
    spec = make_spec().model_copy(update={"export": Export(targets=("hf",), multiple_of=8)})
    callback = PruneCallback(spec, graph)
    model = adapt(llama, graph)
    make_trainer(model, tokens, tmp_path, callback).train()
    after = callback.plan.sizes_after()
    assert {after[f"model.layers.{i}.mlp/mlp.channel"] for i in range(3)} == {16}
    assert any("16 of 24 kept in each of 3 groups" in note for note in callback.notes)
    reshape(model, callback.plan, graph)
    assert history_of(model).stock
