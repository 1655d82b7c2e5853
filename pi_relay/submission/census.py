"""Who is connected now, and who has been seen: the counts that limits and ``status`` ask for.

Rules: bounded, in memory, since the start of the process. It must not know SMTP.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from pi_relay.model import Reply
from pi_relay.submission.replies import CONSEQUENCES, Refused

_SEEN_MAX = 1000
_KNOWN_MAX = 1000
_WORDS_MAX = 320  # of what a client said


@dataclass(slots=True)
class Seen:
    """A device, or an unknown client, and what became of what it sent."""

    name: str  # of the device, "" for an unknown client
    address: str  # the last one
    last_seen_at: float  # seconds since the epoch
    accepted: int = 0
    refused: int = 0
    last_refusal: Reply | None = None
    last_reason: str = ""
    last_about: str = ""  # the sender, recipient or user name that was refused


class Census:
    def __init__(self) -> None:
        self.accepted = 0  # messages
        self.refused = 0  # commands, messages and connections that were sent away
        self.connected: set[Hashable] = set()
        self._connections_of: dict[str, int] = {}
        self._seen: dict[str, Seen] = {}  # by the device's name, else by address; the latest last
        self._known: dict[str, None] = {}  # addresses from which a device has signed in; the latest last

    def enter(self, session: Hashable, address: str) -> None:
        self.connected.add(session)
        self._connections_of[address] = self._connections_of.get(address, 0) + 1

    def leave(self, session: Hashable, address: str) -> None:
        """May be called again for the same session."""
        if session not in self.connected:
            return
        self.connected.remove(session)
        left = self._connections_of[address] - 1
        if left:
            self._connections_of[address] = left
        else:
            del self._connections_of[address]

    def connections_of(self, address: str) -> int:
        return self._connections_of.get(address, 0)

    def know(self, address: str) -> None:
        """A device has signed in from there."""
        if not address:  # a proxy would not say
            return
        self._known.pop(address, None)
        self._known[address] = None
        if len(self._known) > _KNOWN_MAX:
            del self._known[next(iter(self._known))]

    def knows(self, address: str) -> bool:
        """Whether a device signed in from there before: it is taken to be one that comes again."""
        return address in self._known

    def count_accepted(self, device: str, address: str, at: float) -> None:
        self.accepted += 1
        self._see(device, address, at).accepted += 1

    def count_refused(self, device: str, address: str, at: float, refused: Refused) -> None:
        self.refused += 1
        seen = self._see(device, address, at)
        seen.refused += 1
        if refused.reply not in CONSEQUENCES or seen.last_refusal is None:
            seen.last_refusal = refused.reply
            seen.last_reason, seen.last_about = refused.reason[:_WORDS_MAX], refused.about[:_WORDS_MAX]

    def seen(self) -> tuple[Seen, ...]:
        """The latest first."""
        return tuple(reversed(self._seen.values()))

    def _see(self, device: str, address: str, at: float) -> Seen:
        key = device or address
        seen = self._seen.pop(key, None) or Seen(device, address, at)
        self._seen[key] = seen
        seen.address, seen.last_seen_at = address, at
        if len(self._seen) > _SEEN_MAX:
            del self._seen[next(iter(self._seen))]
        return seen
