"""What kernels, devices and runtimes ask of sizes."""

import pytest

from graphprune.export.limits import possible
from graphprune.export.rules import rules_for
from graphprune.schema import Export, Target
from graphprune.trace import trace
from tests.decoders import tiny


def graph_of(name, **changes):
    return trace(tiny(name, **changes))


def sizes(graph, role, **export):
    """How many units of the first group of a role may stay when some go."""
    group = graph.select(role=role).groups[0]
    return possible(group, Target(role=role, count=0), rules_for(group, graph, Export(**export)))


def test_widths_are_multiples_in_the_matrices_not_in_units():
    graph = graph_of("llama", intermediate_size=256, head_dim=16)
    assert sizes(graph, "mlp.channel", multiple_of=64) == [64, 128, 192]
    assert sizes(graph, "attention.group", multiple_of=16) == [1, 2, 3]  # a KV head is 16 wide
    assert sizes(graph, "attention.group", multiple_of=32) == [2]
    assert sizes(graph, "layer", multiple_of=64) == [1, 2]  # layers have no width


def test_experts_have_a_width_and_a_number():
    graph = graph_of("mixtral", intermediate_size=128, num_local_experts=8)
    assert sizes(graph, "moe.channel", multiple_of=64) == [64]
    assert sizes(graph, "moe.expert", multiple_of=64) == [2, 3, 4, 5, 6, 7]  # no fewer than the router chooses
    assert sizes(graph, "moe.expert", tensor_parallel=2) == [2, 4, 6]
    assert sizes(graph, "moe.channel", tensor_parallel=48) == [48, 96]


@pytest.mark.parametrize(
    ("devices", "kept"),
    # KV heads are divided, or repeated where there are fewer than devices, and so many devices divide all query heads.
    [(2, [1, 2, 4, 6]), (4, [2, 4]), (8, [4]), (3, [3, 6])],
)
def test_kv_heads_are_divided_or_repeated(devices, kept):
    graph = graph_of("llama", num_attention_heads=16, num_key_value_heads=8, hidden_size=48)
    assert sizes(graph, "attention.group", tensor_parallel=devices) == kept


def test_query_heads_are_divided():
    graph = graph_of("llama", num_attention_heads=24, num_key_value_heads=4)
    assert sizes(graph, "attention.query", tensor_parallel=8) == [2, 4]
    assert sizes(graph, "attention.query", tensor_parallel=4) == [1, 2, 3, 4, 5]
    assert sizes(graph, "hidden", tensor_parallel=8) == list(range(1, 48))  # not divided


def test_rows_of_quantised_types_are_whole_blocks():
    graph = graph_of("llama", hidden_size=48, intermediate_size=1024, num_attention_heads=8, head_dim=64)
    assert sizes(graph, "mlp.channel", runtimes="llama.cpp") == [256, 512, 768]
    assert sizes(graph, "attention.group", runtimes="llama.cpp") == [2]  # 2 query heads of 64 for each of 4
    assert sizes(graph, "hidden", runtimes="llama.cpp") == list(range(1, 48))  # no type had whole blocks before
    narrow = graph_of("llama", intermediate_size=96)
    assert sizes(narrow, "mlp.channel", runtimes="llama.cpp") == [32, 64]
    assert sizes(narrow, "mlp.channel", runtimes="vllm") == list(range(1, 96))
