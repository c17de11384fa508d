"""``graphprune quickstart``."""

import io

import pytest
from rich.console import Console
from transformers import AutoModelForCausalLM

from graphprune import demo
from graphprune.cli.quickstart import _table, _unused
from graphprune.report import Measures, Report
from graphprune.specfile import load_spec


def test_a_folder_with_something_in_it_is_refused_first(refused, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    message = refused("quickstart", "--out", tmp_path)
    assert "is not empty (1 entries, such as 'mine.txt')" in message
    assert "loading" not in message


def test_trying_twice_takes_the_next_free_folder(tmp_path):
    first = tmp_path / "quickstart"
    assert _unused(first) == first
    first.mkdir()
    (tmp_path / "quickstart-2").mkdir()
    assert _unused(first) == tmp_path / "quickstart-3"


def test_its_recipe_prunes_the_demo_to_half_and_fits_its_context():
    spec = load_spec("recipe:quickstart")
    assert [(t.role, t.ratio) for t in spec.targets] == [(("attention.group",), 0.5), (("mlp.channel",), 0.5)]
    assert spec.training.mode == "joint"
    assert spec.training.sequence_length <= 256


def test_the_table_has_costs_and_quality_before_and_after():
    before = Measures(
        parameters=2_000_000, weight_bytes=8_000_000, sequence_length=10, macs=30_000_000, cache_bytes=40_000
    )
    after = before.model_copy(update={"parameters": 1_000_000, "weight_bytes": 4_000_000, "macs": 10_000_000})
    report = Report(
        model="m", before=before, after=after, perplexity_before=10.0, perplexity_pruned=30.0, perplexity_tuned=12.5
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(_table(report))
    lines = console.export_text().splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:4]] for line in lines if line.startswith("│")]
    assert cells == [
        ["parameters", "2,000,000", "1,000,000"],
        ["weights, MB", "8.0", "4.0"],
        ["million MACs per token", "3.00", "1.00"],
        ["KV cache, kB per token", "4.00", "4.00"],
        ["perplexity, held-out text", "10.00", "12.50"],
        ["the same units gone, not tuned", "", "30.00"],
    ]


@pytest.mark.slow
def test_the_whole_way_in_a_few_steps(run, tmp_path):
    result = run("quickstart", "--out", tmp_path / "small", "--steps", 4)
    assert result.exit_code == 0, result.output
    assert "targets[1]: mlp.channel, 6 groups, layers 0-5: 3072 -> 1536 units" in result.stdout
    assert "perplexity, held-out text" in result.stdout
    assert f"from_pretrained('{tmp_path / 'small'}')" in result.stdout
    small = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    whole = AutoModelForCausalLM.from_pretrained(demo.model_path())
    assert small.config.num_key_value_heads == whole.config.num_key_value_heads // 2
    assert small.config.intermediate_size == whole.config.intermediate_size // 2
