"""What every test shares: no network, no surprises from the machine, the folder of real inputs if present."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Before torch or transformers are imported, which read these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# An empty cache of its own: a test that passes only because a model was downloaded last week fails here too,
# and code that `trust_remote_code` copies into the cache does not end up in the developer's home.
_hf_home = tempfile.mkdtemp(prefix="graphprune-hf-home-")
os.environ["HF_HOME"] = _hf_home
atexit.register(shutil.rmtree, _hf_home, ignore_errors=True)

_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if _PARALLEL:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest  # noqa: E402 - after the environment is set
import torch  # noqa: E402

# One thread per worker: the workers already fill the cores, and more threads make all of them slower.
if _PARALLEL:
    torch.set_num_threads(1)

REPOSITORY = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests that ask for `shared_data`, so that `-m shared_data` finds them."""
    for item in items:
        if "shared_data" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.shared_data)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models and texts beside the checkout; the test is skipped where it is absent."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the real models and texts in ../shared/data (relative to the repository), not found")
    return folder
