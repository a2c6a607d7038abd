"""What every implementation of kms.ports.Sealer must do; used like store_contract.

`make_sealer` opens the same keyring each time it is called, at once or as something to be awaited; `close` lets go of
one.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable

import pytest

from trenza.base.errors import AuthenticationError
from trenza.base.secret import Secret
from trenza.kms.ports import Sealed, Sealer

MakeSealer = Callable[[], Sealer | Awaitable[Sealer]]
Close = Callable[[Sealer], Awaitable[None]]
Clause = Callable[[MakeSealer, Close], Awaitable[None]]

SEGMENT = b"the bits of a segment" * 10


async def opened(make_sealer: MakeSealer) -> Sealer:
    sealer = make_sealer()
    return await sealer if inspect.isawaitable(sealer) else sealer


async def what_was_sealed_is_unsealed(make_sealer: MakeSealer, close: Close) -> None:
    sealer = await opened(make_sealer)
    sealed = await sealer.seal(Secret.of(SEGMENT), associated=b"pool 1")
    assert SEGMENT not in sealed.box
    assert await sealer.unseal(sealed, associated=b"pool 1") == Secret.of(SEGMENT)
    plain = await sealer.seal(SEGMENT, associated=b"")
    assert await sealer.unseal(plain, associated=b"") == Secret.of(SEGMENT)
    empty = await sealer.seal(b"", associated=b"")
    assert len(await sealer.unseal(empty, associated=b"")) == 0
    await close(sealer)


async def a_box_opens_only_in_its_own_place(make_sealer: MakeSealer, close: Close) -> None:
    sealer = await opened(make_sealer)
    one, other = [await sealer.seal(SEGMENT, associated=b"pool 1") for _ in range(2)]
    assert one.handle != other.handle
    assert one.box != other.box
    wrong = [
        (one, b"pool 2"),
        (Sealed(other.handle, one.box), b"pool 1"),
        (Sealed(one.handle, other.box), b"pool 1"),
        (Sealed(one.handle, one.box[:-1] + bytes([one.box[-1] ^ 1])), b"pool 1"),
        (Sealed(one.handle, one.box[:20]), b"pool 1"),
        (Sealed(one.handle, b""), b"pool 1"),
        (Sealed(2**50, one.box), b"pool 1"),
    ]
    for sealed, associated in wrong:
        with pytest.raises(AuthenticationError):
            await sealer.unseal(sealed, associated=associated)
    await close(sealer)


async def an_erased_box_never_opens_again(make_sealer: MakeSealer, close: Close) -> None:
    sealer = await opened(make_sealer)
    kept, gone = [await sealer.seal(SEGMENT, associated=b"p") for _ in range(2)]
    await sealer.erase([gone.handle])
    await sealer.erase([gone.handle])
    await close(sealer)
    sealer = await opened(make_sealer)
    with pytest.raises(AuthenticationError):
        await sealer.unseal(gone, associated=b"p")
    assert await sealer.unseal(kept, associated=b"p") == Secret.of(SEGMENT)
    await close(sealer)


async def erasing_an_old_handle_spares_whoever_came_after(make_sealer: MakeSealer, close: Close) -> None:
    sealer = await opened(make_sealer)
    old = await sealer.seal(SEGMENT, associated=b"p")
    await sealer.erase([old.handle])
    later = [await sealer.seal(SEGMENT, associated=b"p") for _ in range(5_000)]  # more than a keyring has at first
    assert len({sealed.handle for sealed in (old, *later)}) == 5_001
    await sealer.erase([old.handle])
    for sealed in later:
        (await sealer.unseal(sealed, associated=b"p")).wipe()
    with pytest.raises(AuthenticationError):
        await sealer.unseal(old, associated=b"p")
    await close(sealer)


async def many_at_once_do_not_mix(make_sealer: MakeSealer, close: Close) -> None:
    sealer = await opened(make_sealer)

    async def live_and_die(number: int) -> None:
        for _ in range(5):
            sealed = await sealer.seal(b"%d" % number, associated=b"%d" % number)
            assert await sealer.unseal(sealed, associated=b"%d" % number) == Secret.of(b"%d" % number)
            await sealer.erase([sealed.handle])
            with pytest.raises(AuthenticationError):
                await sealer.unseal(sealed, associated=b"%d" % number)

    await asyncio.gather(*map(live_and_die, range(30)))
    await close(sealer)


CLAUSES: tuple[Clause, ...] = (
    what_was_sealed_is_unsealed,
    a_box_opens_only_in_its_own_place,
    an_erased_box_never_opens_again,
    erasing_an_old_handle_spares_whoever_came_after,
    many_at_once_do_not_mix,
)


def name(clause: Clause) -> str:
    return clause.__name__
