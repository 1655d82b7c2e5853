"""How much a client may send in an hour: over it its mail is held, far over it refused.

A printer drops a scan at a "try later". So what goes over the limit is accepted and held until somebody has
looked and lets it go; only beyond FAR_OVER times the limit is MAIL refused, before any byte of a message has
come. Whether a message is held is decided as it is committed, with those counted in that are being committed
at that moment: neither many connections nor many RCPTs at once get more out of the house.

Rules: a device is counted by its name wherever it sends from, everybody else by address (IPv6: by /64, for
one machine has many). Held messages count, too. Somebody is told at the first and then once an hour, by
counts. Bounded: the clients not seen for longest are forgotten. It must not know SMTP's dialogue, nor the
queue.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from ipaddress import ip_network
from typing import NamedTuple

from pi_relay import maillog
from pi_relay.config import Config, Device
from pi_relay.model import Reply
from pi_relay.quotas import HOUR, Quotas, Window
from pi_relay.submission.replies import FAR_OVER_LIMIT

FAR_OVER = 3
RUNAWAY = "runaway"  # why a message is held
CLIENTS_MAX = 1000
ALERTS_APART_SECONDS = HOUR

MESSAGES, RECIPIENTS = "messages", "recipients"


class Limit(NamedTuple):
    what: str  # MESSAGES or RECIPIENTS
    maximum: int
    window: Window


class Account:
    """What one client has sent, and may."""

    __slots__ = ("_held", "_held_told_at", "_monotonic", "_refused", "_refused_told_at", "limits", "name")

    def __init__(self, name: str, monotonic: Callable[[], float]) -> None:
        self.name = name
        self.limits: tuple[Limit, ...] = ()
        self._monotonic = monotonic
        self._held = self._refused = 0  # since somebody was told
        self._held_told_at = self._refused_told_at = float("-inf")

    def refusal(self, recipients: int = 0) -> Reply | None:
        """What MAIL is answered, or the RCPT that makes so many ``recipients``; None: go on."""
        now = self._monotonic()
        for limit in self.limits:
            more = recipients if limit.what is RECIPIENTS and recipients else 1
            if limit.window.total(now) + more > FAR_OVER * limit.maximum:
                break
        else:
            return None
        self._refused += 1
        if now - self._refused_told_at >= ALERTS_APART_SECONDS:
            self._refused_told_at = now
            self._tell(f"far over its limit of {self._words()}, its mail is refused")
        return FAR_OVER_LIMIT

    def admit(self, recipients: int) -> str:
        """Count a message that is about to be committed: why it is to be held, "" where it may go."""
        self._count(1, recipients)
        if not self.is_over:
            return ""
        self._held += 1
        now = self._monotonic()
        if now - self._held_told_at >= ALERTS_APART_SECONDS:
            self._held_told_at = now
            self._tell(f"over its limit of {self._words()}, its mail is held")
        return RUNAWAY

    def take_back(self, recipients: int) -> None:
        """It was not committed after all."""
        self._count(-1, -recipients)

    @property
    def is_over(self) -> bool:
        now = self._monotonic()
        return any(limit.window.total(now) > limit.maximum for limit in self.limits)

    @property
    def trouble(self) -> str:
        return f"{self.name} is over its limit of {self._words()}: its mail is held" if self.is_over else ""

    def _count(self, messages: int, recipients: int) -> None:
        now = self._monotonic()
        for limit in self.limits:
            limit.window.count(now, recipients if limit.what is RECIPIENTS else messages)

    def _words(self) -> str:
        return " or ".join(f"{limit.maximum} {limit.what} an hour" for limit in self.limits)

    def _tell(self, what: str) -> None:
        """``what``, with the counts since it was told last."""
        counts = ((self._held, "held"), (self._refused, "refused"))
        since = ", ".join(f"{count} {word}" for count, word in counts if count > 1)
        self._held = self._refused = 0
        maillog.alert(reason=f"{what} ({since} since the last alert)" if since else what, device=self.name)


class Limits:
    """The accounts of all clients."""

    def __init__(self, quotas: Quotas) -> None:
        self._quotas = quotas
        self._devices: dict[str, Account] = {}
        self._unknown: dict[str, Account] = {}  # the latest last

    def account(self, config: Config, device: Device | None, address: str) -> Account | None:
        """Whose limits hold, as the file has them now; None: there are none."""
        if device is None:
            maximum = config.submission.messages_per_hour_max
            return self._of_unknown(_network_of(address), maximum) if maximum else None
        wanted = [(MESSAGES, device.messages_per_hour_max), (RECIPIENTS, device.recipients_per_hour_max)]
        wanted = [(what, maximum) for what, maximum in wanted if maximum]
        if not wanted:
            return None
        account = self._devices.get(device.name)
        if account is None:
            account = self._devices[device.name] = Account(device.name, self._quotas.monotonic)
        if [limit[:2] for limit in account.limits] != wanted:
            prefix = f"devices.{device.name}"
            account.limits = tuple(self._limit(prefix, what, maximum) for what, maximum in wanted)
        return account

    def troubles(self) -> list[str]:
        """Who is over a limit, in words."""
        accounts = (*self._devices.values(), *self._unknown.values())
        return [trouble for account in accounts if (trouble := account.trouble)]

    def _of_unknown(self, name: str, maximum: int) -> Account:
        account = self._unknown.pop(name, None) or Account(name, self._quotas.monotonic)
        self._unknown[name] = account
        if not account.limits or account.limits[0].maximum != maximum:
            account.limits = (self._limit(f"clients.{name}", MESSAGES, maximum),)
        if len(self._unknown) > CLIENTS_MAX:
            oldest = next(iter(self._unknown))
            del self._unknown[oldest]
            self._quotas.forget(f"clients.{oldest} {MESSAGES}", HOUR)
        return account

    def _limit(self, prefix: str, what: str, maximum: int) -> Limit:
        return Limit(what, maximum, self._quotas.window(f"{prefix} {what}", HOUR))


@lru_cache(maxsize=1024)
def _network_of(address: str) -> str:
    """The address that counts: of IPv6 the /64."""
    return str(ip_network(f"{address}/64", strict=False)) if ":" in address else address
