"""The fenced code blocks of a Markdown page, and running them in the order in which a reader meets them."""

from __future__ import annotations

import contextlib
import doctest
import io
import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from typer.testing import CliRunner

from graphprune import load_spec
from graphprune.cli import app
from graphprune.graph import DependencyGraph
from graphprune.schema import PruneSpec
from graphprune.study.grid import grid
from graphprune.study.studyfile import StudyFile, load_study
from graphprune.validate import check

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARKER = re.compile(r"<!-- (not run|file|output)(?:: (.+?))? -->\n+\Z")
"""Before a block: ``not run: REASON``; ``file: NAME``, to be written; ``output``, of the block before."""
SOME_TARGETS = [{"role": "mlp.channel", "ratio": 0.5}]
"""Makes a whole spec of a part of one."""
EXACT_BUT_FOR_DOTS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, its text, the line it starts on, and the marker before it."""

    language: str
    text: str
    line: int
    marker: str = ""
    argument: str = ""


def blocks(page: str) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    for match in FENCE.finditer(page):
        marker = MARKER.search(page[: match.start()])
        yield Block(
            language=match.group(1),
            text=match.group(2),
            line=page.count("\n", 0, match.start()) + 2,
            marker=marker.group(1) if marker else "",
            argument=(marker.group(2) or "") if marker else "",
        )


def commands(text: str) -> Iterator[list[str]]:
    """The calls of ``graphprune`` in a shell block, continued lines joined, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["graphprune"]:
            yield words[1:]


class Reader:
    """Does what a page says, in the working directory: one namespace, one shell, one folder.

    Args:
        page: for messages.
        graph: of the model that the specs of the page are for; None leaves them unchecked against a model.
        shell: whether calls of ``graphprune`` are run.
    """

    def __init__(self, page: Path, graph: DependencyGraph | None, *, shell: bool) -> None:
        self._page, self._graph, self._shell = page, graph, shell
        self._names: dict[str, Any] = {"__name__": "__main__"}
        self._printed = ""

    def read(self, block: Block) -> None:
        """Runs, writes, checks or compares one block."""
        if block.marker == "not run":
            assert block.argument, f"{self._page}:{block.line}: 'not run' needs a reason"
        elif block.marker == "output":
            same = doctest.OutputChecker().check_output(block.text, self._printed, EXACT_BUT_FOR_DOTS)
            assert same, (
                f"{self._page}:{block.line}: the page promises\n{block.text}\nbut this is printed\n{self._printed}"
            )
        elif block.language == "python" and block.marker != "file":
            self._python(block)
        elif block.language == "bash" and self._shell:
            self._bash(block)
        elif block.language == "yaml":
            self._yaml(block)
        if block.marker == "file":
            self._write(block)

    def _python(self, block: Block) -> None:
        # As many empty lines before it as on the page, so that a traceback names the line of the page.
        code = compile("\n" * (block.line - 1) + block.text, str(self._page), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, self._names)
        self._printed = printed.getvalue()

    def _bash(self, block: Block) -> None:
        self._printed = ""
        for words in commands(block.text):
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, f"{self._page}:{block.line}: graphprune {words}\n{done.output}"
            self._printed += done.stdout

    def _yaml(self, block: Block) -> None:
        value = yaml.safe_load(block.text)
        if isinstance(value, dict) and "vary" in value:
            study = load_study(value)
            grid(StudyFile(study), study.models or ["model"])
            return
        whole = isinstance(value, dict) and "targets" in value
        if not whole:
            part = {"targets": value} if isinstance(value, list) else value
            assert set(part) <= set(PruneSpec.model_fields), f"{self._page}:{block.line}: no part of a spec"
            load_spec({"targets": SOME_TARGETS, **part})
            return
        file = Path(block.argument if block.marker == "file" else "block.yaml")
        file.write_text(block.text, encoding="utf-8")
        spec = load_spec(file)
        if self._graph is not None and not spec.groups:  # declared groups are for a model that the page builds
            check(spec, self._graph)

    def _write(self, block: Block) -> None:
        Path(block.argument).write_text(block.text, encoding="utf-8")
        if block.argument == "pyproject.toml":
            install_entry_points(Path.cwd(), block.text)


def install_entry_points(folder: Path, pyproject: str) -> None:
    """What pip would leave of a project's entry points, so that ``importlib.metadata`` finds them in ``folder``."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    project = tomllib.loads(pyproject)["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {target}" for name, target in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
