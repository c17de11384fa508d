"""Train the small decoder that graphprune bundles for its demo, and write everything the demo needs.

    python tools/train_demo_model.py --out graphprune/demo

The text is the standard library of the running interpreter (``demo_text.py``): the recipe needs no
download. One CPU core takes about three quarters of an hour; ``--checkpoint FILE`` makes the run resumable.
The result depends on ``--seed``, ``--steps``, the CPython patch version and, in the last digits, on the
torch build.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import platform
import shutil
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers
from demo_text import Document, standard_library, take
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SEPARATOR = "<|endoftext|>"
CONTEXT = 256
VOCAB_SIZE = 1024
BATCH_SIZE = 16
PEAK_LEARNING_RATE = 3e-3
WARMUP_STEPS = 100
CALIBRATION_BYTES = 250_000
HELD_OUT_BYTES = 50_000


def train_tokenizer(documents: list[Document]) -> PreTrainedTokenizerFast:
    """Byte-level BPE; token 0 separates documents and serves as bos, eos and pad."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[SEPARATOR], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=SEPARATOR,
        eos_token=SEPARATOR,
        pad_token=SEPARATOR,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def build_model(seed: int) -> LlamaForCausalLM:
    """2.6 M parameters; every width is still legal for the stock config class when it is halved."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=24,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def batches(tokens: torch.Tensor, seed: int, start: int, steps: int) -> Iterator[torch.Tensor]:
    """Windows of ``CONTEXT + 1`` tokens, shape (BATCH_SIZE, CONTEXT + 1), shuffled anew in every epoch.

    A batch is a function of ``seed`` and the step, so a resumed run sees the same ones.
    """
    per_epoch = (len(tokens) // CONTEXT - 2) // BATCH_SIZE
    order, offset = torch.empty(0), 0
    for step in range(start, steps):
        epoch, index = divmod(step, per_epoch)
        if index == 0 or step == start:
            generator = torch.Generator().manual_seed(seed * 1000 + epoch)
            order = torch.randperm(per_epoch * BATCH_SIZE, generator=generator)
            offset = int(torch.randint(CONTEXT, (1,), generator=generator))
        first = offset + order[index * BATCH_SIZE : (index + 1) * BATCH_SIZE] * CONTEXT
        yield tokens[first[:, None] + torch.arange(CONTEXT + 1)]


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to 2 % of the peak."""
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    progress = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return PEAK_LEARNING_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def train(
    model: LlamaForCausalLM, tokens: torch.Tensor, *, steps: int, stop: int, seed: int, checkpoint: Path | None
) -> None:
    """AdamW in bfloat16 autocast, up to step ``stop`` of a schedule of ``steps``.

    Prints the loss every 50 steps; saves to ``checkpoint`` every 100 steps and resumes from it.
    """
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}], betas=(0.9, 0.98)
    )
    start = 0
    if checkpoint and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        start = state["step"]
    model.train()
    began, running = time.monotonic(), 0.0
    for step, batch in enumerate(batches(tokens, seed, start, stop), start=start):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += loss.item()
        if (step + 1) % 50 == 0:
            rate = (step + 1 - start) / (time.monotonic() - began)
            print(f"step {step + 1}/{steps} loss {running / 50:.3f} {rate:.2f} steps/s", flush=True)
            running = 0.0
        if checkpoint and (step + 1) % 100 == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            torch.save(state, checkpoint)


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, text: str) -> tuple[float, float]:
    """``(perplexity, bits per byte)`` of ``text``, in windows of ``CONTEXT`` tokens that do not overlap.

    Each window starts with the separator, so every token of the text is predicted once and the perplexity is
    ``exp(mean negative log-likelihood)``.
    """
    ids = tokenizer(text, return_tensors="pt", verbose=False)["input_ids"][0]
    model.eval()
    total = 0.0
    for piece in ids.split(CONTEXT - 1):
        inputs = functional.pad(piece[:-1], (1, 0), value=tokenizer.bos_token_id)
        logits = model(input_ids=inputs[None], use_cache=False).logits[0]
        total += functional.cross_entropy(logits.double(), piece, reduction="sum").item()
    return math.exp(total / len(ids)), total / math.log(2) / len(text.encode())


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """A plain checkpoint folder: stored in float16, loaded in float32 because the config says so."""
    model.half().save_pretrained(folder)
    model.float().config.dtype = torch.float32
    model.config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def fill_card(tokens: torch.Tensor, documents: list[Document], scores: tuple[float, float], **facts: int) -> str:
    """The model card, ``demo_card.md``, with this run's numbers."""
    text = "\0".join(f"{document.name}\0{document.text}" for document in documents)
    template = Path(__file__).with_name("demo_card.md").read_text(encoding="utf-8")
    return template.format(
        **facts,
        perplexity=scores[0],
        bits=scores[1],
        batch=BATCH_SIZE,
        context=CONTEXT,
        epochs=facts["steps"] * BATCH_SIZE * CONTEXT / len(tokens),
        peak=PEAK_LEARNING_RATE,
        documents=len(documents),
        tokens=len(tokens),
        digest=hashlib.sha256(text.encode()).hexdigest()[:16],
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
    )


def evaluate(out: Path) -> tuple[float, float]:
    """Perplexity of the folder as a user loads it."""
    model = LlamaForCausalLM.from_pretrained(out / "model", local_files_only=True)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "model", local_files_only=True)
    scores = perplexity(model, tokenizer, (out / "held_out.txt").read_text(encoding="utf-8"))
    print(f"perplexity {scores[0]:.3f} per token, {scores[1]:.4f} bits per byte")
    return scores


def make(out: Path, *, steps: int, stop: int, seed: int, checkpoint: Path | None) -> None:
    """Train; once finished, write ``model/``, both texts, the card and CPython's licence under ``out``."""
    documents = standard_library()
    training = [document for document in documents if not document.held_out]
    held_out = [document for document in documents if document.held_out]
    tokenizer = train_tokenizer(training)
    ids = (tokenizer(document.text, verbose=False)["input_ids"] for document in training)
    tokens = torch.tensor([token for document in ids for token in (tokenizer.bos_token_id, *document)])
    model = build_model(seed)
    train(model, tokens, steps=steps, stop=stop, seed=seed, checkpoint=checkpoint)
    if stop < steps:
        return

    out.mkdir(parents=True, exist_ok=True)
    save(model, tokenizer, out / "model")
    calibration = take(training, CALIBRATION_BYTES, longest=40_000)
    (out / "calibration.txt").write_text(calibration, encoding="utf-8", newline="\n")
    unseen = take(held_out, HELD_OUT_BYTES, longest=16_000)
    (out / "held_out.txt").write_text(unseen, encoding="utf-8", newline="\n")
    facts = {"steps": steps, "seed": seed, "parameters": model.num_parameters()}
    (out / "README.md").write_text(fill_card(tokens, training, evaluate(out), **facts), encoding="utf-8")
    licence = Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
    if licence.exists():  # some distributions keep it elsewhere
        shutil.copy(licence, out / "LICENSE-CPython.txt")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the package data")
    parser.add_argument("--steps", type=int, default=2300)
    parser.add_argument("--stop", type=int, help="leave off at this step, a multiple of 100; needs --checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=Path, help="save here every 100 steps, and resume from it")
    parser.add_argument("--evaluate", action="store_true", help="only measure the perplexity of what OUT holds")
    args = parser.parse_args()
    torch.set_num_threads(1)  # the order of sums, and so the result, depends on it
    if args.evaluate:
        evaluate(args.out)
    else:
        make(args.out, steps=args.steps, stop=args.stop or args.steps, seed=args.seed, checkpoint=args.checkpoint)


if __name__ == "__main__":
    main()
