"""Which ways out a recipient has, and how large a message they take.

Rules: the first route that matches wins; what a route names (recipients, senders, devices) must all match.
Recipients that leave by the same names in the same order leave together, in one transaction; "direct" is a
next hop of its own for each domain.
It must not know whether a way is open now.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

from pi_relay.config import Config, Route, Wrong, a_labels
from pi_relay.model import Envelope, RecipientStatus, WayOut
from pi_relay.patterns import matches

DIRECT = "direct"  # the name in ``via`` of "to the recipient domain's own MX"
_DOMAIN_MARK = f"{DIRECT}:"


def via_for(config: Config, sender: str, recipient: str, device: str) -> tuple[str, ...]:
    """The names of the next hops to try in turn for one recipient; () where no route takes it.

    ``sender``: the reverse-path after the rewriting of submission, "" for the null one.
    """
    for route in config.routes:
        if _takes(route, sender, recipient, device):
            return route.via
    return ()


def to_domain(via: tuple[str, ...], recipient: str) -> tuple[str, ...]:
    """The same way out with "direct" made the recipient's domain, a next hop of its own: "direct:a.example".

    So mail to different domains never shares a transaction, nor does the trouble of one delay the other.
    """
    if DIRECT not in via:
        return via
    domain = recipient.rpartition("@")[2]
    with suppress(Wrong):
        domain = a_labels(domain)
    return tuple(f"{_DOMAIN_MARK}{domain}" if name == DIRECT else name for name in via)


def domain_of(name: str) -> str:
    """The domain of a next hop that is one ("direct:a.example"), "" of any other."""
    return name.removeprefix(_DOMAIN_MARK) if name.startswith(_DOMAIN_MARK) else ""


def ways_out(config: Config, envelope: Envelope) -> tuple[WayOut, ...]:
    """The pending recipients, grouped by the way they leave. No route: a group with an empty ``via``."""
    recipients = envelope.recipients
    if len(recipients) == 1:
        only = recipients[0]
        if only.status is not RecipientStatus.PENDING:
            return ()
        via = via_for(config, envelope.reverse_path, only.forward_path, envelope.device)
        return (_single(to_domain(via, only.forward_path)),)
    groups: dict[tuple[str, ...], list[int]] = {}
    for position, recipient in enumerate(recipients):
        if recipient.status is RecipientStatus.PENDING:
            via = via_for(config, envelope.reverse_path, recipient.forward_path, envelope.device)
            groups.setdefault(to_domain(via, recipient.forward_path), []).append(position)
    return tuple(WayOut(tuple(positions), via) for via, positions in groups.items())


def largest_message_size_bytes(config: Config) -> int:
    """What EHLO announces as SIZE (RFC 1870): what at least one way out may take. 0: no limit."""
    hosts = [host.message_size_max_bytes for host in config.smart_hosts]
    unlimited = not hosts or 0 in hosts or any(DIRECT in route.via for route in config.routes)
    limits = [config.submission.message_size_max_bytes, 0 if unlimited else max(hosts)]
    return min((limit for limit in limits if limit), default=0)


def too_large_for(config: Config, via: tuple[str, ...], size_bytes: int) -> bool:
    """Whether a message exceeds the configured limit of every next hop of a way out."""
    limits = {host.name: host.message_size_max_bytes for host in config.smart_hosts}
    return bool(via) and all(0 < limits.get(name, 0) < size_bytes for name in via)


@lru_cache(maxsize=64)
def _single(via: tuple[str, ...]) -> WayOut:
    return WayOut((0,), via)


def _takes(route: Route, sender: str, recipient: str, device: str) -> bool:
    return (
        (not route.recipients or matches(route.recipients, recipient))
        and (not route.senders or matches(route.senders, sender))
        and (not route.devices or matches(route.devices, device))
    )
