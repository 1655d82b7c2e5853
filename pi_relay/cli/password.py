"""`pi-relay password`: the hash of a device's password, for `password_hash` in the file."""

from __future__ import annotations

import argparse
import sys

from pi_relay.cli.output import FAILED, OK, CliError, print_json
from pi_relay.cli.texts import t


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Read a line from stdin (hidden on a terminal) and print its hash, for password_hash of a device."
        " With --generate, make the password: at most 20 ASCII characters, none that looks like another."
    )
    parser.epilog = t("example:") + "\n  pi-relay password --generate"
    parser.add_argument("--generate", action="store_true", help=t("make a password, and print it too"))
    parser.add_argument("--json", action="store_true", help=t("{password, password_hash}"))


def run(options: argparse.Namespace) -> int:
    from pi_relay.passwords import generate, hash_password

    password = generate() if options.generate else _read()
    password_hash = hash_password(password)
    if options.json:
        print_json({"password": password, "password_hash": password_hash})
    elif options.generate:
        print(f"{t('password')}: {password}\npassword_hash: {password_hash}")
    else:
        print(password_hash)
    return OK


def _read() -> str:
    password = _typed() if sys.stdin.isatty() else sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise CliError(FAILED, t("the password is empty"), t("pi-relay password --generate makes one"))
    return password


def _typed() -> str:
    from getpass import getpass

    password = getpass(t("Password: "))
    if password and getpass(t("Once more: ")) != password:
        raise CliError(FAILED, t("the two are not the same"))
    return password
