"""The two contestants, each as a whole system in processes of its own, handing everything to one smart host.

Both are as shipped but for limits that would stand in the way of a load: sizes for both; for pi-relay also
connections, in all and from one client (``tests.support.relay``). Postfix logs to the system's log socket,
whose reader is not charged to it; pi-relay writes its log itself, and is charged.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.support.postfix import Postfix
from tests.support.relay import Relay


class System(Protocol):
    """A relay that can be started and stopped any number of times."""

    port: int

    @property
    def pid(self) -> int:
        """The process from which all the others descend."""

    def start(self) -> None:
        """Returns once it greets."""

    def stop(self) -> object:
        """Returns once it has ended."""

    def retry_all(self) -> object:
        """Try everything that waits, now."""


class StockPostfix(Postfix):
    def retry_all(self) -> None:
        self.flush()


class PiRelay(Relay):
    def start(self, timeout_seconds: float = 120) -> None:
        super().start(timeout_seconds)

    def retry_all(self) -> None:
        self.command("queue", "retry", "--all")


@dataclass(frozen=True, slots=True)
class Contestant:
    name: str
    postfix: bool

    def system(self, directory: Path, smart_host_port: int, storage: Path | None = None) -> System:
        """One instance; ``storage``: where everything durable goes, if not to the machine's own disk."""
        if self.postfix:
            return StockPostfix(
                smart_host_port=smart_host_port,
                queue_directory=storage and storage / "queue",
                parameters={"message_size_limit": "67108864", "mailbox_size_limit": "0"},
            )
        return PiRelay(
            directory, smart_host_port=smart_host_port, state_directory=storage and storage / "state"
        )


PI_RELAY = Contestant("pi-relay", postfix=False)
POSTFIX = Contestant("Postfix", postfix=True)
POSTFIX_AGAIN = Contestant("Postfix again", postfix=True)
