"""`pi-relay dkim DOMAIN`: makes the key, says what to publish and what to write into the file, asks DNS.

Rules: a key that is there is never touched: asked again, the command shows its record again. The file itself
is left to the admin, and may have errors still. The relay need not run.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pi_relay import dkim
from pi_relay.cli.output import FAILED, OK, USAGE, CliError, coloured, print_json, printable
from pi_relay.cli.texts import t
from pi_relay.folders import state_directory
from pi_relay.signing_keys import KINDS

if TYPE_CHECKING:
    from pi_relay.config import Config, Direct
    from pi_relay.signing_keys import SigningKey

DIRECTORY = "dkim"  # beside the configuration file
SELECTOR = "relay1"

# What DNS may say of the record; "" is well. "unknown": it could not be asked.
_TROUBLES = {
    "absent": "not there yet (new records may take an hour to be seen everywhere)",
    "several": "there are several TXT records; take out all but the right one",
    "different": "another record stands there; put the one above in its place, or choose another --selector",
    "revoked": "the key was revoked (p= is empty); choose another --selector",
}


@dataclass(frozen=True, slots=True)
class Key:
    """The key of a domain and selector, and what is known of it."""

    domain: str
    selector: str
    path: Path
    made: bool  # just now
    configured: bool  # the file has its section
    key: SigningKey

    @property
    def name(self) -> str:
        return dkim.record_name(self.domain, self.selector)


@dataclass(frozen=True, slots=True)
class Answer:
    """What DNS said: ``trouble`` is "" where the record is right, a word of _TROUBLES, or "unknown"."""

    trouble: str
    found: tuple[str, ...] = ()
    problem: str = ""  # why it is unknown


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Make the key that signs mail of a domain (DKIM), print the record to publish in DNS and the lines"
        " for the configuration file, and look whether the record is published. A key that is there is"
        " kept, and its record printed again. Exit code 1 while the record is missing or wrong; a key just"
        " made may lack it."
    )
    parser.epilog = t("example:") + "\n  pi-relay dkim office.example"
    parser.add_argument("domain", metavar="DOMAIN", help=t("the domain of your senders"))
    parser.add_argument(
        "--selector", metavar="S", default=SELECTOR, help=t("the key's name in DNS (default: relay1)")
    )
    parser.add_argument("--type", choices=KINDS, default=None, help=t("the kind of a new key (default: rsa)"))
    parser.add_argument("--json", action="store_true", help=t("one JSON document"))


def run(options: argparse.Namespace) -> int:
    from pi_relay.config import Direct, despite_errors

    file = Path(options.config)
    config = despite_errors(file)
    key = _key(options, file, config)
    answer = _ask_dns(key, config.direct if config else Direct())
    if options.json:
        print_json(_document(key, answer))
    else:
        _print(key, answer, file)
    waits = key.made and answer.trouble in ("absent", "unknown")
    return OK if waits or not answer.trouble else FAILED


# ── the key ──────────────────────────────────────────────────────────────────────────────────────


def _key(options: argparse.Namespace, file: Path, config: Config | None) -> Key:
    domain = _name("domain", "office.example", options.domain)
    selector = _name("selector", SELECTOR, options.selector)
    configured = _configured(config, domain, selector)
    path = configured or _free_path(file, config, domain, selector)
    made = not path.exists()
    if made:
        _make(path, options.type or KINDS[0])
    key = _read(path)
    if options.type not in (None, key.kind):
        raise CliError(
            FAILED,
            t("{path} is there already, and is of type {kind}", path=path, kind=key.kind),
            t("choose another --selector for the new key"),
        )
    return Key(domain, selector, path, made, configured is not None, key)


def _name(what: str, example: str, text: str) -> str:
    from pi_relay.config import Wrong, kinds

    try:
        name: str = kinds.signing_name(what, example).read(text)
    except Wrong:
        words = (
            t("{text!r} is no domain", text=text)
            if what == "domain"
            else t("{text!r} is no selector", text=text)
        )
        raise CliError(USAGE, words, t("for example: {example}", example=example)) from None
    return name


def _configured(config: Config | None, domain: str, selector: str) -> Path | None:
    """The key file that the configuration names for this domain and selector."""
    for entry in config.dkim if config else ():
        if (entry.domain, entry.selector) == (domain, selector) and entry.key_file.name:
            return entry.key_file
    return None


def _free_path(file: Path, config: Config | None, domain: str, selector: str) -> Path:
    """dkim/SELECTOR.pem; where that is the key of another domain, dkim/SELECTOR.DOMAIN.pem."""
    path = file.absolute().parent / DIRECTORY / f"{selector}.pem"
    if config and any(entry.key_file == path and entry.domain != domain for entry in config.dkim):
        return path.with_name(f"{selector}.{domain}.pem")
    return path


def _make(path: Path, kind: str) -> None:
    from pi_relay.signing_keys import make_key

    pem = make_key(kind)  # takes seconds on a small machine: nothing half done lies about meanwhile
    if not path.parent.exists():
        path.parent.mkdir(mode=0o700)
        _hand_over(path.parent)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)  # whatever the umask says
        file.write(pem)
        file.flush()
        os.fsync(descriptor)
    _hand_over(path)


def _hand_over(path: Path) -> None:
    """What root makes belongs to the relay's user, who must read it: to the owner of the state folder."""
    if os.geteuid() == 0:
        with contextlib.suppress(FileNotFoundError):
            owner = state_directory().stat()
            os.chown(path, owner.st_uid, owner.st_gid)


def _read(path: Path) -> SigningKey:
    from pi_relay.config import Wrong, secret_files
    from pi_relay.signing_keys import KeyInvalid, read_key

    try:
        data = secret_files.read_regular(path, secret_files.SECRET_SIZE_MAX_BYTES)
        secret_files.refuse_open(path)
        return read_key(data)
    except Wrong as wrong:
        raise CliError(FAILED, wrong.message, wrong.hint) from None
    except KeyInvalid as invalid:
        raise CliError(FAILED, f"{path} {invalid.message}", invalid.hint) from None


# ── DNS ──────────────────────────────────────────────────────────────────────────────────────────


def _ask_dns(key: Key, direct: Direct) -> Answer:
    import asyncio

    from pi_relay.delivery.mx import LookupFailed, Lookups

    async def records() -> tuple[str, ...]:
        lookups = Lookups(direct)
        try:
            return await lookups.txt(key.name)
        finally:
            await lookups.close()

    try:
        found = asyncio.run(records())
    except LookupFailed as failed:
        return Answer("unknown", problem=failed.failure.reply.text)
    return Answer(dkim.record_trouble(found, key.key.record), found)


# ── what is said ─────────────────────────────────────────────────────────────────────────────────


def _document(key: Key, answer: Answer) -> dict[str, object]:
    return {
        "domain": key.domain,
        "selector": key.selector,
        "type": key.key.kind,
        "bits": key.key.bits,
        "key_file": str(key.path),
        "made": key.made,
        "configured": key.configured,
        "record_name": key.name,
        "record": key.key.record,
        "record_strings": list(dkim.record_strings(key.key.record)),
        "dns": answer.trouble or "ok",
        "dns_found": list(answer.found),
    }


def _print(key: Key, answer: Answer, file: Path) -> None:
    words = t("A new key was made: {path}") if key.made else t("The key is there already: {path}")
    print(f"{words.format(path=key.path)} ({key.key.kind}, {key.key.bits} bits)")
    strings = " ".join(f'"{string}"' for string in dkim.record_strings(key.key.record))
    print(
        f"""
{t("1. Publish this TXT record in the DNS of {domain}:", domain=key.domain)}
{t("name")}:  {key.name}
{t("value")}: {key.key.record}
{t("or, as a line of a zone file:")}
{key.name}. IN TXT ( {strings} )
{t("In DNS:")} {_in_words(answer)}
"""
    )
    if answer.trouble in ("several", "different"):
        print("\n".join(f"   {printable(text)}" for text in answer.found) + "\n")
    if key.configured:
        print(t("2. {file} has this key already.", file=file))
    else:
        print(t("2. Then add these lines to {file}, and run: pi-relay check && pi-relay reload", file=file))
        print(_section(key, file))


def _section(key: Key, file: Path) -> str:
    folder = file.absolute().parent
    path = key.path.relative_to(folder) if key.path.is_relative_to(folder) else key.path
    return f"""
[[dkim]]
domain = "{key.domain}"
selector = "{key.selector}"
key_file = "{path}\""""


def _in_words(answer: Answer) -> str:
    match answer.trouble:
        case "":
            return coloured(t("the record is right."), "green")
        case "unknown":
            return coloured(t("cannot be asked now: {problem}", problem=printable(answer.problem)), "yellow")
        case trouble:
            return coloured(t(_TROUBLES[trouble]), "yellow")
