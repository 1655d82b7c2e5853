"""`pi-relay tls ...`: the certificate that devices see, and the CA by which they can verify it.

With the relay running it is asked, so that what is shown is what is served; else the files are read, and
renewed, here.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pi_relay.cli.output import (
    FAILED,
    NOT_RUNNING,
    OK,
    CliError,
    coloured,
    complain,
    print_facts,
    print_json,
    printable,
)
from pi_relay.cli.relay import ask, configuration
from pi_relay.cli.texts import t
from pi_relay.folders import state_directory

if TYPE_CHECKING:
    from cryptography import x509

    from pi_relay.state import Clock
    from pi_relay.submission.certificates import Certificates

DAY_SECONDS = 86_400
RENEWAL_TIMEOUT_SECONDS = 150.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "The certificate that devices see: a local CA and a certificate of it, made and renewed by pi-relay,"
        " or your own files of [tls]. Works also while the relay is down."
    )
    parser.epilog = t("example:") + "\n  pi-relay tls export-ca pi-relay-ca.crt"
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, title=t("actions"))
    for name, (summary, example, add_arguments, _) in ACTIONS.items():
        action = actions.add_parser(name, help=t(summary), formatter_class=parser.formatter_class)
        action.description = t(summary)
        action.epilog = f"{t('example:')}\n  pi-relay tls {name} {example}".rstrip()
        action.add_argument(
            "-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help=t("the configuration file")
        )
        add_arguments(action)


def run(options: argparse.Namespace) -> int:
    return ACTIONS[options.action][3](options)


def _json_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help=t("one JSON document"))


def _export_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help=t("where to (-: stdout)"))
    parser.add_argument("--der", action="store_true", help=t("in DER, which some printers want, not in PEM"))
    parser.add_argument("--force", action="store_true", help=t("overwrite FILE"))


# ── show and renew ───────────────────────────────────────────────────────────────────────────────


def _show(options: argparse.Namespace) -> int:
    return _tell(options, _seen(options))


def _renew(options: argparse.Namespace) -> int:
    try:
        seen = ask("tls_renew", timeout_seconds=RENEWAL_TIMEOUT_SECONDS)
    except CliError as error:
        if error.exit_code != NOT_RUNNING:
            raise
        seen = _renewed_on_disk(options)
    return _tell(options, seen)


def _tell(options: argparse.Namespace, seen: dict[str, Any]) -> int:
    document = _document(seen)
    if options.json:
        print_json(document)
    else:
        _print(document)
    return OK


def _seen(options: argparse.Namespace) -> dict[str, Any]:
    """The document of the control verb ``tls``: from the relay, or from the files where it does not run."""
    try:
        answer: dict[str, Any] = ask("tls")
    except CliError as error:
        if error.exit_code != NOT_RUNNING:
            raise
        return _on_disk(options)
    return answer


# ── without the relay ────────────────────────────────────────────────────────────────────────────


def _on_disk(options: argparse.Namespace) -> dict[str, Any]:
    from dataclasses import asdict

    from pi_relay.submission.certificates import CertificateError

    certificates, clock = _parts(options)
    try:
        return asdict(certificates.served()) | {"clock_wrong": clock.is_wrong()}
    except CertificateError as problem:
        hint = t("a relay that has never run has no certificate: pi-relay tls renew makes it; else try sudo")
        raise CliError(FAILED, problem.message, hint) from None


def _renewed_on_disk(options: argparse.Namespace) -> dict[str, Any]:
    import asyncio

    from pi_relay.submission.certificates import CertificateError

    if not state_directory().is_dir():
        raise CliError(FAILED, t("there is no folder {folder}", folder=state_directory()))
    certificates, _ = _parts(options)
    try:
        asyncio.run(certificates.renew())
    except CertificateError as problem:
        raise CliError(FAILED, problem.message, t(problem.hint)) from None
    return _on_disk(options)


def _parts(options: argparse.Namespace) -> tuple[Certificates, Clock]:
    from pi_relay.state import Clock
    from pi_relay.submission.certificates import Certificates

    clock = Clock(state_directory())
    found = Certificates(configuration(options), state_directory(), clock_is_wrong=clock.is_wrong)
    return found, clock


# ── what a certificate says ──────────────────────────────────────────────────────────────────────


def _document(seen: dict[str, Any]) -> dict[str, Any]:
    """The flat object of `tls show --json`."""
    import time

    from cryptography import x509

    leaf, *signers = x509.load_pem_x509_certificates(seen["chain"].encode())
    ca = None if seen["is_admins"] else signers[-1]
    names, addresses = _names(leaf)
    valid_until = leaf.not_valid_after_utc.timestamp()
    days_left = int((valid_until - time.time()) // DAY_SECONDS)
    return {
        "source": "admin" if seen["is_admins"] else "local_ca",
        "path": seen["path"],
        "subject": leaf.subject.rfc4514_string(),
        "names": names,
        "addresses": addresses,
        "issuer": leaf.issuer.rfc4514_string(),
        "valid_from": _timestamp(leaf.not_valid_before_utc.timestamp()),
        "valid_until": _timestamp(valid_until),
        "days_left": days_left,
        "expired": valid_until <= time.time(),
        "sha256": _fingerprint(leaf),
        "ca_subject": ca.subject.rfc4514_string() if ca else None,
        "ca_valid_until": _timestamp(ca.not_valid_after_utc.timestamp()) if ca else None,
        "ca_sha256": _fingerprint(ca) if ca else None,
        "clock_wrong": seen["clock_wrong"],
        "problem": seen["problem"] or None,
    }


def _names(leaf: x509.Certificate) -> tuple[list[str], list[str]]:
    from cryptography import x509

    try:
        found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return [], []
    names = found.get_values_for_type(x509.DNSName)
    return names, [str(address) for address in found.get_values_for_type(x509.IPAddress)]


def _fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER, as `tls_verify = "sha256:..."` has it."""
    from cryptography.hazmat.primitives import hashes

    return certificate.fingerprint(hashes.SHA256()).hex()


def _timestamp(seconds: float) -> str:
    from pi_relay.status import timestamp

    return timestamp(seconds) or ""


def _print(seen: dict[str, Any]) -> None:
    for warning in _warnings(seen):
        print(coloured(f"{t('warning')}: {printable(warning)}", "yellow"))
    is_own = seen["source"] == "admin"
    whose = t("your own, from [tls]") if is_own else t("made and renewed by pi-relay")
    validity = t(
        "{begin} to {end}, {days} days left",
        begin=seen["valid_from"][:10],
        end=seen["valid_until"][:10],
        days=seen["days_left"],
    )
    facts = [
        (t("Certificate"), f"{seen['path']} ({whose})"),
        (t("Names"), ", ".join(seen["names"]) or seen["subject"]),
        (t("Addresses"), ", ".join(seen["addresses"]) or "-"),
        (t("Valid"), validity),
        (t("Issuer"), seen["issuer"]),
        ("SHA-256", _in_pairs(seen["sha256"])),
    ]
    if seen["ca_sha256"]:
        facts += [
            (
                t("Local CA"),
                t("{subject}, until {end}", subject=seen["ca_subject"], end=seen["ca_valid_until"][:10]),
            ),
            (t("SHA-256 of the CA"), _in_pairs(seen["ca_sha256"])),
        ]
    print_facts(facts)
    if seen["ca_sha256"]:
        print()
        print(t("For a device that verifies certificates: pi-relay tls export-ca FILE"))


def _warnings(seen: dict[str, Any]) -> list[str]:
    found = [seen["problem"]] if seen["problem"] else []
    if seen["clock_wrong"]:
        found.append(t("the clock of this machine is wrong: nothing is renewed until it is right"))
    elif seen["expired"]:
        found.append(t("the certificate has expired; it is served all the same"))
    return found


def _in_pairs(digits: str) -> str:
    """As phones and printers show it: "AB:CD:..."."""
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2)).upper()


# ── export-ca ────────────────────────────────────────────────────────────────────────────────────


def _export(options: argparse.Namespace) -> int:
    data = _ca(options)
    if options.file == "-":
        if options.der and sys.stdout.isatty():
            raise CliError(FAILED, t("DER is no text for a terminal"), t("name a file"))
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return OK
    _write(Path(options.file), data, overwrite=options.force)
    print(t("The certificate of the local CA is in {file}. It is no secret.", file=options.file))
    print(t(INSTALLING))
    return OK


def _ca(options: argparse.Namespace) -> bytes:
    seen = _seen(options)
    if seen["is_admins"]:
        raise CliError(
            FAILED,
            t("devices see your own certificate, {file}, not one of a local CA", file=seen["path"]),
            t("install the certificate of whoever issued it, where a device does not know it already"),
        )
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding

    ca = x509.load_pem_x509_certificates(seen["chain"].encode())[-1]
    return ca.public_bytes(Encoding.DER if options.der else Encoding.PEM)


def _write(file: Path, data: bytes, *, overwrite: bool) -> None:
    try:
        with file.open("wb" if overwrite else "xb") as opened:
            opened.write(data)
    except FileExistsError:
        raise CliError(FAILED, t("{file} is there already", file=file), t("--force overwrites it")) from None
    except OSError as error:
        complain(f"{file}: {error.strerror}")
        raise CliError(FAILED, t("nothing was written")) from None


INSTALLING = """\
To install it:
  printer, scanner   its web page, under security or certificates: "import CA certificate"; some want --der
  Windows            open the file (named .crt): "Install Certificate", "Local Machine", "Trusted Root ..."
  iPhone, iPad       send it to yourself, open it; Settings: "Profile Downloaded"; then General, About,
                     "Certificate Trust Settings"
  Android            Settings, Security, "Encryption & credentials", "Install a certificate", "CA certificate"
  macOS              open it in Keychain Access, then "Trust", "Always Trust"
  Debian             as /usr/local/share/ca-certificates/NAME.crt, then update-ca-certificates
Where a device asks whether to trust: compare the SHA-256 with `pi-relay tls show`."""

ACTIONS = {
    "show": ("names, addresses, validity, issuer, fingerprints", "--json", _json_argument, _show),
    "renew": ("make a new certificate now, and serve it", "", _json_argument, _renew),
    "export-ca": (
        "the certificate of the local CA, for devices that verify",
        "pi-relay-ca.crt",
        _export_arguments,
        _export,
    ),
}
