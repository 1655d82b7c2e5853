"""Where the mail of a domain goes: its MX hosts in order, their addresses, and why where there are none.

What a missing answer means
    - The domain does not exist, accepts no mail (null MX, RFC 7505), has neither MX nor address, or cannot be
      a name at all: RECIPIENT, for good.
    - Every address of a host is a private one, or of a family that we do not use: RECIPIENT, for good
      (5.4.4). Waiting mends nothing, and the sender should hear of it today.
    - The DNS itself is in trouble (SERVFAIL, REFUSED, no answer, no server): NEXT_HOP, never for good.

    A failure of one MX host is that host's only: the caller goes on to the next one, and lets the mail fail
    only where every host has failed for good.

Rules: nothing of the file but [direct]. It must not know sessions or messages, and it imports dnspython only
when the first question is asked. DANE (RFC 7672) would have its place here: TLSA records of a host, believed
only from a resolver that validates.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pi_relay.config import Direct
from pi_relay.model import Failure, Reply, Scope

if TYPE_CHECKING:
    from pi_relay.delivery.resolver import Answer, Resolver

EXCHANGERS_MAX = 32  # more is no redundancy
ADDRESSES_MAX = 16
LATE_FAMILY_SECONDS = 1.0  # how long the second family's addresses are waited for where the first has some

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_RECORD = {"ipv4": "A", "ipv6": "AAAA"}
_WORDS = {"ipv4": "IPv4", "ipv6": "IPv6"}
_NAME = re.compile(r"(?=.{1,253}$)[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*", re.ASCII)

# Nobody beyond an office's own network is reached at these. (Ranges for documentation stay out of it.)
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.168.0.0/16", "224.0.0.0/3", "::/127", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
        ),
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Exchanger:
    host: str  # a name (A-labels, no final dot), or the address literal that the recipient's domain is
    preference: int  # the lowest is tried first


class LookupFailed(Exception):
    """``failure.reply`` says in words what is wrong with the domain or the host."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure.reply))
        self.failure = failure


class Lookups:
    """What the DNS says of domains and hosts. One for the whole relay: its answers are kept for all."""

    def __init__(
        self,
        direct: Direct,
        *,
        resolver: Resolver | None = None,
        shuffle: Callable[[list[Exchanger]], None] = random.shuffle,
    ) -> None:
        self._direct = direct
        self._made = resolver
        self._shuffle = shuffle

    @property
    def queries(self) -> int:
        """How many were sent to DNS servers so far."""
        return self._made.queries if self._made else 0

    @property
    def questions(self) -> int:
        """How many different questions that were: fewer than the queries where a try failed."""
        return self._made.questions if self._made else 0

    async def close(self) -> None:
        if self._made:
            await self._made.close()

    async def exchangers(self, domain: str) -> tuple[Exchanger, ...]:
        """The hosts for a recipient's domain in the order to try them (RFC 5321 5.1), at least one.

        ``domain``: as U-labels or A-labels, or an address literal. Without MX it is the domain itself, which
        has an address then. Raises LookupFailed.
        """
        if domain.startswith("["):
            self._usable(domain, [_of_literal(domain)])
            return (Exchanger(domain, 0),)
        name = a_labels(domain)
        answer = await self._ask(name, "MX")
        if not answer.exists:
            raise _permanent(550, "5.1.2", f"the domain {domain} does not exist")
        if not answer.records:
            return await self._implicit(domain, name)
        hosts = [each for each in map(_exchanger, answer.records) if each.host != "."]
        if not hosts:
            raise _permanent(556, "5.1.10", f"the domain {domain} takes no mail (it has a null MX)")
        return self._in_order(hosts)

    async def addresses(self, host: str) -> tuple[str, ...]:
        """Those that mail may go to, family by family as in ``direct.address_families``; at least one.

        ``host``: an Exchanger's. Raises LookupFailed.
        """
        if host.startswith("["):
            return self._usable(host, [_of_literal(host)])
        answers = await self._of_each_family(host)
        found = [ipaddress.ip_address(address) for answer in answers for address in answer.records]
        trouble = next((answer.trouble for answer in answers if answer.trouble), "")
        if found and not (trouble and all(map(self._is_barred, found))):
            return self._usable(host, found)
        if trouble:
            raise _temporary(host, trouble)
        if not all(answer.exists for answer in answers):
            raise _permanent(550, "5.4.4", f"the server {host} does not exist")
        families = " or ".join(_WORDS[family] for family in self._direct.address_families)
        raise _permanent(550, "5.4.4", f"the server {host} has no {families} address")

    async def txt(self, name: str) -> tuple[str, ...]:
        """The TXT records of a name, their strings joined; () where it has none. Raises LookupFailed."""
        return (await self._ask(a_labels(name), "TXT")).records

    async def _implicit(self, domain: str, name: str) -> tuple[Exchanger, ...]:
        """RFC 5321 5.1: a domain without MX is its own mail server, if it has an address."""
        answers = await self._of_each_family(name)
        if not any(answer.records or answer.trouble for answer in answers):
            raise _permanent(550, "5.1.2", f"the domain {domain} has no mail server and no address")
        await self.addresses(name)  # known by now
        return (Exchanger(name, 0),)

    def _in_order(self, hosts: list[Exchanger]) -> tuple[Exchanger, ...]:
        self._shuffle(hosts)
        hosts.sort(key=lambda each: each.preference)
        best: dict[str, Exchanger] = {}
        for each in hosts:
            best.setdefault(each.host, each)
        return tuple(best.values())[:EXCHANGERS_MAX]

    async def _of_each_family(self, host: str) -> list[Answer]:
        """By the order of the families. One that is late or fails does not keep the other waiting."""
        resolver = self._resolver()
        asking = [
            asyncio.ensure_future(resolver.ask(host, _RECORD[each])) for each in self._direct.address_families
        ]
        try:
            done, late = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            if late:
                has_some = any(each.result().records for each in done)
                await asyncio.wait(late, timeout=LATE_FAMILY_SECONDS if has_some else None)
            return [each.result() for each in asking if each.done()]
        finally:
            for each in asking:
                each.cancel()

    def _usable(self, host: str, found: list[Address]) -> tuple[str, ...]:
        """Raises LookupFailed where none is."""
        families = self._direct.address_families
        of_family = [each for each in found if f"ipv{each.version}" in families]
        if not of_family:
            raise _permanent(550, "5.4.4", f"{host} is reached by {_WORDS[f'ipv{found[0].version}']} only")
        open_ones = [each for each in of_family if not self._is_barred(each)]
        if not open_ones:
            raise _permanent(550, "5.4.4", f"the server {host} is at a private address, {of_family[0]}")
        return tuple(map(str, open_ones))[:ADDRESSES_MAX]

    def _is_barred(self, address: Address) -> bool:
        return _is_private(address) and not self._direct.allow_private

    async def _ask(self, name: str, kind: str) -> Answer:
        answer = await self._resolver().ask(name, kind)
        if answer.trouble:
            raise _temporary(name, answer.trouble)
        return answer

    def _resolver(self) -> Resolver:
        if self._made is None:
            from pi_relay.delivery.resolver import Resolver

            self._made = Resolver(self._direct.dns_servers)
        return self._made


def a_labels(domain: str) -> str:
    """As it is asked for: in lower case, A-labels (RFC 5891), no final dot. Raises LookupFailed (5.1.2)."""
    try:
        name = domain.removesuffix(".").encode("idna").decode("ascii").lower()
    except UnicodeError:
        name = ""
    if not _NAME.fullmatch(name):
        raise _permanent(550, "5.1.2", f"{domain} cannot be the name of a domain")
    return name


def _of_literal(literal: str) -> Address:
    """RFC 5321 4.1.3: "[192.0.2.1]", "[IPv6:2001:db8::1]"."""
    try:
        tag, address = literal[1:6].lower(), literal.removeprefix("[").removesuffix("]")
        return ipaddress.IPv6Address(address[5:]) if tag == "ipv6:" else ipaddress.IPv4Address(address)
    except ValueError:
        raise _permanent(550, "5.1.2", f"{literal} is not an address") from None


def _is_private(address: Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in network for network in _NOT_PUBLIC)


def _exchanger(record: str) -> Exchanger:
    preference, _, host = record.partition(" ")
    return Exchanger(host.lower(), int(preference))


def _permanent(code: int, enhanced_status: str, text: str) -> LookupFailed:
    return LookupFailed(Failure(Scope.RECIPIENT, Reply(code, enhanced_status, text), permanent=True))


def _temporary(name: str, trouble: str) -> LookupFailed:
    text = f"the DNS does not answer for {name}: {trouble}"
    return LookupFailed(Failure(Scope.NEXT_HOP, Reply(451, "4.4.3", text), permanent=False))
