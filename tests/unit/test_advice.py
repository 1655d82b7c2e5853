"""What is advised to whoever was refused: TOML that the file takes, and that lets him in."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pi_relay.config import Config, Device, Listener, Queue, SmartHost, Submission
from pi_relay.config.schema import TABLES
from pi_relay.model import Reply
from pi_relay.submission import replies
from pi_relay.submission.advice import Case, mending
from pi_relay.submission.interfaces import LocalNetworks
from pi_relay.submission.policy import Policy

COPIER = Device("copier", address="192.168.1.23", username="copier")
SCANNER = Device("scanner", address="192.168.1.24")
CONFIG = Config(
    hostname="relay.office.example",
    queue=Queue(Path("/nowhere")),
    devices=(COPIER, SCANNER),
    smart_hosts=(SmartHost("isp", "smtp.isp.example"),),
    submission=Submission(sender_domains=("office.example",)),
)


def mend(reply: Reply, **facts: Any) -> str:
    known: dict[str, Any] = {
        "reason": "", "about": "", "address": "10.1.2.3", "mac": "", "device": None,
        "shut": CONFIG.listeners[0], "may_send": False, "is_gateway": False, "config": CONFIG,
    }  # fmt: skip
    return mending(Case(reply=reply, **{**known, **facts}))


def toml(text: str) -> dict[str, Any]:
    assert text
    return tomllib.loads(text)


REPLIES = [value for value in vars(replies).values() if isinstance(value, Reply)]


@pytest.mark.parametrize("device", [None, COPIER, SCANNER], ids=["unknown", "copier", "scanner"])
@pytest.mark.parametrize("address", ["10.1.2.3", "198.51.100.7", "2001:db8::1", "fd00::5", "100.64.1.1", ""])
def test_all_of_it_is_toml_with_keys_of_the_file(device: Device | None, address: str) -> None:
    for reply in REPLIES:
        for reason in ("", "TLS handshake: UNSUPPORTED_PROTOCOL"):
            for about in ("", 'a "quoted" \\ one', "a@news.example"):
                found = mend(reply, device=device, address=address, reason=reason, about=about)
                assert unknown_keys(tomllib.loads(found)) == [], found


def unknown_keys(document: dict[str, Any]) -> list[str]:
    found = []
    for name, content in document.items():
        table = next((table for table in TABLES[1:] if table.name == name), None)
        if table is None:
            found += [] if TABLES[0].key(name) else [name]
            continue
        sections = content if isinstance(content, list) else [content]
        for section in sections:
            keys = next(iter(section.values())) if table.is_named else section
            found += [key for key in keys if table.key(key) is None]
    return found


def test_another_network_of_the_office() -> None:
    document = toml(mend(replies.NOT_FROM_HERE))
    local = LocalNetworks()
    (given,) = document["listeners"]
    listener = Listener("", 25, networks=tuple(given["networks"]))
    config = replace(CONFIG, submission=Submission(networks=tuple(document["submission"]["networks"])))
    policy = Policy(config, read_local=lambda: local)
    assert given["address"] == ":25"
    assert policy.admits(listener, "10.1.2.3") and policy.client("10.1.2.3").may_send
    assert not policy.admits(listener, "10.1.3.3")


@pytest.mark.parametrize("reply", [replies.NOT_FROM_HERE, replies.AUTH_REQUIRED, replies.NOT_ALLOWED])
@pytest.mark.parametrize("address", ["198.51.100.7", "8.8.8.8", "2001:db8::1", "2a00::1"])
def test_the_world_is_never_let_in(reply: Reply, address: str) -> None:
    found = mend(reply, address=address)
    assert found and toml(found) == {}


def test_a_port_that_the_router_forwards() -> None:
    found = mend(replies.NOT_FROM_HERE, address="192.168.1.1", is_gateway=True)
    assert "forward" in found.split("\n")[0]
    assert toml(found) == {"devices": [{"name": "NAME", "address": "192.168.1.1"}]}


def test_a_shared_network_is_taken_in_one_by_one() -> None:
    networks = toml(mend(replies.NOT_FROM_HERE, address="100.64.3.4"))["submission"]["networks"]
    assert networks == ["local", "100.64.3.4/32"]


@pytest.mark.parametrize(
    ("about", "address", "expected"),
    [
        ("copier", "192.168.1.23", {"name": "copier", "password_hash": "scrypt$..."}),
        ("copier", "192.168.1.99", {"name": "copier", "address": "192.168.1.99"}),
        (
            "fax",
            "10.1.2.3",
            {"name": "NAME", "address": "10.1.2.3", "username": "fax", "password_hash": "scrypt$..."},
        ),
    ],
)
def test_a_password_that_is_wrong(about: str, address: str, expected: dict[str, str]) -> None:
    for reply in (replies.AUTH_FAILED, replies.TOO_MANY_GUESSES):
        assert toml(mend(reply, about=about, address=address))["devices"] == [expected]


@pytest.mark.parametrize(
    ("reason", "is_legacy"),
    [
        ("TLS handshake: UNSUPPORTED_PROTOCOL", True),
        ("TLS handshake: NO_SHARED_CIPHER", True),
        ("TLS handshake: WRONG_VERSION_NUMBER", False),
        ("TLS handshake: TLSV1_ALERT_UNKNOWN_CA", False),
        ("TLS handshake: the client went away", False),
    ],
)
def test_a_handshake_that_failed(reason: str, is_legacy: bool) -> None:
    found = mend(replies.NO_HANDSHAKE, reason=reason)
    assert ("legacy = true" in found) == is_legacy
    if is_legacy:
        assert toml(found)["devices"] == [{"name": "NAME", "address": "10.1.2.3", "legacy": True}]
    if "CA" in reason:
        assert "export-ca" in found


def test_a_password_from_another_mac() -> None:
    phone = Device("phone", mac="00:1b:a9:12:34:56", username="phone")
    config = replace(CONFIG, devices=(phone,))
    found = mend(replies.AUTH_FAILED, about="phone", mac="00:1b:a9:12:34:57", config=config)
    assert toml(found)["devices"] == [{"name": "phone", "mac": "00:1b:a9:12:34:57"}]
    right = mend(replies.AUTH_FAILED, about="phone", mac=phone.mac, config=config)
    assert "password_hash" in right


def test_a_device_without_an_address_gets_one_with_legacy() -> None:
    (device,) = toml(mend(replies.AUTH_NEEDS_TLS, device=Device("fax", username="fax")))["devices"]
    assert device == {"name": "fax", "legacy": True, "address": "10.1.2.3"}


def test_a_recipient_that_is_not_allowed() -> None:
    limited = replace(SCANNER, recipients=("*@office.example",))
    found = mend(replies.RECIPIENT_NOT_ALLOWED, device=limited, about="a@news.example")
    assert toml(found)["devices"] == [
        {"name": "scanner", "recipients": ["*@office.example", "a@news.example"]}
    ]


def test_a_sender_that_is_not_allowed() -> None:
    document = toml(mend(replies.SENDER_NOT_ALLOWED, device=SCANNER, about="x@news.example"))
    assert document["submission"]["sender_domains"] == ["office.example", "news.example"]
    assert document["devices"][0]["name"] == "scanner" and "sender" in document["devices"][0]


def test_a_limit_is_raised_where_it_is() -> None:
    document = toml(
        mend(Reply(450, "4.7.1", "whatever the words"), device=replace(SCANNER, messages_per_hour_max=60))
    )
    assert document == {"devices": [{"name": "scanner", "messages_per_hour_max": 120}]}


def test_who_has_to_sign_in() -> None:
    assert toml(mend(replies.AUTH_REQUIRED, device=COPIER))["devices"] == [
        {"name": "copier", "username": "copier"}
    ]
    assert toml(mend(replies.AUTH_REQUIRED, may_send=True)) == {"listeners": [{"auth": "optional"}]}
    assert toml(mend(replies.AUTH_REQUIRED))["submission"]["networks"] == ["local", "10.1.2.0/24"]


def test_bare_line_ends_are_forgiven_to_local_clients() -> None:
    assert toml(mend(replies.BARE_CR_OR_LF))["submission"]["networks"] == ["local", "10.1.2.0/24"]
    assert mend(replies.BARE_CR_OR_LF, may_send=True) == ""  # a bare CR: nothing helps
