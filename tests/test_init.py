"""The public names: each loads on first use, and importing a submodule does not replace a function."""

from __future__ import annotations

import subprocess
import sys

import pytest

import graphprune as gp


@pytest.mark.parametrize("name", gp.__all__)
def test_every_public_name_loads(name):
    assert getattr(gp, name) is not None
    assert name in dir(gp)


def test_submodules_do_not_replace_functions_of_the_same_name():
    program = (
        "import graphprune.plan, graphprune.trace, graphprune.reshape, graphprune.score\n"
        "import graphprune as gp\n"
        "print(*(callable(f) for f in (gp.plan, gp.trace, gp.reshape, gp.score)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True"] * 4


def test_importing_the_package_loads_nothing_heavy():
    program = "import sys, graphprune; print('torch' in sys.modules, 'transformers' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["False", "False"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'prume'"):
        _ = gp.prume
