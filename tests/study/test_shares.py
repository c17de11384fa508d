"""Several processes that divide the cells of a study."""

import json

import pytest

from graphprune import demo
from graphprune.study.results import Results
from graphprune.study.shares import Shares
from tests.engine.together import started

SCRIPT = """
import os, sys
from pathlib import Path
import graphprune as gp

study, folder, told = sys.argv[1:]
rank = os.environ["RANK"]
results = gp.study(study, folder, device="cpu", progress=False)
Path(told, rank).write_text(str(len(results.cells)))
"""


class Store:
    """What a process finds in the store of two: the other has been there."""

    def __init__(self, **values):
        self.values = values

    def add(self, name, amount):
        self.values[name] = self.values.get(name, 0) + amount
        return self.values[name]


def test_a_process_alone_takes_every_cell_and_waits_for_nobody(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    shares = Shares.meet()
    assert shares.is_main and shares.count == 1 and shares.take("a") and shares.take("a")
    with shares.first("folder") as main:
        assert main
    shares.finish("cells")


def test_a_cell_is_taken_once():
    store = Store()
    first, second = Shares(store, 0, 2), Shares(store, 1, 2)
    assert first.take("a") and not second.take("a") and second.take("b")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_two_processes_run_each_cell_once(launcher, small, tmp_path):
    wanted = small(vary={"criterion": ["magnitude", "random"], "mode": ["one-shot", "separate", "joint"]})
    wanted["models"] = {"demo": str(demo.model_path())}
    wanted["data"] = {"text": str(demo.calibration_path())}
    (tmp_path / "study.yaml").write_text(json.dumps(wanted))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = started(
        tmp_path, str(script), str(tmp_path / "study.yaml"), str(tmp_path / "out"), str(tmp_path), launcher=launcher
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "0").read_text() == (tmp_path / "1").read_text() == "6"
    found = Results.read(tmp_path / "out")
    assert [c.status for c in found.cells] == ["done"] * 6 and len(found.dense) == 1
    logs = [(tmp_path / "out" / name).read_text() for name in ("study.log", "study-1.log")]
    assert sum(log.count("perplexity ") for log in logs) == 6
    assert all("perplexity " in log for log in logs)  # both had some to do
