"""Passwords at AUTH: what is right, what is remembered, and what guessing costs."""

from __future__ import annotations

import asyncio
import threading
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable

import pytest

from pi_relay import passwords
from pi_relay.submission import auth
from pi_relay.submission.auth import SUCCESS_BELIEVED_SECONDS, Authenticator
from pi_relay.submission.replies import Refused

WORD = "correct horse"
HASH = passwords.hash_password(WORD)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Every scrypt that is run: password, hash, and the thread it ran in."""
    runs: list[tuple[str, str, str]] = []
    verify = passwords.verify

    def noted(password: str, password_hash: str) -> bool:
        runs.append((password, password_hash, threading.current_thread().name))
        return verify(password, password_hash)

    monkeypatch.setattr(passwords, "verify", noted)
    return runs


def with_authenticator(
    body: Callable[[Authenticator], Awaitable[None]],
    *,
    clock: Clock | None = None,
    delay_seconds: float = 0.0,
) -> None:
    async def run() -> None:
        authenticator = Authenticator(delay_seconds=delay_seconds, monotonic=clock or Clock())
        try:
            await body(authenticator)
        finally:
            authenticator.close()

    asyncio.run(run())


def test_a_success_is_remembered_for_a_while_and_by_user(verified: list[tuple[str, str, str]]) -> None:
    clock = Clock()

    async def body(authenticator: Authenticator) -> None:
        assert await authenticator.check("copier", WORD, HASH, "10.0.0.1")
        assert await authenticator.check("copier", WORD, HASH, "10.0.0.2")
        assert len(verified) == 1
        assert await authenticator.check("other", WORD, HASH, "10.0.0.1")
        assert len(verified) == 2
        clock.now += SUCCESS_BELIEVED_SECONDS + 1
        assert await authenticator.check("copier", WORD, HASH, "10.0.0.1")
        assert len(verified) == 3
        assert not await authenticator.check("copier", "wrong", HASH, "10.0.0.1")

    with_authenticator(body, clock=clock)
    assert {thread.startswith("scrypt") for _, _, thread in verified} == {True}


def test_a_changed_password_is_forgotten_at_once() -> None:
    async def body(authenticator: Authenticator) -> None:
        assert await authenticator.check("copier", WORD, HASH, "10.0.0.1")
        assert not await authenticator.check("copier", WORD, passwords.hash_password("new"), "10.0.0.1")

    with_authenticator(body)


def test_an_unknown_user_costs_a_hash_too_and_never_succeeds(verified: list[tuple[str, str, str]]) -> None:
    async def body(authenticator: Authenticator) -> None:
        for _ in range(2):
            assert not await authenticator.check("nobody", WORD, None, "10.0.0.1")

    with_authenticator(body)
    assert [password_hash for _, password_hash, _ in verified] == [passwords.DUMMY_HASH] * 2


def test_an_unknown_user_takes_as_long_as_a_wrong_password() -> None:
    """In CPU time, the least of several: what else the machine does must not count."""
    costs: dict[str | None, list[float]] = {HASH: [], None: []}

    async def body(authenticator: Authenticator) -> None:
        for _ in range(6):
            for password_hash, spent in costs.items():
                begun = time.process_time()
                await authenticator.check("copier", "wrong", password_hash, "10.0.0.1")
                spent.append(time.process_time() - begun)

    with_authenticator(body)
    known, unknown = (min(spent) for spent in costs.values())
    assert 0.8 < unknown / known < 1.25


def test_nothing_that_is_kept_holds_the_password() -> None:
    async def body(authenticator: Authenticator) -> None:
        await authenticator.check("copier", WORD, HASH, "10.0.0.1")
        assert WORD not in repr(vars(authenticator))
        assert WORD.encode() not in b"".join(authenticator._successes)

    with_authenticator(body)


def test_each_failure_of_an_address_slows_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)

    clock = Clock()

    async def body(authenticator: Authenticator) -> None:
        monkeypatch.setattr(asyncio, "sleep", sleep)
        for _ in range(3):
            await authenticator.check("copier", "wrong", HASH, "10.0.0.1")
        await authenticator.check("copier", "wrong", HASH, "10.0.0.2")
        assert delays == [0, 1, 2, 0]
        await authenticator.check("copier", WORD, HASH, "10.0.0.1")  # the right one forgives
        await authenticator.check("copier", "wrong", HASH, "10.0.0.1")
        assert delays[4:] == [0]
        await authenticator.check("copier", "wrong", HASH, "10.0.0.1")
        clock.now += auth.FAILURES_FORGOTTEN_SECONDS + 1
        await authenticator.check("copier", "wrong", HASH, "10.0.0.1")
        assert delays[5:] == [1, 0]
        for _ in range(20):
            await authenticator.check("copier", "wrong", HASH, "10.0.0.1")
        assert max(delays) == auth.DELAY_MAX_SECONDS

    with_authenticator(body, clock=clock, delay_seconds=1.0)


def test_whoever_failed_least_has_the_next_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A crowd of guessers waits behind the device, however long it has been queueing."""
    may_go = threading.Event()
    order: list[str] = []

    def verify(password: str, _: str) -> bool:
        may_go.wait(10)
        order.append(password)
        return password == WORD

    monkeypatch.setattr(passwords, "verify", verify)

    async def body(authenticator: Authenticator) -> None:
        for number in range(6):
            authenticator._failed(f"10.0.0.{number % 3}", authenticator._monotonic())
        guesses = [
            asyncio.create_task(authenticator.check("copier", f"guess {number}", HASH, f"10.0.0.{number}"))
            for number in range(3)
        ]
        await asyncio.sleep(0.05)
        device = asyncio.create_task(authenticator.check("copier", WORD, HASH, "10.0.0.9"))
        await asyncio.sleep(0.05)
        guesses[1].cancel()
        may_go.set()
        assert await device
        await asyncio.gather(*guesses, return_exceptions=True)
        assert order == ["guess 0", WORD, "guess 2"]
        assert not await authenticator.check("copier", "late", HASH, "10.0.0.9")  # the worker is free again

    with_authenticator(body)


def test_what_is_remembered_of_guessers_is_bounded() -> None:
    authenticator = Authenticator(monotonic=Clock())
    for number in range(1000):
        authenticator._failed(f"10.0.{number // 256}.{number % 256}", 0.0)
        authenticator._remember(str(number).encode(), 0.0)
    assert len(authenticator._failures) == len(authenticator._successes) == auth._REMEMBERED_MAX


def test_responses() -> None:
    assert auth.decode(b64encode(b"a\0b")) == b"a\0b"
    assert auth.decode(b"=") == b""
    for bad in (b"*", b"a", b"YQ==YQ==", b"\xff\xff"):
        with pytest.raises(Refused) as refused:
            auth.decode(bad)
        assert refused.value.reply.code == 501


def test_plain() -> None:
    assert auth.plain(b"\0copier\0secret") == ("copier", "secret")
    assert auth.plain(b"copier\0copier\0secret") == ("copier", "secret")
    for bad in (b"", b"copier", b"\0copier", b"\0\0secret", b"boss\0copier\0secret", b"a\0b\0c\0d"):
        with pytest.raises(Refused) as refused:
            auth.plain(bad)
        assert refused.value.reply.code == 501
