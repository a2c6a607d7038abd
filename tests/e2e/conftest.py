import pytest
from tests.e2e import product


@pytest.fixture(scope="session")
def two_nodes(tmp_path_factory):
    """A running network of two nodes; its tests leave it as they found it."""
    with product.up("two-nodes", tmp_path_factory.mktemp("two-nodes")) as network:
        yield network
