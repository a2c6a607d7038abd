import asyncio

import pytest
from tests.contract import store_contract


@pytest.mark.parametrize("clause", store_contract.CLAUSES + store_contract.SHARED_CLAUSES, ids=store_contract.name)
def test_it_keeps_the_contract_of_a_store(clause, memory) -> None:
    asyncio.run(clause(memory.store))
