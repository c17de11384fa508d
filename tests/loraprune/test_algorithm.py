"""Algorithm 1 in a Trainer, step by step against the same written out with full matrices in float64.

Eq. 13 (masks on what the projections give, base and adapter alike), 10 and 4 (scores of the accumulated and clipped
gradients, before the update, as in the authors' code), 11 (average from zeros), the cubic schedule, 12 (the lowest of
each layer, for good), AdamW. What it predicts is the plan after every step.
"""

from __future__ import annotations

import math

import peft
import pytest
import torch
from torch.func import functional_call
from transformers import Trainer, TrainerCallback, TrainingArguments

from graphprune.engine.callback import PruneCallback
from graphprune.engine.data import load_blocks
from graphprune.schema import PruneSpec
from graphprune.trace import trace
from tests.engine.conftest import VOCAB, make_llama
from tests.loraprune.formulas import FORMULAS, llama

STEPS, WARMUP, COOLDOWN, EVERY, DECAY, RATIO = 12, 0.25, 0.25, 2, 0.8, 0.5
RANK, ALPHA, LEARNING_RATE, WEIGHT_DECAY, CLIP = 3, 7, 2e-2, 0.05, 0.05
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class ByHand:
    """LoRAPrune's whole state."""

    def __init__(self, model, factors, scaling, owners, variant):
        self.model, self.factors, self.scaling, self.variant = model, factors, scaling, variant
        self.weights = {name: model.get_parameter(name).detach() for name in factors}
        self.owners = owners
        self.size = {group: int(next(iter(o.values())).max()) + 1 for group, o in owners.items()}
        self.average = {group: torch.zeros(size, dtype=torch.float64) for group, size in self.size.items()}
        self.mask = {group: torch.ones(size, dtype=torch.float64) for group, size in self.size.items()}
        flat = [factor for pair in factors.values() for factor in pair]
        self.optimizer = torch.optim.AdamW(flat, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def step(self, number, batches):
        self.optimizer.zero_grad()
        hooks = list(self.masks())
        for ids in batches:
            merged = {n: self.weights[n] + self.scaling * b @ a for n, (a, b) in self.factors.items()}
            loss = functional_call(self.model, merged, kwargs={"input_ids": ids, "labels": ids}).loss
            (loss / len(batches)).backward()
        for hook in hooks:
            hook.remove()
        self.clip()
        for group, score in self.scores().items():
            self.average[group] = DECAY * self.average[group] + (1 - DECAY) * score
        self.prune(number)
        self.optimizer.step()

    def masks(self):
        """z = (xW + s·xBA) ⊙ M, of every matrix whose rows belong to units."""
        for group, owners in self.owners.items():
            for name, owner in owners.items():
                if name.split(".")[-2] not in ("o_proj", "down_proj"):
                    mask = self.mask[group][owner[:, 0]]
                    module = self.model.get_submodule(name.removesuffix(".weight"))
                    yield module.register_forward_hook(lambda _module, _args, z, mask=mask: z * mask)

    def clip(self):
        gradients = [factor.grad for pair in self.factors.values() for factor in pair]
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients))
        assert norm > CLIP, "clipping must do something here"
        for gradient in gradients:
            gradient *= CLIP / (norm + 1e-6)

    @torch.no_grad()
    def scores(self):
        surrogate = {n: b.grad @ a + b @ a.grad - b.grad @ a.grad for n, (a, b) in self.factors.items()}
        merged = {n: self.weights[n] + self.scaling * b @ a for n, (a, b) in self.factors.items()}
        formula = FORMULAS[self.variant]
        return {g: formula(surrogate, merged, owners, self.size[g]) for g, owners in self.owners.items()}

    def prune(self, number):
        first, last = WARMUP * STEPS, STEPS - COOLDOWN * STEPS
        if not (first < number <= last and (number % EVERY == 0 or number == last)):
            return
        share = RATIO - RATIO * (1 - (number - first) / (last - first)) ** 3
        for group, mask in self.mask.items():
            gone = round(self.size[group] * share + 1e-9)
            order = torch.where(mask == 0, -1.0, self.average[group]).argsort()  # what is gone stays so
            mask[order[:gone]] = 0.0

    def removed(self):
        found = {group: tuple((mask == 0).nonzero().flatten().tolist()) for group, mask in self.mask.items()}
        return {group: units for group, units in found.items() if units}


class Diary(TrainerCallback):
    """Plan and averages at the end of every step."""

    def __init__(self, pruning):
        self.pruning, self.plans, self.scores = pruning, [], []

    def on_step_end(self, args, state, control, **kwargs):
        self.plans.append(self.pruning.plan.removed)
        self.scores.append(self.pruning.scores)


def tuned_and_pruned(variant, rslora, folder):
    """A Trainer's run: the model before, its factors before and after by matrix, micro-batches, and the diary."""
    model = make_llama().double()
    graph = trace(model)
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_rslora=rslora, target_modules=PROJECTIONS)
    wrapped = peft.get_peft_model(model, config).double()
    torch.manual_seed(5)
    for name, factor in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(factor, std=0.05)
    layers = {n: m for n, m in wrapped.get_base_model().named_modules() if hasattr(m, "lora_A")}

    def factors():
        pairs = {f"{n}.weight": (m.lora_A["default"].weight, m.lora_B["default"].weight) for n, m in layers.items()}
        return {n: [factor.detach().clone().requires_grad_() for factor in pair] for n, pair in pairs.items()}

    before, batches = factors(), []
    wrapped.register_forward_pre_hook(lambda m, args, kw: batches.append(kw["input_ids"]), with_kwargs=True)
    spec = PruneSpec.model_validate(
        {
            "targets": [
                {"role": "attention.group", "ratio": RATIO},
                {"role": "mlp.channel", "ratio": RATIO, "layers": "1:"},
            ],
            "criterion": {"name": "lora", "variant": variant, "average": DECAY},
            "schedule": {"warmup": WARMUP, "cooldown": COOLDOWN, "every": EVERY},
            "training": {"compact": "never"},  # with the masks of Eq. 13, under which what is gone is still averaged
        }
    )
    callback = PruneCallback(spec, graph)
    diary = Diary(callback)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    tokens = torch.randint(0, VOCAB, (24, 16), generator=torch.Generator().manual_seed(0))
    data = load_blocks(tokens, sequence_length=16)
    Trainer(model=wrapped, args=arguments, train_dataset=data, callbacks=[callback, diary]).train()
    return before, factors(), batches, diary


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("variant", ["paper", "reference"])
def test_algorithm_1(variant, rslora, tmp_path):
    before, after, batches, diary = tuned_and_pruned(variant, rslora, tmp_path)
    owners = {}
    for layer in range(3):
        found = llama(layer, head=4, channels=24, hidden=32)
        owners |= {group: o for group, o in found.items() if layer or "attention" in group}
    scaling = ALPHA / math.sqrt(RANK) if rslora else ALPHA / RANK
    hand = ByHand(make_llama().double().requires_grad_(False), before, scaling, owners, variant)
    sizes = []
    for step in range(1, STEPS + 1):
        hand.step(step, batches[2 * step - 2 : 2 * step])
        assert diary.plans[step - 1] == hand.removed(), f"step {step}"
        sizes.append(len(diary.plans[step - 1].get("model.layers.1.mlp/mlp.channel", ())))
        if step <= 9:  # when the target is reached, nothing is scored any more
            for group, average in hand.average.items():
                torch.testing.assert_close(diary.scores[step - 1][group], average.float(), rtol=1e-5, atol=0)
    assert sizes == [0, 0, 0, 5, 5, 11, 11, 12, 12, 12, 12, 12] and len(diary.plans[-1]) == 5
    for name, (a, b) in after.items():
        torch.testing.assert_close(a, hand.factors[name][0])
        torch.testing.assert_close(b, hand.factors[name][1])
