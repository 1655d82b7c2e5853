"""Who has submitted, known or not, and what would help those who were refused: what `devices` lists.

Rules: counts are since the start of the process; a device of the file that was not seen is listed too, last.
It must not know SMTP, or how the list is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from pi_relay.config import Config, Device
from pi_relay.submission.advice import Case, mending
from pi_relay.submission.census import Seen
from pi_relay.submission.neighbours import Neighbour
from pi_relay.submission.policy import Policy


@dataclass(frozen=True, slots=True)
class ClientReport:
    name: str  # of the device, "" for an unknown client
    address: str  # the last one; of a device that was not seen, as the file has it
    mac: str  # as the neighbour table has it, else as the file has it; "" where it is not known
    known: bool
    last_seen_at: float | None  # seconds since the epoch
    accepted: int
    refused: int
    last_reply: str
    last_reason: str
    mend: str  # lines of TOML


def reports(
    config: Config, policy: Policy, seen: Iterable[Seen], neighbours: Iterable[Neighbour]
) -> Iterator[ClientReport]:
    """The latest first. Who was unknown, and has become a device since, is listed as that device."""
    macs = {str(neighbour.address): neighbour.mac for neighbour in neighbours}
    devices = {device.name: device for device in config.devices}
    listed: set[str] = set()
    for one in seen:
        known_now = policy.client(one.address).device if one.address and not one.name else None
        name = known_now.name if known_now else one.name
        if name and name in listed:
            continue
        listed.add(name)
        yield _seen(one, name, devices.get(name), config, policy, macs)
    for device in devices.values():
        if device.name in listed:
            continue
        yield ClientReport(
            name=device.name,
            address=device.address,
            mac=device.mac or macs.get(device.address, ""),
            known=True,
            last_seen_at=None,
            accepted=0,
            refused=0,
            last_reply="",
            last_reason="",
            mend="",
        )


def _seen(
    one: Seen, name: str, device: Device | None, config: Config, policy: Policy, macs: Mapping[str, str]
) -> ClientReport:
    return ClientReport(
        name=name,
        address=one.address,
        mac=macs.get(one.address, "") or (device.mac if device else ""),
        known=device is not None,
        last_seen_at=one.last_seen_at,
        accepted=one.accepted,
        refused=one.refused,
        last_reply=str(one.last_refusal or ""),
        last_reason=one.last_reason,
        mend="" if device and not one.name else _mending(one, device, config, policy, macs),
    )


def _mending(
    one: Seen, device: Device | None, config: Config, policy: Policy, macs: Mapping[str, str]
) -> str:
    if one.last_refusal is None:
        return ""
    listeners = config.listeners if one.address else ()
    case = Case(
        reply=one.last_refusal,
        reason=one.last_reason,
        about=one.last_about,
        address=one.address,
        mac=macs.get(one.address, ""),
        device=device,
        shut=next((each for each in listeners if not policy.admits(each, one.address)), None),
        may_send=bool(one.address) and policy.client(one.address).may_send,
        is_gateway=bool(one.address) and policy.is_gateway(one.address),
        config=config,
    )
    return mending(case)
