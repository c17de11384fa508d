"""One pruned folder per tier, written once."""

import pytest

from tests.interop.folders import LOADERS, write


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Pruned folders by tier."""
    place = tmp_path_factory.mktemp("interop")
    return {tier: write(place / tier, tier) for tier in LOADERS}


@pytest.fixture(params=[*LOADERS])
def folder(request, folders):
    """A pruned folder of each tier."""
    return folders[request.param]


@pytest.fixture
def stock(folders):
    """The folder that loads with stock ``from_pretrained``."""
    return folders["hf"]
