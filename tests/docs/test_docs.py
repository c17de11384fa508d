"""The documentation tells the truth: its code runs, its tables are those of the code, its links lead somewhere."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

import pytest
import typer.main
from transformers import AutoConfig, AutoModelForCausalLM
from typer.testing import CliRunner

import graphprune as gp
from graphprune import demo
from graphprune.cli import app
from graphprune.declared import DeclaredGroup
from graphprune.importance import criteria
from graphprune.schema import PruneSpec, Section
from graphprune.specfile import recipes
from graphprune.trace.rules import RULES
from tests.docs.blocks import FENCE, Reader, blocks, commands
from tests.docs.tables import TABLE, filled

ROOT = Path(__file__).resolve().parents[2]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", *DOCS]
RESULTS = ROOT / "docs" / "results.md"  # written last
GUIDES = [page for page in DOCS if page != RESULTS]  # measurements take hours and are not repeated here
HELD_OUT = 3_000  # characters: perplexities on a page are of a shortened text, which keeps the tests short


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.fixture(scope="session")
def demo_graph() -> gp.DependencyGraph:
    """Of the bundled decoder, which the specs of the documentation are for."""
    return gp.trace(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(demo.model_path())))


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Path:
    """Where a reader works: a model, two texts, and nothing that stays behind in this process."""
    shutil.copytree(demo.model_path(), tmp_path / "model")
    shutil.copy(demo.calibration_path(), tmp_path / "calibration.txt")
    text = demo.held_out_path().read_text(encoding="utf-8")[:HELD_OUT]
    (tmp_path / "held_out.txt").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(criteria, "_pending", None)
    monkeypatch.setattr(criteria, "_items", dict(criteria._items))
    rules, modules = dict(RULES), set(sys.modules)
    yield tmp_path
    RULES.clear()
    RULES.update(rules)
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_code_runs(page, desk, demo_graph, monkeypatch):
    # A fresh process takes seconds; checkpoints.md calls it by itself.
    monkeypatch.setattr("graphprune.engine.run.verify_folder", lambda *_, **options: 0.0)
    guide = page in GUIDES
    reader = Reader(page, demo_graph if guide else None, shell=guide)
    for block in blocks(page.read_text(encoding="utf-8")):
        reader.read(block)


@pytest.mark.parametrize("page", DOCS, ids=named)
def test_tables_are_those_of_the_code(page):
    text = page.read_text(encoding="utf-8")
    assert text == filled(text), f"{named(page)} is behind the code; run: python -m tests.docs.tables"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_exist_with_their_options(page):
    verbs = typer.main.get_command(app).commands
    for block in blocks(page.read_text(encoding="utf-8")):
        for verb, *words in commands(block.text) if block.language == "bash" else ():
            assert verb in verbs, f"{named(page)}:{block.line}: no verb {verb}"
            known = {o for p in verbs[verb].params for o in p.opts} | {"--help"}
            wrong = [w for w in words if w.startswith("--") and w.split("=")[0] not in known]
            assert not wrong, f"{named(page)}:{block.line}: graphprune {verb} has no {wrong}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if file == RESULTS:
            continue
        assert file.exists(), f"{named(page)} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{named(page)}: no heading for {target}"


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    heads = re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_files_tests_and_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for path, _, name in (m.partition("::") for m in re.findall(r"`((?:tests|graphprune|importance)/[\w/.:]+)`", text)):
        assert (ROOT / path).exists(), f"{named(page)} names {path}, which is not there"
        if name:
            functions = {n.name for n in ast.walk(ast.parse((ROOT / path).read_text())) if hasattr(n, "name")}
            assert name in functions, f"{named(page)} names {path}::{name}, which is not there"
    for name in re.findall(r"\bgp\.([a-zA-Z]\w*)", text):
        assert name in gp.__all__, f"{named(page)} names gp.{name}, which is not public"


# --- completeness ---------------------------------------------------------------------------------------


def tables_of(page: str) -> set[tuple[str, str]]:
    return {(m[2], m[3]) for m in TABLE.finditer((ROOT / "docs" / page).read_text(encoding="utf-8"))}


def test_every_section_of_a_spec_is_documented():
    homes = {PruneSpec.__module__, DeclaredGroup.__module__}
    sections = {c.__name__ for c in Section.__subclasses__() if c.__module__ in homes}
    assert {name for kind, name in tables_of("specs.md") if kind == "section"} == sections


def test_every_criterion_is_documented():
    assert {name for kind, name in tables_of("criteria.md") if kind == "criterion"} == set(criteria.names())


def test_every_verb_is_documented():
    verbs = typer.main.get_command(app).commands
    assert {name for kind, name in tables_of("cli.md") if kind == "verb"} == set(verbs)


@pytest.mark.parametrize("verb", typer.main.get_command(app).commands)
def test_options_are_those_that_help_prints(verb):
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text[text.index(f"<!-- table: verb {verb} -->") :].split("<!-- end of table -->")[0]
    shown = CliRunner().invoke(app, [verb, "--help"]).stdout
    told = set(re.findall(r"^  (?:-\w, )?(--[\w-]+)", shown, flags=re.MULTILINE)) - {"--help"}
    assert told == set(re.findall(r"`(--[\w-]+)`", section))


def test_every_recipe_is_documented():
    text = (ROOT / "docs" / "specs.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+)` \|", text.split("## Recipes")[1], flags=re.MULTILINE)) == set(recipes())


# --- the tests themselves -------------------------------------------------------------------------------


def test_a_page_that_is_wrong_is_noticed(desk, demo_graph):
    def read(page: str) -> None:
        reader = Reader(Path("page.md"), demo_graph, shell=True)
        for block in blocks(page):
            reader.read(block)

    read("```python\nx = 1\n```\n\n```python\nprint(x, 'and more')\n```\n\n<!-- output -->\n```text\n1 and ...\n```\n")
    read("<!-- not run: it would take a day -->\n```python\n1 / 0\n```\n")
    read("```yaml\nscope: global\n```\n\n```yaml\n- {role: moe.expert, count: 1}\n```\n")
    with pytest.raises(ZeroDivisionError):
        read("```python\n1 / 0\n```\n")
    with pytest.raises(AssertionError, match="the page promises"):
        read("```python\nprint(1)\n```\n\n<!-- output -->\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match="needs a reason"):
        read("<!-- not run -->\n```python\n1 / 0\n```\n")
    with pytest.raises(gp.GraphPruneError, match="unknown key"):
        read("```yaml\ntargets: [{role: mlp.channel, ratoi: 0.5}]\n```\n")
    with pytest.raises(gp.GraphPruneError, match="selects no group"):
        read("```yaml\ntargets: [{role: moe.expert, ratio: 0.5}]\n```\n")
    with pytest.raises(AssertionError, match="No such command"):
        read("```bash\ngraphprune prnue model\n```\n")


def test_a_stale_table_is_noticed():
    stale = "<!-- table: criterion random -->\nold\n<!-- end of table -->"
    assert "`seed`" in filled(stale) and "old" not in filled(stale)
    assert anchors("# A *b*, c\n") == {"a-b-c"}
