"""Lets tests import the fakes of other rooms by their path: `from tests.kms.fakes import …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
