import pytest
from tests.e2e import product

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(request):
    """Say a measured figure; all are printed at the end, whether the tests passed or not."""
    return request.config.stash.setdefault(FIGURES, []).append


def pytest_terminal_summary(terminalreporter, config):
    for said in config.stash.get(FIGURES, []):
        terminalreporter.write_line(said)


@pytest.fixture(scope="session")
def two_nodes(tmp_path_factory):
    """A running network of two nodes; its tests leave it as they found it."""
    with product.up("two-nodes", tmp_path_factory.mktemp("two-nodes")) as network:
        yield network
