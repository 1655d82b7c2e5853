"""`pi-relay devices add`: a device more in the file, and the sheet to type into its menu.

Rules: the file is replaced as a whole or not at all, and only by one that `check` finds no error in; its
owner and mode stay. The password is shown once; the file keeps its hash.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi_relay.cli.output import (
    BAD_CONFIGURATION,
    FAILED,
    OK,
    USAGE,
    CliError,
    print_facts,
    print_json,
    printable,
)
from pi_relay.cli.relay import finding_text
from pi_relay.cli.texts import t
from pi_relay.control import finding_document

if TYPE_CHECKING:
    from pi_relay.config import Config, Listener

USERNAME_SIZE_MAX = 20
_DISCARD_PORT = 9


def run(options: argparse.Namespace) -> int:
    device = _device(options)
    file = Path(options.config)
    before = _checked(file)
    password = ""
    if options.login:
        from pi_relay.passwords import generate, hash_password

        password = generate()
        device["username"] = _username(options.name, before)
        device["password_hash"] = hash_password(password)
    config, line = _add(file, device)
    sheet = _sheet(config, device, password) | {"file": str(file), "line": line}
    if options.json:
        print_json(sheet)
    else:
        _print(sheet)
    return OK


def _device(options: argparse.Namespace) -> dict[str, str]:
    """The values of the section, in the form of the file. CliError: wrong usage."""
    from pi_relay.config.kinds import Wrong
    from pi_relay.config.schema import DEVICES

    if not (options.address or options.mac or options.login):
        raise CliError(
            USAGE,
            t("the device could not be recognised: an address, a mac or a password is needed"),
            t("give --address, --mac or --login, or several of them"),
        )
    device = {"name": options.name, "address": options.address, "mac": options.mac}
    for name, value in device.items():
        key = DEVICES.key(name)
        assert key is not None
        try:
            device[name] = key.kind.read(value) if value or name == "name" else ""
        except Wrong as wrong:
            raise CliError(USAGE, f"{name.upper()}: {wrong.message}", wrong.hint) from None
    return {name: value for name, value in device.items() if value}


def _username(name: str, config: Config) -> str:
    """From the name: what every menu can take, and no other device has."""
    word = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:USERNAME_SIZE_MAX].strip("-") or "device"
    taken = {device.username for device in config.devices}
    number, username = 2, word
    while username in taken:
        ending = f"-{number}"
        username, number = word[: USERNAME_SIZE_MAX - len(ending)] + ending, number + 1
    return username


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


def _checked(file: Path) -> Config:
    """The configuration as it is; one with errors ends the command."""
    from pi_relay.config import check

    config, findings = check(file)
    if config is None:
        errors = [finding_document(finding) for finding in findings if finding.severity == "error"]
        text = "\n".join(finding_text(error, str(file)) for error in errors)
        raise CliError(BAD_CONFIGURATION, text, t("mend these first: nothing was written"))
    return config


def _add(file: Path, device: dict[str, str]) -> tuple[Config, int]:
    """The new configuration, and the line of the section."""
    from pi_relay.config import check
    from pi_relay.config.editing import CannotInsert, with_section

    file = file.resolve()  # a link stays a link
    before = file.read_bytes()
    try:
        data, line = with_section(before, "devices", device)
    except CannotInsert as problem:
        raise CliError(FAILED, f"{file}: {problem.message}", problem.hint) from None
    with _written_beside(file, data) as temporary:
        config, findings = check(temporary)
        if config is None:
            # The line is one of a file that nobody will see.
            errors = [{**finding_document(one), "line": 0} for one in findings if one.severity == "error"]
            text = "\n".join(finding_text(error) for error in errors)
            raise CliError(FAILED, f"{text}\n{t('nothing was written')}")
        if file.read_bytes() != before:
            raise CliError(FAILED, t("{file} was changed meanwhile: nothing was written", file=file))
        temporary.replace(file)
        _sync(file.parent)
    return config, line


@contextmanager
def _written_beside(file: Path, data: bytes) -> Iterator[Path]:
    """A durable file with the owner and the mode of the other one, taken away where it is still there."""
    found = file.stat()
    temporary = file.with_name(f".{file.name}.{os.urandom(4).hex()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, found.st_uid, found.st_gid)
            os.fchmod(descriptor, found.st_mode & 0o7777)
            opened.write(data)
            opened.flush()
            os.fsync(descriptor)
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ── the sheet ────────────────────────────────────────────────────────────────────────────────────


def _sheet(config: Config, device: dict[str, str], password: str) -> dict[str, Any]:
    """The flat object of `devices add --json`."""
    listener = _listener(config, signs_in=bool(password))
    return {
        "name": device["name"],
        "address": device.get("address"),
        "mac": device.get("mac"),
        "server": _server(listener, device),
        "hostname": config.hostname,
        "port": listener.port if listener else None,
        "encryption": listener.tls if listener else None,
        "authentication": bool(password),
        "username": device.get("username"),
        "password": password or None,
        "sender": _sender(config, device),
    }


def _listener(config: Config, *, signs_in: bool) -> Listener | None:
    """The one that a device finds its way with most easily; None: there is none for it."""
    if signs_in:
        fit = [one for one in config.listeners if one.tls != "off" and one.auth != "off"]
        return min(fit, key=lambda one: (one.tls != "starttls", one.port != 587), default=None)
    fit = [one for one in config.listeners if one.auth != "required"]
    return min(fit, key=lambda one: (one.tls == "implicit", one.port != 25), default=None)


def _server(listener: Listener | None, device: dict[str, str]) -> str | None:
    """The address of this machine by which the device reaches it; None where that cannot be known."""
    from pi_relay.submission.addresses import private_addresses

    if listener is not None and listener.host not in ("", "0.0.0.0", "::"):
        return listener.host
    address = device.get("address", "") or _address_of(device.get("mac", ""))
    own = _own_address_towards(address) if address else ""
    return own or next(iter(private_addresses()), None)


def _address_of(mac: str) -> str:
    from pi_relay.submission.neighbours import read_neighbours

    with suppress(OSError):
        for neighbour in read_neighbours():
            if neighbour.mac == mac and not neighbour.address.is_link_local:
                return str(neighbour.address)
    return ""


def _own_address_towards(network: str) -> str:
    """The kernel chooses it; nothing is sent."""
    import socket
    from ipaddress import ip_network

    found = ip_network(network, strict=False)
    host = found.network_address + (1 if found.num_addresses > 2 else 0)
    family = socket.AF_INET6 if host.version == 6 else socket.AF_INET
    with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(host), _DISCARD_PORT))
        return str(probe.getsockname()[0])
    return ""


def _sender(config: Config, device: dict[str, str]) -> str | None:
    """An address that is accepted; None where the file names none."""
    if config.submission.default_sender:
        return config.submission.default_sender
    domain = next((one for one in config.submission.sender_domains if "*" not in one), None)
    return f"{_username(device['name'], config)}@{domain}" if domain else None


ENCRYPTIONS = {
    "starttls": "STARTTLS",
    "implicit": "SSL/TLS (not STARTTLS)",
    "off": "none",
}


def _print(sheet: dict[str, Any]) -> None:
    name, file, line = printable(sheet["name"]), sheet["file"], sheet["line"]
    print(t("{name} is in {file}, line {line}.", name=name, file=file, line=line))
    print()
    if sheet["port"] is None:
        print(t("No listener of the file is one that it could use: see [[listeners]]."))
    else:
        _print_menu(sheet)
    print()
    print(t("To put it in force: pi-relay reload"))


def _print_menu(sheet: dict[str, Any]) -> None:
    print(t("In the menu of the device (SMTP, e-mail server, scan to e-mail):"))
    print()
    signs_in = sheet["authentication"]
    encryption = t(ENCRYPTIONS[sheet["encryption"]])
    if sheet["encryption"] == "starttls" and not signs_in:
        encryption = t("STARTTLS; none if it has none")
    rows = [
        (t("SMTP server"), _servers(sheet)),
        (t("Port"), str(sheet["port"])),
        (t("Encryption"), encryption),
    ]
    if sheet["encryption"] != "off":
        rows.append((t("Verify the certificate"), t("no; or install the CA: pi-relay tls export-ca FILE")))
    rows.append((t("Authentication"), t("on (SMTP AUTH: PLAIN or LOGIN)") if signs_in else t("off")))
    if signs_in:
        rows += [(t("User name"), sheet["username"]), (t("Password"), sheet["password"])]
    rows.append((t("Sender address"), sheet["sender"] or t("an address of your own domain")))
    print_facts(rows, indent="  ")
    if signs_in:
        print()
        print(t("The password is not shown again; the file keeps only its hash."))


def _servers(sheet: dict[str, Any]) -> str:
    if not sheet["server"]:
        return str(sheet["hostname"])
    address, hostname = sheet["server"], sheet["hostname"]
    return t("{address} (or {hostname}, if it finds that name)", address=address, hostname=hostname)
