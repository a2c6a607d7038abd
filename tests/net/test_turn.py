from __future__ import annotations

import asyncio
import contextlib

from trenza.net.turn import Turn, call_each


def test_calls_are_made_together_in_their_order_at_the_next_turn():
    async def story():
        turn, made = Turn(call_each), []
        turn.soon(lambda: made.append("first"))
        turn.soon(lambda: made.append("second"))
        assert made == []
        await asyncio.sleep(0)
        assert made == ["first", "second"]

    asyncio.run(story())


def test_what_a_call_puts_off_comes_a_turn_later():
    async def story():
        turn, made = Turn(call_each), []
        turn.soon(lambda: turn.soon(lambda: made.append("later")))
        await asyncio.sleep(0)
        assert made == []
        await asyncio.sleep(0)
        assert made == ["later"]

    asyncio.run(story())


def test_a_call_that_fails_is_told_and_takes_no_other_with_it():
    async def story():
        turn, made, told = Turn(call_each), [], []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, what: told.append(what["exception"]))
        turn.soon(lambda: 1 // 0)
        turn.soon(lambda: made.append("the other"))
        await asyncio.sleep(0)
        assert made == ["the other"]
        assert [type(error) for error in told] == [ZeroDivisionError]

    asyncio.run(story())


def test_what_is_put_off_while_a_row_is_gathered_is_done_once_at_its_end():
    async def story():
        rows = []
        turn = Turn(lambda due: rows.append(list(due)) if due else None)
        turn.soon(0)
        with turn.gathered():
            turn.soon(1)
            turn.soon(2)
            assert rows == []
        assert rows == [[0, 1, 2]]
        await asyncio.sleep(0)
        assert rows == [[0, 1, 2]]
        with contextlib.suppress(RuntimeError), turn.gathered():
            turn.soon(3)
            raise RuntimeError
        turn.soon(4)
        await asyncio.sleep(0)
        assert rows == [[0, 1, 2], [3], [4]]

    asyncio.run(story())
