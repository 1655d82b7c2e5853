"""What a recipient's domain asks of TLS on the way to it: MTA-STS (RFC 8461)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pi_relay.delivery.mx import Lookups


@dataclass(frozen=True, slots=True)
class Policy:
    domain: str  # A-labels
    id: str  # of the TXT record: a new one means a new policy
    mode: str  # "enforce" | "testing" | "none"
    mx_patterns: tuple[str, ...]  # "mail.office.example", "*.office.example"
    max_age_seconds: int
    fetched_at: float  # since the epoch

    def allows(self, host: str) -> bool:
        """Whether an MX host may get mail under this policy (RFC 8461 4.1)."""
        return any(_fits(pattern, host.lower().removesuffix(".")) for pattern in self.mx_patterns)


class Policies:
    """The policies of all domains, kept in ``state_directory``; make one where ``direct.mta_sts`` is on."""

    def __init__(
        self, state_directory: Path, lookups: Lookups, *, clock_is_wrong: Callable[[], bool] = lambda: False
    ) -> None:
        self._directory = state_directory
        self._lookups = lookups
        self._clock_is_wrong = clock_is_wrong

    async def policy(self, domain: str) -> Policy | None:
        """The policy in force for a recipient's domain, None where it has none. Raises only cancellation."""
        return None

    async def close(self) -> None:
        """Let go of the fetch under way, if any."""


def _fits(pattern: str, host: str) -> bool:
    """A wildcard stands for exactly one label (RFC 8461 4.1)."""
    if pattern.startswith("*."):
        label, _, parent = host.partition(".")
        return bool(label) and parent == pattern[2:]
    return host == pattern
