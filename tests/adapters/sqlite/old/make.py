"""Make the data directories of two nodes as this release writes them: what later releases must be able to open.

    python tests/adapters/sqlite/old/make.py tests/adapters/sqlite/old/version-1

Run it with the release whose format is to be kept, once; `old_nodes.py` reads the result. The nodes are of the lab,
so nothing in the files is anybody's secret, and the node keys follow from the seed.
"""

import asyncio
import gzip
import hashlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[4]))

from tests.adapters.sqlite.old_nodes import SEED, two_nodes

from trenza.base.names import SaeId
from trenza.core.delivery import IssueRequest
from trenza.lab.loop import run
from trenza.lab.story import Client


async def made(folder: Path) -> None:
    world = two_nodes()
    await world.start_all()
    await world.until_ready(within=60.0)
    client = Client(world)
    keys = []
    for _ in range(6):
        some = await client.issue(SaeId("A1"), IssueRequest(SaeId("B1"), number=2))
        await client.fetch(SaeId("B1"), SaeId("A1"), [some[0].key_id])
        keys += some
        await client.issue(SaeId("B1"), IssueRequest(SaeId("A1"), number=3))
        await asyncio.sleep(5.0)  # beats tell the other ends, segments are filled, the ledger's head is signed
    for name in sorted(world.machines):
        copy = world.machines[name].copy()
        await world.crash(name)
        for file, content in copy.files.items():
            if file == "store.db":  # sqlite.org/fileformat.html 1.3.3: a log is not needed to read it, even in memory
                content = content[:18] + b"\x01\x01" + content[20:]
            (folder / f"{name}.{file}.gz").write_bytes(gzip.compress(content, mtime=0))
    hashes = {str(key.key_id): hashlib.sha384(key.key.view()).hexdigest() for key in keys}
    known = {"seed": SEED, "fetched": list(hashes)[::2], "waiting": list(hashes)[1::2], "sha384_of_keys": hashes}
    (folder / "keys.json").write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    run(made(Path(sys.argv[1])))
