from __future__ import annotations

import asyncio

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
