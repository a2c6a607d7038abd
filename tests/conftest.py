"""Lets tests import the fakes of other rooms by their path: `from tests.kms.fakes import …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import pytest
from tests import postgres as servers


@pytest.fixture(scope="session")
def postgres():
    """One real PostgreSQL server for all tests of this run; each test takes a schema of its own."""
    if (why := servers.missing()) is not None:
        pytest.skip(why)
    with servers.cluster() as cluster:
        yield cluster
