"""Proofs on tiny models of the zoo: a few cases always, all of them among the slow tests."""

from __future__ import annotations

import signal

import pytest

import graphprune as gp
from graphprune.testing import cases, example_inputs, parts_of, tiny_model

#: One case of each make: plain, fused, with biases, positions by bias, norms over and under heads, windows, mixtures of
#: experts, latent attention, state spaces, hybrids, decoder halves, encoders.
FEW = (
    "llama gpt2 bloom falcon olmo2 gemma3_text phi3 stablelm mixtral gpt_oss deepseek_v3 mamba2 bamba whisper bert"
).split()


#: What the proofs have found and nobody has mended yet.
KNOWN = {
    "big_bird@sparse": "layers are looked up by their number in the sparse attention's seeds",
    "deepseek_v3@groups": "the experts of a group are counted in numbers that do not follow",
    "minimax_m3_vl_text": "query heads and the indexer's",
    "musicgen": "position tables of the width of the model are not parameters",
    "musicgen_melody": "position tables of the width of the model are not parameters",
    "recurrent_gemma": "the recurrent state is made as wide as it was",
    "xlnet": "position encodings are made as wide as they were; memories are counted by layer",
    "zamba": "the residual stream together with the input of the shared block",
    "zaya": "the trace takes minutes",
}
SECONDS = 120


def _marks(case):
    known = [pytest.mark.xfail(reason=KNOWN[case], strict=False)] if case in KNOWN else []
    return [*known, *([] if case in FEW else [pytest.mark.slow])]


@pytest.fixture
def limited():
    """A forward or a trace that hangs ends the test, not the run."""

    def stop(*_):
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("limited")
@pytest.mark.parametrize("case", [pytest.param(c, marks=_marks(c)) for c in cases()])
def test_what_can_be_pruned_is_proved(case):
    model = tiny_model(case)
    inputs = example_inputs(model)
    proof = gp.prove(model, traced(model, inputs), inputs=inputs, generate=True)
    assert proof.ok, proof.problems


@pytest.mark.parametrize("case", FEW)
def test_what_the_names_of_modules_promise_can_be_pruned(case):
    model = tiny_model(case)
    inputs = example_inputs(model)
    for row in parts_of(model, traced(model, inputs), inputs):
        assert row.prunable == row.count, row


def traced(model, inputs):
    """The graph, from what the model says of its inputs; where that fails, from those of the zoo."""
    try:
        return gp.trace(model)
    except gp.GraphPruneError:
        return gp.trace(model, example_inputs=inputs)
