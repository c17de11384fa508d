"""What benchmarks/gpu.py checks on a device: each check takes a size and a device, and says what it found or raises."""

from __future__ import annotations

import copy
import importlib.util
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from gpu_models import DTYPES, build, config_of, spec_of, traced

import graphprune as gp
from graphprune.engine.adapters import attach
from graphprune.engine.callback import PruneCallback
from graphprune.engine.data import load_blocks
from graphprune.engine.gradients import Gradients
from graphprune.engine.training import train
from graphprune.observe import Observer
from graphprune.packed import packed_in
from graphprune.score import score_groups
from graphprune.validate import resolve_targets

LENGTH, MANY = 32, 32
#: Largest difference of logits, over the largest logit: what rounding to a dtype can do in a few layers.
ROUNDING = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
CRITERIA: dict[str, Any] = {
    "lora": "lora",
    "taylor": "taylor",
    "taylor, second order": {"name": "taylor", "order": "second"},
    "gate": "gate",
    "wanda": "wanda",
    "magnitude": "magnitude",
}


class SkipError(Exception):
    """A check that cannot be made here, and why."""


def masks(size: str, device: torch.device, dtype: str) -> str:
    """A masked model answers as the smaller one, and the smaller one was cut where it lies."""
    model, graph, config = _model(size, device, dtype)
    spec = spec_of("random")
    plan = gp.plan(graph, spec, gp.score(model, graph, spec))
    ids = _ids(config, 2, device)
    with torch.no_grad():
        whole = model(input_ids=ids).logits.float()
    with torch.no_grad(), gp.masked(model, plan, graph):
        expected = model(input_ids=ids).logits.float()
    _require(not torch.equal(whole, expected), "masks changed nothing")
    small = gp.reshape(model, plan, graph)
    with torch.no_grad():
        got = small(input_ids=ids).logits.float()
    _require({p.device.type for p in small.parameters()} == {device.type}, "the smaller model left the device")
    return _close(got, expected, ROUNDING[dtype])


def scores(size: str, device: torch.device, criterion: Any) -> str:
    """Scores on the device are those of the CPU."""
    model, graph, config = _model(size, torch.device("cpu"), "float32")
    batches = [{"input_ids": _ids(config, 2, torch.device("cpu"))} for _ in range(2)]
    spec, there = spec_of(criterion), copy.deepcopy(model).to(device)
    if criterion == "lora":  # the same factors on both sides, whose B is not zero
        model, there = (_adapted(m, graph, device_of) for m, device_of in ((model, "cpu"), (there, device)))
    return _alike(gp.score(there, graph, spec, batches), gp.score(model, graph, spec, batches), 1e-3)


def half(size: str, device: torch.device, criterion: Any) -> str:
    """Scores of a model in bfloat16 rank much as those of the same weights in float32."""
    model, graph, config = _model(size, device, "bfloat16")
    batches = [{"input_ids": _ids(config, 2, device)} for _ in range(2)]
    wide, spec = copy.deepcopy(model).float(), spec_of(criterion)
    got, expected = (gp.score(m, graph, spec, batches) for m in (model, wide))
    # Of a few heads two that are nearly equal may change places.
    worst = min(_spearman(got[name], expected[name]) for name in expected if len(expected[name]) >= MANY)
    _require(worst > 0.9, f"rank correlation with float32 is {worst:.3f}, expected more than 0.9")
    return f"rank correlation with float32 at least {worst:.3f}"


def scaler(size: str, device: torch.device, criterion: Any) -> str:
    """Scores under a GradScaler in float16 do not carry the loss scale."""
    model, graph, config = _model(size, device, "float32")
    spec, ids = spec_of(criterion), _ids(config, 2, device)
    groups = _groups(spec, graph)
    wrapped = _adapted(model, graph, device).train()
    found = []
    for scale in (None, 2.0**10):
        trained = [p for p in wrapped.parameters() if p.requires_grad]
        optimizer = torch.optim.SGD(trained, lr=0.0)
        grads = torch.amp.GradScaler(device.type, init_scale=scale or 1.0, enabled=scale is not None)
        judge = spec.criterion.build()
        with Observer.for_criterion(wrapped, graph, groups, judge) as seen:
            with torch.autocast(device.type, dtype=torch.float16):
                loss = wrapped(input_ids=ids, labels=ids, use_cache=False).loss
            grads.scale(loss).backward()
            if scale is not None:
                carried = Gradients(SimpleNamespace(scaler=grads, optimizer=optimizer)).loss_scale
                _require(carried == scale, f"the scaler was taken for one of {carried}, it has {scale}")
                seen.loss_scale = scale
            _require(seen.nonfinite() is None, f"{seen.nonfinite()} is not finite")
            found.append(score_groups(judge, groups, seen))
        wrapped.zero_grad()
    return _alike(found[1], found[0], 2e-2)


def quantised(size: str, device: torch.device, kind: str) -> str:
    """Tiled scores of codes are those of all of the weight as bitsandbytes dequantises it; masks equal a cut."""
    _needs_bitsandbytes()
    model, graph, config = _model(size, device, "bfloat16" if device.type == "cuda" else "float32", kind)
    spec, ids = spec_of("lora"), _ids(config, 2, device)
    groups = _groups(spec, graph)
    wrapped = _adapted(model, graph, device)
    judge = spec.criterion.build()
    with Observer.for_criterion(wrapped, graph, groups, judge) as seen:
        wrapped(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        got = score_groups(judge, groups, seen)
        expected = {group.name: _equation_10(group, seen).cpu() for group in groups}
    alike = _alike(got, expected, 1e-3)
    plan = gp.plan(graph, spec, got)
    with torch.no_grad(), gp.masked(wrapped, plan, graph):
        masked = wrapped(input_ids=ids, use_cache=False).logits.float()
    _require(bool(masked.isfinite().all()), "masked logits are not finite")
    if kind != "int8":  # codes that share a scale by blocks of a row stay masked
        return alike
    small = gp.reshape(wrapped, plan, graph)
    with torch.no_grad():
        cut = small(input_ids=ids, use_cache=False).logits.float()
    return f"{alike}; cut: {_close(cut, masked, ROUNDING['bfloat16'])}"


def _equation_10(group: gp.Group, seen: Observer) -> torch.Tensor:
    """LoRAPrune's score from whole matrices, of weights dequantised by the library's own functions."""
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant

    total: Any = 0
    for member in group.members:
        factors = seen.lora(member.tensor)
        layer: Any = seen.holder(member.tensor)
        if factors is None:
            continue
        if packed_in(layer).kind == "int8":  # type: ignore[union-attr]
            scales = layer.weight.SCB if layer.weight.SCB is not None else layer.state.SCB
            weight = int8_vectorwise_dequant(layer.weight.data, scales).double()
        else:
            weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).double()
        a, b, grad_a, grad_b = (t.double() for t in (factors.a, factors.b, factors.grad_a, factors.grad_b))
        surrogate = grad_b @ a + b @ grad_a - grad_b @ grad_a
        total = total + member.reduce((surrogate * (weight + factors.scaling * b @ a)).square())
    return torch.as_tensor(total).float()


def device_map(size: str, device: torch.device) -> str:
    """A model that Accelerate has placed is scored, masked and cut where its layers are."""
    model, graph, config = _model(size, torch.device("cpu"), "float32")
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        placed: Any = type(model).from_pretrained(folder, device_map="auto" if device.type == "cuda" else {"": "cpu"})
    places = {str(p.device) for p in placed.parameters()}
    batches = [{"input_ids": _ids(config, 2, torch.device("cpu"))}]
    spec = spec_of("taylor")
    got, expected = (gp.score(m, graph, spec, batches) for m in (placed, model))
    found = _alike(got, expected, 1e-3)
    plan = gp.plan(graph, spec, expected)
    ids = batches[0]["input_ids"].to(next(placed.parameters()).device)
    with torch.no_grad(), gp.masked(placed, plan, graph):
        masked = placed(input_ids=ids).logits.float()
    with torch.no_grad():
        cut = gp.reshape(placed, plan, graph)(input_ids=ids).logits.float()
    return f"on {', '.join(sorted(places))}: {found}; cut: {_close(cut, masked, ROUNDING['float32'])}"


def compaction(size: str, device: torch.device) -> str:
    """A joint run that cuts as it goes has the losses of one under masks, and chooses the same units."""
    runs = []
    for compact in ("always", "never"):
        model, graph, config = _model(size, device, "float32")
        training = {"mode": "joint", "steps": 8, "batch_size": 2, "sequence_length": LENGTH, "logging_steps": 1}
        spec = spec_of("lora", training={**training, "compact": compact}, schedule={"every": 2})
        torch.manual_seed(1)
        wrapped = attach(model, graph, _groups(spec, graph), spec.lora)
        callback = PruneCallback(spec, graph)
        ids = torch.randint(3, config.vocab_size, (16, LENGTH), generator=torch.Generator().manual_seed(2))
        data = load_blocks(ids, sequence_length=LENGTH)
        log = train(wrapped, data, spec, callbacks=[callback], progress=False)
        runs.append((callback.plan, torch.tensor([row["loss"] for row in log if "loss" in row])))
    (plan, losses), (expected, under_masks) = runs
    units = {(n, u) for n, found in plan.removed.items() for u in found}
    wanted = {(n, u) for n, found in expected.removed.items() for u in found}
    same = len(units & wanted) / len(wanted)
    _require(same > 0.95, f"only {same:.0%} of the units are the same as under masks")
    return f"{same:.1%} of the units; losses: {_close(losses, under_masks, 1e-3)}"


def mixed_precision(size: str, device: torch.device, name: str) -> str:
    """A transformers Trainer in mixed precision, with the callback in it, reaches the target."""
    if device.type != "cuda":
        raise SkipError("mixed precision of a Trainer needs a GPU")
    from transformers import Trainer, TrainingArguments

    model, graph, config = _model(size, device, "float32")
    spec = spec_of("lora", schedule={"every": 2})
    wrapped = attach(model, graph, _groups(spec, graph), spec.lora)
    callback = PruneCallback(spec, graph)
    ids = torch.randint(3, config.vocab_size, (16, LENGTH))
    data: Any = [{"input_ids": row, "labels": row} for row in ids]
    with tempfile.TemporaryDirectory() as folder:
        options: dict[str, Any] = {name: True, "max_steps": 8, "per_device_train_batch_size": 2, "disable_tqdm": True}
        arguments = TrainingArguments(output_dir=folder, save_strategy="no", report_to="none", **options)
        Trainer(model=wrapped, args=arguments, train_dataset=data, callbacks=[callback]).train()
    removed = {g.name: len(callback.plan.removed.get(g.name, ())) for g in _groups(spec, graph)}
    _require(
        all(removed[g.name] == g.size // 2 for g in _groups(spec, graph)), f"expected half of all units, got {removed}"
    )
    return f"{len(callback.events)} events, every group at its target"


def _model(size: str, device: torch.device, dtype: str, kind: str = "none") -> Any:
    """A model, its graph and its config; the same weights on every device."""
    torch.manual_seed(0)
    config = config_of(size, positions=256)
    graph = traced(config)
    if kind != "none":
        return build(config, graph, device, DTYPES[dtype], kind), graph, config
    model = build(config, graph, torch.device("cpu"), torch.float32, kind).eval()
    return model.to(device, DTYPES[dtype]), graph, config


def _adapted(model: Any, graph: gp.DependencyGraph, device: torch.device | str) -> Any:
    """With adapters whose B is not zero, the same on every device."""
    spec = spec_of("lora")
    wrapped: Any = attach(model, graph, _groups(spec, graph), spec.lora)
    chance = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=chance) * 0.02)
    return wrapped.to(device) if not getattr(model, "quantization_method", None) else wrapped


def _groups(spec: gp.PruneSpec, graph: gp.DependencyGraph) -> list[gp.Group]:
    return [g for target in resolve_targets(spec, graph) for g in target.groups]


def _ids(config: Any, count: int, device: torch.device) -> torch.Tensor:
    chance = torch.Generator().manual_seed(4)
    return torch.randint(3, config.vocab_size, (count, LENGTH), generator=chance).to(device)


def _alike(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> str:
    """The largest difference of scores within groups, over the group's largest score."""
    _require(set(got) == set(expected), "other groups were scored")
    off = max(float((got[n] - e).abs().max() / e.abs().max()) for n, e in expected.items())
    _require(off <= tolerance, f"scores are off by {off:.2g} of the largest, expected at most {tolerance:g}")
    return f"scores off by {off:.2g} of the largest"


def _close(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> str:
    off = float((got - expected).abs().max() / expected.abs().max())
    _require(off <= tolerance, f"off by {off:.2g} of the largest, expected at most {tolerance:g}")
    return f"off by {off:.2g}"


def _spearman(one: torch.Tensor, other: torch.Tensor) -> float:
    ranks = torch.stack([v.argsort().argsort().double() for v in (one, other)])
    return float(torch.corrcoef(ranks)[0, 1])


def _require(true: bool, otherwise: str) -> None:
    if not true:
        raise AssertionError(otherwise)


def _needs_bitsandbytes() -> None:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise SkipError("needs bitsandbytes")


def _with(check: Callable[..., str], given: Any) -> Callable[[str, torch.device], str]:
    return lambda size, device: check(size, device, given)


CHECKS: dict[str, Callable[[str, torch.device], str]] = {
    **{f"masked equals reshaped, {dtype}": _with(masks, dtype) for dtype in ROUNDING},
    **{f"scores equal those of the CPU, {name}": _with(scores, given) for name, given in CRITERIA.items()},
    **{f"bfloat16 scores rank alike, {name}": _with(half, given) for name, given in CRITERIA.items()},
    **{
        f"GradScaler, {name}": _with(scaler, CRITERIA[name])
        for name in ("lora", "taylor", "taylor, second order", "gate")
    },
    **{f"quantised, {kind}": _with(quantised, kind) for kind in ("int8", "nf4")},
    "device_map": device_map,
    "compaction equals masks": compaction,
    **{f"Trainer in mixed precision, {name}": _with(mixed_precision, name) for name in ("bf16", "fp16")},
}
