"""How verbs fail and where they print."""

import logging
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from graphprune.cli import app
from graphprune.cli.console import Verbs, log_lines
from graphprune.errors import GraphPruneError, SpecError


def fails(error):
    """A command line with one verb that raises ``error``."""
    line = typer.Typer(cls=Verbs, pretty_exceptions_enable=False)

    @line.callback()
    def root() -> None:
        """Makes typer keep the verb a verb."""

    @line.command()
    def verb() -> None:
        raise error

    return CliRunner().invoke(line, ["verb"])


def test_an_error_on_purpose_is_its_message_on_stderr():
    result = fails(SpecError("targets[2].ratio: [bold]no[/bold]", "a.yaml"))
    assert result.exit_code == 2
    assert result.stderr == "error: a.yaml: 1 problem\n  - targets[2].ratio: [bold]no[/bold]\n"
    assert result.stdout == ""


def test_the_exit_code_is_the_errors():
    class OtherError(GraphPruneError):
        exit_code = 7

    assert fails(OtherError("x")).exit_code == 7


def test_an_interrupt_says_that_nothing_is_half_written():
    result = fails(KeyboardInterrupt())
    assert result.exit_code == 130
    assert result.stderr == "interrupted: nothing half-written remains\n"


def test_anything_else_is_a_bug_and_keeps_its_traceback():
    assert isinstance(fails(ZeroDivisionError("bug")).exception, ZeroDivisionError)


def test_help_lists_the_verbs_and_every_verb_has_help(run):
    result = run("--help")
    assert result.exit_code == 0
    for verb in VERBS:
        assert f"\n  {verb} " in result.stdout
        assert "Usage:" in run(verb, "--help").stdout


def test_help_does_not_import_anything_heavy():
    code = (
        "import sys\nfrom graphprune.cli import app\n"
        "try: app(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'peft', 'pydantic', 'networkx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("\n[]\n"), done.stdout


@pytest.mark.parametrize("arguments", [["nope"], ["trace"], ["init", "a", "b"]])
def test_wrong_usage_is_told(arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.output


VERBS = ("quickstart", "trace", "init", "validate", "prune", "apply", "eval", "schema")


def test_what_the_package_logs_is_told(capsys):
    log = logging.getLogger("graphprune.engine.callback")
    with log_lines():
        log.info("pruned at %s", "step 3")
    log.info("nobody listens any more")
    assert capsys.readouterr().err == "pruned at step 3\n"
