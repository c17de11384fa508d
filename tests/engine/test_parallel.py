"""Two processes against one with the same batches, for every kind of signal; what cannot be followed is refused."""

import importlib.util

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainingArguments

from graphprune.engine import parallel
from graphprune.engine.parallel import check_parallel
from graphprune.engine.run import prune
from graphprune.errors import DistributedError
from graphprune.plan import PrunePlan
from graphprune.reshape import reshape
from graphprune.trace import trace
from tests.engine import together

TARGETS = [
    {"role": "attention.group", "count": 1},
    {"role": ["mlp.channel", "moe.channel"], "ratio": 0.5, "layers": "1:"},
]


def job(criterion, batch_size, accumulation, **more):
    spec = {
        "targets": more.pop("targets", TARGETS),
        "criterion": criterion,
        "schedule": {"every": 2, "warmup": 0.0, "cooldown": 0.25},
    }
    spec["training"] = {"compact": more.pop("compact", "auto")}
    options = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
    return {"spec": spec, "options": {**options, **more.pop("options", {})}, **more}


#: By name: the criterion, batch size and accumulation of each of two processes, the same of one, and the rest.
OFTEN = {
    "lora": ("lora", (2, 1), (4, 1), {}),
    "taylor": ("taylor", (2, 1), (4, 1), {}),
    "streamed": ({"name": "taylor", "mean_of": "batch", "aggregate": "prod"}, (2, 1), (2, 2), {}),
    "gate": ("gate", (1, 2), (4, 1), {}),
    "wanda": ("wanda", (2, 1), (4, 1), {}),
}
SELDOM = {
    "magnitude": ("magnitude", (2, 1), (4, 1), {}),
    "random": ("random", (2, 1), (4, 1), {}),
    "fisher": ({"name": "taylor", "order": "mixed"}, (1, 2), (1, 4), {}),
    "whole": ("taylor", (2, 1), (4, 1), {"adapters": False}),
    "experts": ("taylor", (1, 2), (1, 4), {"model": "mixtral"}),
    "experts-lora": ("lora", (1, 2), (1, 4), {"model": "mixtral"}),
}
DIVIDED = {
    f"{name}-{how}-{'adapters' if adapters else 'whole'}": (
        name,
        (1, 2),
        (4, 1),
        {"divided": how, "adapters": adapters, "compact": "never"},  # tensors in parts are masked, and so is the one
    )
    for name in ("lora", "gate", "wanda", "magnitude", "taylor")
    for how in ("later", "loaded")
    for adapters in (True, False)
    if adapters or name != "lora"
}
BATCHES = {"name": "taylor", "mean_of": "batch"}
DIVIDED["streamed"] = (BATCHES, (2, 2), (2, 4), {"divided": "later", "compact": "never"})
DIVIDED["one backward"] = ("taylor", (2, 1), (4, 1), {"divided": "later", "compact": "never", "adapters": False})
ZERO3 = {"deepspeed": 3, "compact": "never"}
OF_DEEPSPEED = {
    "lora": ("lora", (1, 2), (4, 1), {**ZERO3, "divided": "loaded"}),
    "lora-clipped": ("lora", (1, 2), (4, 1), {**ZERO3, "options": {"max_grad_norm": 1e-3}}),
    "lora-experts": ("lora", (1, 2), (1, 4), {**ZERO3, "model": "mixtral"}),
    "lora-stage-1": ("lora", (1, 2), (4, 1), {**ZERO3, "deepspeed": 1}),
    "lora-stage-2": ("lora", (1, 2), (4, 1), {**ZERO3, "deepspeed": 2, "options": {"max_grad_norm": 1e-3}}),
    "gate": ("gate", (1, 2), (4, 1), ZERO3),
    "wanda": ("wanda", (2, 1), (4, 1), {**ZERO3, "adapters": False, "divided": "loaded"}),
    "magnitude": ("magnitude", (2, 1), (4, 1), {**ZERO3, "adapters": False}),
    "taylor": ("taylor", (2, 1), (4, 1), {**ZERO3, "divided": "loaded"}),
    "taylor-whole": ("taylor", (1, 2), (4, 1), {**ZERO3, "adapters": False}),
    "taylor-experts": ("taylor", (1, 2), (1, 4), {**ZERO3, "model": "mixtral"}),
    "streamed": (BATCHES, (2, 2), (2, 4), ZERO3),
    "fisher": ({"name": "taylor", "order": "mixed"}, (1, 2), (1, 4), ZERO3),
    "depth": ("taylor", (2, 1), (4, 1), {**ZERO3, "targets": [{"role": "layer", "count": 1}]}),
    "width": ("gate", (2, 1), (4, 1), {**ZERO3, "targets": [{"role": "hidden", "ratio": 0.25}]}),
}
needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs the extra 'distributed'"
)


def found(table, folder, launcher="torchrun"):
    jobs = {name: job(criterion, *two, **more) for name, (criterion, two, _, more) in table.items()}
    return together.launch(jobs, folder, launcher=launcher)


def assert_as_one(table, results, folder):
    for name, (criterion, _, one, more) in table.items():
        alone = together.work(
            job(criterion, *one, **{k: v for k, v in more.items() if k not in ("divided", "deepspeed")}), folder
        )
        for result in (process[name] for process in results):
            assert result.get("error") is None, name
            assert result["world"] == 2
            assert result["plan"] == alone["plan"], name
            assert result["losses"] == pytest.approx(alone["losses"], rel=1e-5)
            for group, scores in alone["scores"].items():
                torch.testing.assert_close(
                    result["scores"][group], scores, rtol=1e-4, atol=1e-5 * scores.max().item(), msg=f"{name} {group}"
                )
        for group, scores in results[0][name]["scores"].items():
            assert torch.equal(scores, results[1][name]["scores"][group])


def test_two_processes_score_and_plan_as_one(tmp_path):
    results = found(OFTEN, tmp_path)
    assert_as_one(OFTEN, results, tmp_path)


@pytest.mark.slow
def test_two_processes_score_and_plan_as_one_by_accelerate(tmp_path):
    results = found(SELDOM, tmp_path, "accelerate")
    assert_as_one(SELDOM, results, tmp_path)


@pytest.mark.slow
def test_a_model_that_is_divided_among_processes_is_pruned_as_a_whole_one(tmp_path):
    name, batches, one, more = DIVIDED["gate-loaded-whole"]
    results = found({**DIVIDED, "gate-loaded-whole": (name, batches, one, {**more, "save": "tuned"})}, tmp_path)
    assert_as_one(DIVIDED, results, tmp_path)
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")  # whole again, and cut in one process
    plan = PrunePlan.remove(trace(tuned), results[0]["gate-loaded-whole"]["plan"])
    assert reshape(tuned, plan).model.layers[1].mlp.down_proj.weight.shape == (32, 12)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("taylor", [True, False])
def test_deepspeed_scores_and_plans_as_one_process(taylor, tmp_path):
    table = {name: row for name, row in OF_DEEPSPEED.items() if (row[0] == "taylor") is taylor}
    assert_as_one(table, found(table, tmp_path), tmp_path)


@needs_deepspeed
@pytest.mark.slow
def test_what_deepspeed_has_divided_is_saved_whole(tmp_path):
    table = {}
    for name in ("wanda", "lora"):
        criterion, two, one, more = OF_DEEPSPEED[name]
        table[name] = (criterion, two, one, {**more, "save": f"tuned-{name}"})
    results = found(table, tmp_path)
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned-wanda")
    plan = PrunePlan.remove(trace(tuned), results[0]["wanda"]["plan"])
    assert reshape(tuned, plan).model.layers[1].mlp.down_proj.weight.shape == (32, 12)
    adapters = load_file(tmp_path / "tuned-lora" / "adapter_model.safetensors")
    assert adapters and all(tensor.numel() for tensor in adapters.values())


@needs_deepspeed
@pytest.mark.slow
def test_what_deepspeed_holds_is_not_cut(tmp_path):
    jobs = {"always": job("lora", 2, 1, deepspeed=3, compact="always"), "auto": job("lora", 2, 1, deepspeed=2)}
    for result in together.launch(jobs, tmp_path):
        assert "cannot be made smaller while it is trained" in result["always"]["error"]
        assert "DEEPSPEED spreads" in result["auto"]["notes"][0] or "DeepSpeed keeps" in result["auto"]["notes"][0]


@needs_deepspeed
@pytest.mark.slow
def test_a_training_by_deepspeed_is_resumed(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path / "out")}
    jobs = {
        "whole": job("lora", 2, 1, options=saving, deepspeed=3),
        "again": job("lora", 2, 1, options=saving, deepspeed=3, resume=str(tmp_path / "out" / "checkpoint-3")),
    }
    saving = {**saving, "output_dir": str(tmp_path / "all")}
    jobs["all"] = job("wanda", 2, 1, options=saving, deepspeed=3, adapters=False)
    jobs["all again"] = {**jobs["all"], "resume": str(tmp_path / "all" / "checkpoint-3")}
    results = together.launch(jobs, tmp_path)
    for whole, again in [(r[n], r[m]) for r in results for n, m in (("whole", "again"), ("all", "all again"))]:
        assert whole["plan"] == again["plan"]
        assert all(torch.equal(whole["scores"][n], again["scores"][n]) for n in whole["scores"])


@pytest.mark.slow
def test_a_training_of_two_processes_is_resumed(tmp_path):
    saving = {"save_strategy": "steps", "save_steps": 1, "output_dir": str(tmp_path / "out")}
    jobs = {
        "whole": job("lora", 2, 1, options=saving),
        "again": job("lora", 2, 1, options=saving, resume=str(tmp_path / "out" / "checkpoint-3")),
    }
    for whole, again in [(r["whole"], r["again"]) for r in together.launch(jobs, tmp_path)]:
        assert whole["plan"] == again["plan"]
        assert all(torch.equal(whole["scores"][n], again["scores"][n]) for n in whole["scores"])


@pytest.mark.slow
def test_what_processes_must_have_alike(tmp_path):
    jobs = {
        "spec": job("magnitude", 2, 1, spoilt="spec"),
        "scores": job("magnitude", 2, 1, spoilt="scores"),
    }
    for result in together.launch(jobs, tmp_path):
        assert "DistributedError: the 2 processes of this training differ" in result["spec"]["error"]
        assert "disagree on what to remove at step 2" in result["scores"]["error"]


@pytest.fixture
def arguments(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none")


def test_one_device_and_copies_in_processes_pass(llama, arguments):
    check_parallel(arguments, llama)


def test_copies_in_threads_are_refused(llama, arguments):
    _ = arguments.device
    arguments._n_gpu = 2
    with pytest.raises(DistributedError, match=r"2 devices in threads .*'accelerate launch'"):
        check_parallel(arguments, llama)


def test_flat_parameters_are_refused(llama, arguments, monkeypatch):
    monkeypatch.setattr(parallel, "FullyShardedDataParallel", type(llama))
    with pytest.raises(DistributedError, match="fsdp_version: 2"):
        check_parallel(arguments, llama)


@pytest.mark.parametrize("kind", ["FSDP", "DEEPSPEED"])
def test_a_whole_run_is_refused_where_models_are_divided(kind, llama, monkeypatch):
    monkeypatch.setenv(f"ACCELERATE_USE_{kind}", "true")
    with pytest.raises(DistributedError, match=f"started for {kind}, .* --multi_gpu"):
        prune(llama, {"targets": TARGETS})


def test_tensor_parallelism_is_refused(llama, arguments, monkeypatch):
    monkeypatch.setattr(parallel, "DTensor", torch.nn.Parameter)
    with pytest.raises(DistributedError, match="without tp_plan"):
        check_parallel(arguments, llama)
