"""LoRAPrune Eq. 10 and 4 against the full d × k matrices in float64."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from graphprune.errors import CriterionError
from graphprune.importance import Lora, LoraFactors, Signal, _tiles, build


def observed(toy, dtype=torch.float64, transposed=()):
    """Everything adapted but biases; and the float64 inputs of Eq. 10 by tensor: surrogate, W + s·BA."""
    weights = toy.tensors(seed=1)
    lora, surrogate, merged = {}, {}, {}
    for seed, (name, weight) in enumerate(weights.items()):
        if weight.ndim > 1:
            lora[name], surrogate[name], update = toy.factors(
                weight.shape, seed, transposed=name in transposed, dtype=dtype
            )
            merged[name] = weight + update
    seen = toy.Seen({n: w.to(dtype) for n, w in weights.items()}, lora=lora)
    return seen, {name: surrogate[name] * merged[name] for name in surrogate}


@pytest.mark.parametrize("index", range(4))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_paper_is_the_sum_of_squares_over_all_adapted_tensors(toy, index, dtype):
    group = toy.groups[index]
    seen, product = observed(toy, dtype)
    expected = toy.unit_sums(group, {n: p**2 for n, p in product.items()}, product).sum(dim=0)
    scores = Lora(Lora.options_model()).score(group, seen)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("index", range(4))
def test_reference_is_the_sum_of_normalised_absolute_values(toy, index):
    group = toy.groups[index]
    seen, product = observed(toy)
    vectors = toy.unit_sums(group, {n: p.abs() for n, p in product.items()}, product)
    expected = (vectors / vectors.norm(dim=1, keepdim=True)).sum(dim=0)
    scores = build({"name": "lora", "variant": "reference"}).score(group, seen)
    torch.testing.assert_close(scores, expected.float())


@pytest.mark.parametrize("index", range(4))
def test_tensors_that_are_stored_transposed(toy, index):
    group = toy.groups[index]
    seen, product = observed(toy, transposed=("q.weight", "o.weight", "qkv.weight", "up", "down"))
    expected = toy.unit_sums(group, {n: p**2 for n, p in product.items()}, product).sum(dim=0)
    torch.testing.assert_close(build("lora").score(group, seen), expected.float())


@pytest.mark.parametrize("index", range(4))
def test_tiles_change_nothing(toy, index, monkeypatch):
    seen, _ = observed(toy)
    whole = build("lora").score(toy.groups[index], seen)
    monkeypatch.setattr(_tiles, "_SMALLEST", 1)
    torch.testing.assert_close(build("lora").score(toy.groups[index], seen), whole)


def test_no_matrix_of_the_weights_size_is_ever_built(toy):
    d, k, r = 1024, 2048, 4
    m = toy.member("w", 1, 16, k, (0, 128, (128, 1)), consumes=True)
    group = toy.grouped.model_copy(update={"members": (m,), "size": 16})
    factors = LoraFactors(torch.ones(r, k), torch.ones(d, r), torch.ones(r, k), torch.ones(d, r), 2.0)
    seen = toy.Seen({"w": torch.ones(d, k)}, lora={"w": factors})
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            is_view = func.is_view or func in (torch.ops.aten._unsafe_view.default, torch.ops.aten.detach.default)
            if isinstance(out, torch.Tensor) and not is_view:
                largest = max(largest, out.numel())
            return out

    with Largest():
        scores = build("lora").score(group, seen)
    # The two tiles of a computation, weight with update and surrogate, are one piece of memory.
    assert largest <= d * k // 8
    # Every element: (r + r − r) · (1 + 2r), squared.
    torch.testing.assert_close(scores, torch.full((16,), 128.0 * d * (r * (1 + 2 * r)) ** 2))


def test_with_fresh_adapters_the_surrogate_is_grad_b_times_a(toy):
    weights = toy.tensors(seed=3)
    factors, _, _ = toy.factors(weights["qkv.weight"].shape, seed=4)
    fresh = LoraFactors(
        factors.a, torch.zeros_like(factors.b), torch.zeros_like(factors.a), factors.grad_b, scaling=2.0
    )
    seen = toy.Seen(weights, lora={"qkv.weight": fresh})
    saliency = {"qkv.weight": ((factors.grad_b @ factors.a) * weights["qkv.weight"]) ** 2}
    expected = toy.unit_sums(toy.fused, saliency, saliency)[0]
    torch.testing.assert_close(build("lora").score(toy.fused, seen), expected.float())


def test_tensors_without_adapter_contribute_nothing(toy):
    seen, product = observed(toy)
    del seen.signals["lora"]["o.weight"], seen.signals["lora"]["k.weight"]
    expected = toy.unit_sums(toy.grouped, {"q.weight": product["q.weight"] ** 2}, ["q.weight"])[0]
    torch.testing.assert_close(build("lora").score(toy.grouped, seen), expected.float())


def test_a_group_without_adapters_is_an_error_that_names_it(toy):
    seen = toy.Seen(toy.tensors(seed=1))
    with pytest.raises(CriterionError, match=r"adapter .* group 'layer/fused', found none on qkv\.weight, out\.weight"):
        build("lora").score(toy.fused, seen)


def test_a_matrix_with_zero_gradients_counts_nothing_in_the_reference(toy):
    weights = toy.tensors(seed=1)
    zero = LoraFactors(torch.ones(2, 6), torch.zeros(15, 2), torch.zeros(2, 6), torch.zeros(15, 2), 1.0)
    seen = toy.Seen(weights, lora={"qkv.weight": zero})
    assert build({"name": "lora", "variant": "reference"}).score(toy.fused, seen).tolist() == [0.0, 0.0]


def test_half_precision_is_computed_in_float32(toy):
    seen, _ = observed(toy, torch.bfloat16)
    tiny = seen.signals["lora"]["qkv.weight"]
    seen.signals["lora"] = {
        "qkv.weight": LoraFactors(tiny.a, tiny.b * 0, tiny.grad_a * 0, tiny.grad_b * 1e-18, scaling=1.0)
    }
    scores = build("lora").score(toy.fused, seen)
    assert scores.dtype == torch.float32
    assert (scores > 0).all(), "squares of 1e-18 fit into float32"


def test_it_needs_adapters_and_weights():
    assert build("lora").signals == {Signal.LORA, Signal.WEIGHT}
