"""What optimizers keep of a parameter, cut."""

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor

from graphprune.engine.moments import cut_state, mixed, strange

KEPT = {0: torch.tensor([0, 2, 3]), 1: torch.tensor([1, 4])}


def stepped(make, parameter, gradients):
    optimizer = make([parameter])
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return optimizer


def draw(shape, count=3):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def of_transformers(parameters):
    return Adafactor(parameters, lr=1e-2, scale_parameter=False, relative_step=False, clip_threshold=1e9)


def of_torch(parameters):
    return torch.optim.Adafactor(parameters, lr=1e-2, d=1e9)


def factors(state):
    """Both vectors, without averaged axes."""
    if "row_var" in state:
        return state["row_var"].squeeze(-1), state["col_var"].squeeze(-2)
    return state["exp_avg_sq_row"], state["exp_avg_sq_col"]


def matrix(state):
    """What the two vectors stand for."""
    row, column = factors(state)
    return row.unsqueeze(-1) * column.unsqueeze(-2) / row.mean(-1)[..., None, None]


def test_moments_are_sliced_and_counters_kept():
    state = {"step": torch.tensor(3.0), "exp_avg": torch.arange(24.0).reshape(4, 6), "count": 2, "nothing": None}
    cut = cut_state(state, (4, 6), KEPT)
    assert torch.equal(cut["exp_avg"], state["exp_avg"][KEPT[0]][:, KEPT[1]])
    assert (cut["step"], cut["count"], cut["nothing"]) == (3.0, 2, None)
    assert strange(state, (4, 6)) is None and not mixed(state, (4, 6))


@pytest.mark.parametrize("make", [of_transformers, of_torch])
@pytest.mark.parametrize("kept", [{0: KEPT[0]}, {1: KEPT[1]}, KEPT], ids=["rows", "columns", "both"])
@pytest.mark.parametrize("shape", [(4, 6), (6, 6), (6, 1), (1, 6)])
def test_factored_second_moments_stand_for_the_part_that_is_left(make, kept, shape):
    kept = {dim: index.clamp(max=shape[dim] - 1).unique() for dim, index in kept.items()}
    parameter = nn.Parameter(torch.randn(shape))
    state = stepped(make, parameter, draw(shape)).state[parameter]
    assert strange(state, shape) is None and mixed(state, shape)
    cut = cut_state(state, shape, kept)
    expected = matrix(state)
    for dim, index in kept.items():
        expected = expected.index_select(dim, index)
    torch.testing.assert_close(matrix(cut), expected)
    row, column = factors(cut)  # means of one matrix
    torch.testing.assert_close(row.mean(), column.mean())


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_factors_of_a_stack_of_matrices(dim):
    shape = (3, 4, 6)
    parameter = nn.Parameter(torch.randn(shape))
    state = stepped(of_transformers, parameter, draw(shape)).state[parameter]
    cut = cut_state(state, shape, {dim: torch.tensor([0, 2])})
    torch.testing.assert_close(matrix(cut), matrix(state).index_select(dim, torch.tensor([0, 2])))


@pytest.mark.parametrize("make", [of_transformers, lambda p: torch.optim.Adafactor(p, lr=1e-2, d=1e9, eps=(None, 1.0))])
def test_beside_slices_that_were_silent_all_along_every_step_is_the_masked_one(make):
    """Without clipping, and with the scale of the parameter left out: these average over the whole parameter."""
    shape = (4, 6)
    silent = torch.zeros(shape)
    silent[torch.meshgrid(*KEPT.values(), indexing="ij")] = 1.0
    gradients = [g * silent for g in draw(shape, 6)]
    whole = nn.Parameter(torch.full(shape, 0.1))
    masked = stepped(make, whole, gradients[:3])
    part = nn.Parameter(whole.detach()[KEPT[0]][:, KEPT[1]].clone())
    small = make([part])
    small.state[part] = cut_state(
        {n: v.clone() if isinstance(v, torch.Tensor) else v for n, v in masked.state[whole].items()}, shape, KEPT
    )
    for gradient in gradients[3:]:
        whole.grad, part.grad = gradient, gradient[KEPT[0]][:, KEPT[1]].clone()
        masked.step(), small.step()
    torch.testing.assert_close(part, whole[KEPT[0]][:, KEPT[1]], rtol=1e-5, atol=1e-6)


def test_nothing_was_seen_yet():
    state = {"exp_avg_sq_row": torch.zeros(4), "exp_avg_sq_col": torch.zeros(6)}
    cut = cut_state(state, (4, 6), KEPT)
    assert cut["exp_avg_sq_row"].tolist() == [0.0] * 3 and cut["exp_avg_sq_col"].tolist() == [0.0] * 2


@pytest.mark.parametrize(
    ("state", "name"),
    [
        ({"rows": torch.zeros(4)}, "rows"),
        ({"row": torch.zeros(4)}, "row"),
        ({"row": torch.zeros(4), "col": torch.zeros(4)}, "row"),
        ({"momentum": torch.zeros(4, 6, dtype=torch.uint8)}, "momentum"),
        ({"state1": torch.zeros(4, 6, dtype=torch.uint8), "absmax1": torch.zeros(1)}, "state1"),
        ({"projector": object()}, "projector"),
        ({"preconditioners": [torch.zeros(4, 4)]}, "preconditioners"),
    ],
)
def test_what_is_of_no_known_form_is_named(state, name):
    assert strange({"step": 1, **state}, (4, 6)) == name


def eight_bit(shape):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs the extra 'bitsandbytes'")
    bitsandbytes.optim.GlobalOptimManager.get_instance().initialize()  # Trainers leave settings by place in it
    parameter = nn.Parameter(torch.randn(shape))
    optimizer = stepped(lambda p: bitsandbytes.optim.AdamW8bit(p, lr=1e-2), parameter, draw(shape))
    return optimizer.state[parameter], bitsandbytes.functional.dequantize_blockwise


def test_codes_of_whole_blocks_stay_what_they_are():
    """Those of squares; of signed ones the code for -1 is missing, so a scale may shrink by a hundredth."""
    state, _ = eight_bit((64, 256))
    kept = torch.tensor([0, 5, 63])
    cut = cut_state(state, (64, 256), {0: kept})
    assert torch.equal(cut["absmax2"], state["absmax2"][kept])
    assert torch.equal(cut["state2"], state["state2"][kept])
    torch.testing.assert_close(cut["absmax1"], state["absmax1"][kept], rtol=0.01, atol=0)
    assert cut["qmap1"] is state["qmap1"] and cut["qmap2"] is state["qmap2"]


def test_codes_of_other_blocks_are_as_near_as_codes_are():
    state, decode = eight_bit((60, 100))
    assert strange(state, (60, 100)) is None and mixed(state, (60, 100))
    kept = {0: torch.arange(0, 60, 2), 1: torch.arange(1, 100, 3)}
    cut = cut_state(state, (60, 100), kept)
    for number in (1, 2):
        code = state[f"qmap{number}"]
        before = decode(state[f"state{number}"], absmax=state[f"absmax{number}"], code=code, blocksize=256)
        expected = before[kept[0]][:, kept[1]]
        after = decode(cut[f"state{number}"], absmax=cut[f"absmax{number}"], code=code, blocksize=256)
        assert after.shape == expected.shape and cut[f"state{number}"].dtype == torch.uint8
        assert (after - expected).abs().max() < 0.02 * expected.abs().max()


def test_small_parameters_of_an_8_bit_optimizer_have_plain_moments():
    state, _ = eight_bit((8, 8))
    assert cut_state(state, (8, 8), {0: torch.tensor([1])})["state1"].shape == (1, 8)
    assert not mixed(state, (8, 8))
