"""How long the other side may take for each step."""

from __future__ import annotations

from dataclasses import dataclass

SLOWEST_BYTES_PER_SECOND = 16_000


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. RFC 5321 4.5.3.2 asks for minutes where a server may be at work; before MAIL we are less
    patient, for there another next hop may still be taken."""

    resolve: float = 30.0
    connect: float = 30.0
    greeting: float = 60.0
    ehlo: float = 60.0
    tls: float = 30.0
    auth: float = 60.0
    command: float = 300.0  # MAIL, RCPT, DATA
    block: float = 180.0  # until the other side has taken some more of the content
    end_of_data: float = 600.0
    transaction: float = 600.0  # all of it, and a second more for each 16 KB

    def transaction_for(self, size_bytes: int) -> float:
        return self.transaction + size_bytes / SLOWEST_BYTES_PER_SECOND
