"""The certificate that devices see, judged by OpenSSL: made, verified, served, renewed, reloaded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pi_relay import maillog, state
from pi_relay.config import Config, Device, Queue, Tls
from pi_relay.submission import certificates, issue_certificate
from pi_relay.submission.certificates import CertificateError, Certificates, Leaf, names_of, renewal_reason

DAY = 86400.0
ADDRESSES = ("192.168.1.10", "fd00::10")
NAMES = ("relay.office.example", "relay", "relay.local")


GENERATED = Tls()


def config(tls: Tls = GENERATED, hostname: str = "relay.office.example") -> Config:
    return Config(hostname=hostname, queue=Queue(Path("/nowhere")), tls=tls)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was said in the log."""
    lines: list[str] = []
    monkeypatch.setattr(maillog, "notice", lines.append)
    monkeypatch.setattr(maillog, "alert", lambda *, reason: lines.append(reason))
    return lines


@pytest.fixture
def made(tmp_path: Path, said: list[str]) -> Certificates:
    found = Certificates(config(), tmp_path / "state", addresses=lambda: ADDRESSES)
    asyncio.run(found.ensure())
    return found


def openssl(*arguments: object) -> str:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, input="")
    return done.stdout + done.stderr


def serial(path: Path) -> str:
    return openssl("x509", "-in", path, "-noout", "-serial")


def moment(path: Path, which: str) -> float:
    text = openssl("x509", "-in", path, "-noout", which).partition("=")[2].strip()
    return datetime.strptime(text, "%b %d %H:%M:%S %Y GMT").replace(tzinfo=UTC).timestamp()


# ── the local CA and its leaf ────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("option", "name", "is_good"),
    [("hostname", name, True) for name in NAMES]
    + [("ip", address, True) for address in ADDRESSES]
    + [("hostname", "other.office.example", False), ("ip", "192.168.1.11", False)],
)
def test_openssl_verifies_the_leaf(made: Certificates, option: str, name: str, is_good: bool) -> None:
    ca, leaf = made.directory / "ca.pem", made.directory / "device.pem"
    text = openssl(
        "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", ca, f"-verify_{option}", name, leaf
    )
    assert ("device.pem: OK" in text) == is_good, text


def test_the_forms_that_devices_need(made: Certificates) -> None:
    ca, leaf = made.directory / "ca.pem", made.directory / "device.pem"
    assert moment(leaf, "-enddate") - moment(leaf, "-startdate") <= 825 * DAY
    assert moment(leaf, "-startdate") <= time.time() - DAY + 60  # a device whose clock is behind
    assert moment(ca, "-enddate") > time.time() + 20 * 365 * DAY
    assert moment(ca, "-startdate") < time.time() - 365 * DAY
    for path in (ca, leaf):
        text = openssl("x509", "-in", path, "-noout", "-text")
        assert "Public-Key: (2048 bit)" in text and "sha256WithRSAEncryption" in text
    assert "CA:TRUE, pathlen:0" in openssl("x509", "-in", ca, "-noout", "-text")


def test_keys_are_closed_to_others(made: Certificates) -> None:
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in made.directory.iterdir()}
    assert modes == {"ca.key": 0o600, "ca.pem": 0o644, "device.pem": 0o600}
    assert stat.S_IMODE(made.directory.stat().st_mode) == 0o700


def test_a_device_connects_and_verifies(made: Certificates) -> None:
    async def connect() -> str:
        async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 here\r\n")
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0, ssl=made.context())
        port = server.sockets[0].getsockname()[1]
        async with server:
            client = await asyncio.create_subprocess_exec(
                "openssl", "s_client", "-connect", f"127.0.0.1:{port}",
                "-CAfile", os.fspath(made.directory / "ca.pem"),
                "-verify_return_error", "-verify_hostname", "relay.local", "-quiet", "-showcerts",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            output, _ = await asyncio.wait_for(client.communicate(), 30)
            return output.decode()

    output = asyncio.run(connect())
    assert "220 here" in output, output
    assert "pi-relay CA" in output  # the chain is sent


def test_the_maker_of_certificates_stays_out_of_the_daemon() -> None:
    code = "import sys, pi_relay.submission.certificates; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_is_good_is_left_alone(made: Certificates, said: list[str]) -> None:
    before = {file.name: file.read_bytes() for file in made.directory.iterdir()}
    again = Certificates(config(), made.directory.parent, addresses=lambda: ADDRESSES)
    asyncio.run(again.ensure())
    assert {file.name: file.read_bytes() for file in made.directory.iterdir()} == before
    assert len(said) == 1  # "made a new certificate", the first time


def test_a_new_name_makes_a_new_leaf_of_the_same_ca(made: Certificates) -> None:
    ca, before = serial(made.directory / "ca.pem"), made.context()
    asyncio.run(made.reconfigure(config(hostname="mail.office.example")))
    assert serial(made.directory / "ca.pem") == ca
    assert made.context() is not before
    text = openssl("verify", "-CAfile", made.directory / "ca.pem", "-verify_hostname", "mail.local",
                   made.directory / "device.pem")  # fmt: skip
    assert "OK" in text


LEAF = Leaf(NAMES, ADDRESSES, 0.0, 900.0)


@pytest.mark.parametrize(
    ("leaf", "names", "addresses", "now", "is_due"),
    [
        (LEAF, NAMES, ADDRESSES, 0.0, False),
        (LEAF, NAMES, ADDRESSES, 599.0, False),
        (LEAF, NAMES, ADDRESSES, 600.0, True),
        (LEAF, NAMES, (), 0.0, False),  # the cable is out
        (LEAF, NAMES, ADDRESSES[:1], 0.0, False),
        (LEAF, NAMES, ("192.168.1.11",), 0.0, True),
        (LEAF, names_of("mail"), ADDRESSES, 0.0, True),
        (None, NAMES, ADDRESSES, 0.0, True),
    ],
)
def test_when_a_leaf_is_renewed(
    leaf: Leaf | None, names: tuple[str, ...], addresses: tuple[str, ...], now: float, is_due: bool
) -> None:
    assert bool(renewal_reason(leaf, names, addresses, now)) == is_due


def test_a_leaf_is_read_back_from_its_text() -> None:
    assert Leaf.from_text(LEAF.in_text() + "-----BEGIN CERTIFICATE-----\nnames: x\n") == LEAF
    assert Leaf.from_text(replace(LEAF, addresses=()).in_text()) == replace(LEAF, addresses=())
    assert Leaf.from_text("-----BEGIN CERTIFICATE-----") is None
    assert Leaf.from_text(LEAF.in_text().replace("900", "soon")) is None


def test_names() -> None:
    assert names_of("relay.office.example") == NAMES
    assert names_of("relay") == ("relay", "relay.local")
    assert names_of("relay.local") == ("relay.local", "relay")


def handshakes(found: Certificates, count: int) -> None:
    """Contexts asked for in a running loop; what they set going is waited for."""

    async def run() -> None:
        for _ in range(count):
            found.context()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others)

    asyncio.run(run())


def test_an_address_that_comes_late_is_noticed_at_a_handshake(
    made: Certificates, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now: tuple[str, ...] = ()
    late = Certificates(config(), made.directory.parent, addresses=lambda: now)
    asyncio.run(late.ensure())
    before = late.context()
    now = ("10.0.0.7",)
    handshakes(late, 3)
    assert late.context() is before  # looked at a moment ago
    monkeypatch.setattr(certificates, "_LOOK_AGAIN_SECONDS", 0.0)
    late._judge_at = 0.0
    handshakes(late, 3)
    assert len(said) == 2 and "10.0.0.7" in said[1]
    assert late.context() is not before
    text = openssl("verify", "-CAfile", made.directory / "ca.pem", "-verify_ip", "10.0.0.7",
                   made.directory / "device.pem")  # fmt: skip
    assert "OK" in text


def test_what_cannot_be_renewed_at_a_handshake_is_not_tried_at_each(
    made: Certificates, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = Certificates(config(), made.directory.parent, addresses=lambda: ("10.0.0.7",))
    monkeypatch.setattr(certificates.sys, "executable", "/nowhere/python")  # type: ignore[attr-defined]
    for _ in range(3):
        handshakes(moved, 2)
    assert len(said) == 2 and "the old one is served on" in said[1]


def test_a_renewal_that_is_asked_for(made: Certificates) -> None:
    ca, before, context = serial(made.directory / "ca.pem"), made.served(), made.context()
    asyncio.run(made.renew())
    assert made.served().chain != before.chain and made.context() is not context
    assert serial(made.directory / "ca.pem") == ca
    assert "KEY" not in before.chain and before.chain.count("BEGIN CERTIFICATE") == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_what_root_makes_belongs_to_the_owner_of_the_state_folder() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # open to others, unlike pytest's own
        Path(folder).chmod(0o755)
        home = _folder(Path(folder) / "state")
        os.chown(home, 4711, 4712)
        asyncio.run(Certificates(config(), home, addresses=lambda: ADDRESSES).renew())
        files = [home / "tls", *(home / "tls").iterdir()]
        assert {(file.stat().st_uid, file.stat().st_gid) for file in files} == {(4711, 4712)}


# ── the clock ────────────────────────────────────────────────────────────────────────────────────


def test_a_first_leaf_at_a_wrong_clock_is_dated_by_the_last_known_time(tmp_path: Path) -> None:
    in_1970 = Certificates(
        config(), tmp_path, clock_is_wrong=lambda: True, now=lambda: 3600.0, addresses=lambda: ()
    )
    asyncio.run(in_1970.ensure())
    leaf = in_1970.directory / "device.pem"
    assert abs(moment(leaf, "-startdate") - (state.last_known_time(tmp_path) - DAY)) < 2
    assert in_1970.troubles() == []


def test_at_a_wrong_clock_nothing_is_renewed(made: Certificates, said: list[str]) -> None:
    before = serial(made.directory / "device.pem")
    clock_is_wrong = True
    moved = Certificates(
        config(),
        made.directory.parent,
        clock_is_wrong=lambda: clock_is_wrong,
        addresses=lambda: ("192.168.9.9",),
    )
    asyncio.run(moved.ensure())
    with pytest.raises(CertificateError, match="clock is wrong"):
        asyncio.run(moved.renew())
    assert serial(made.directory / "device.pem") == before
    clock_is_wrong = False
    asyncio.run(moved.ensure())
    assert serial(made.directory / "device.pem") != before


def test_an_expired_leaf_that_cannot_be_renewed_is_served_with_a_warning(
    made: Certificates, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates.sys, "executable", "/nowhere/python")  # type: ignore[attr-defined]
    later = Certificates(
        config(), made.directory.parent, now=lambda: time.time() + 900 * DAY, addresses=lambda: ADDRESSES
    )
    asyncio.run(later.ensure())
    assert isinstance(later.context(), ssl.SSLContext)
    assert any("no certificate could be made" in line for line in said)
    assert any("expired" in line for line in said)
    assert later.troubles() == [certificates.EXPIRED]


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────


def test_without_any_certificate_it_is_said_why(tmp_path: Path) -> None:
    (tmp_path / "tls").write_text("a file where the folder should be")
    with pytest.raises(CertificateError, match="no certificate could be made"):
        asyncio.run(Certificates(config(), tmp_path).ensure())


def test_half_a_ca_is_made_anew(made: Certificates) -> None:
    (made.directory / "ca.key").unlink()
    asyncio.run(made.reconfigure(config(hostname="mail.office.example")))
    assert "OK" in openssl("verify", "-CAfile", made.directory / "ca.pem", made.directory / "device.pem")


def test_a_ca_whose_key_is_another_is_not_used(made: Certificates, tmp_path: Path) -> None:
    issue_certificate.issue(_folder(tmp_path / "other"), ["x.example"], [], time.time())
    (made.directory / "ca.key").write_bytes((tmp_path / "other" / "ca.key").read_bytes())
    with pytest.raises(ValueError, match="does not belong"):
        issue_certificate.issue(made.directory, list(NAMES), [], time.time())


def test_an_open_key_is_not_served(made: Certificates) -> None:
    (made.directory / "device.pem").chmod(0o640)
    with pytest.raises(CertificateError, match="chmod 600"):
        Certificates(config(), made.directory.parent).context()


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


# ── the admin's own ──────────────────────────────────────────────────────────────────────────────


def self_signed(folder: Path, name: str) -> None:
    kind = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}")
    openssl("req", "-x509", *kind, "-keyout", folder / "key.pem", "-out", folder / "certificate.pem")
    (folder / "key.pem").chmod(0o600)


def subject_served(context: ssl.SSLContext, *, old: bool = False) -> str:
    """The subject's last part, of the certificate that the context sends: a handshake in memory.

    ``old``: the client knows TLS 1.0 alone; ssl.SSLError where that is refused.
    """
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    client_context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client_context.check_hostname, client_context.verify_mode = False, ssl.CERT_NONE
    if old:
        client_context.set_ciphers("DEFAULT@SECLEVEL=0")
        with pytest.warns(DeprecationWarning):
            client_context.minimum_version = client_context.maximum_version = ssl.TLSVersion.TLSv1
    server = context.wrap_bio(ours, theirs, server_side=True)
    client = client_context.wrap_bio(theirs, ours)
    for _ in range(4):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    der = client.getpeercert(binary_form=True)
    assert der is not None
    done = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-subject"], input=der, capture_output=True
    )
    return done.stdout.decode().strip().rpartition("=")[2].strip()


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]) -> Certificates:
    monkeypatch.setattr(certificates, "_LOOK_AGAIN_SECONDS", 0.0)
    self_signed(tmp_path, "first.example")
    return Certificates(config(Tls(tmp_path / "certificate.pem", tmp_path / "key.pem")), tmp_path / "state")


def test_the_admins_own_is_served_and_nothing_is_made(own: Certificates) -> None:
    asyncio.run(own.ensure())
    assert subject_served(own.context()) == "first.example"
    assert not own.directory.exists()


def test_the_admins_own_is_taken_up_when_it_changes(own: Certificates, tmp_path: Path) -> None:
    context = own.context()
    assert own.context() is context
    self_signed(tmp_path, "second.example")
    assert subject_served(own.context()) == "second.example"


@pytest.mark.parametrize("damage", ["text", "gone", "mismatch", "open"])
def test_a_damaged_one_leaves_the_last_good_one(
    own: Certificates, said: list[str], tmp_path: Path, damage: str
) -> None:
    own.context()
    match damage:
        case "text":
            (tmp_path / "certificate.pem").write_text("hello")
        case "gone":
            (tmp_path / "key.pem").unlink()
        case "mismatch":
            self_signed(_folder(tmp_path / "other"), "second.example")
            (tmp_path / "certificate.pem").write_bytes((tmp_path / "other" / "certificate.pem").read_bytes())
        case "open":
            (tmp_path / "key.pem").chmod(0o644)
            os.utime(tmp_path / "key.pem", (1, 1))
    for _ in range(3):
        assert subject_served(own.context()) == "first.example"
    assert len(said) == 1 and "last good one" in said[0]
    assert own.troubles() == said and own.served().problem == said[0]
    self_signed(tmp_path, "third.example")
    assert subject_served(own.context()) == "third.example"
    assert own.troubles() == []


def test_the_admins_own_is_not_ours_to_renew(own: Certificates, tmp_path: Path) -> None:
    own.context()
    self_signed(tmp_path, "second.example")
    with pytest.raises(CertificateError, match="your own certificate"):
        asyncio.run(own.renew())
    assert subject_served(own.context()) == "second.example"  # but it was read again
    assert own.served().is_admins


def test_files_are_looked_at_once_a_second_at_most(
    own: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "_LOOK_AGAIN_SECONDS", 3600.0)
    context = own.context()
    self_signed(tmp_path, "second.example")
    assert own.context() is context
    asyncio.run(own.ensure())
    assert own.context() is not context


def test_a_bad_reload_keeps_what_is_served(own: Certificates, tmp_path: Path) -> None:
    context = own.context()
    wrong = config(Tls(tmp_path / "none.pem", tmp_path / "key.pem"))
    asyncio.run(own.reconfigure(wrong))
    assert own.context() is context


def test_version_min(tmp_path: Path) -> None:
    self_signed(tmp_path, "first.example")
    for version, least in (("1.2", ssl.TLSVersion.TLSv1_2), ("1.3", ssl.TLSVersion.TLSv1_3)):
        tls = Tls(tmp_path / "certificate.pem", tmp_path / "key.pem", version)
        assert Certificates(config(tls), tmp_path).context().minimum_version == least


# ── legacy devices ───────────────────────────────────────────────────────────────────────────────


def with_legacy(folder: Path) -> Config:
    pair = Tls(folder / "certificate.pem", folder / "key.pem")
    return replace(config(pair), devices=(Device("copier", address="192.168.1.23", legacy=True),))


@pytest.mark.filterwarnings("error")
def test_a_legacy_device_gets_the_same_certificate_over_old_tls(own: Certificates, tmp_path: Path) -> None:
    asyncio.run(own.reconfigure(with_legacy(tmp_path)))
    assert subject_served(own.context(True), old=True) == "first.example"
    assert subject_served(own.context(True)) == "first.example"
    assert subject_served(own.context()) == "first.example"
    with pytest.raises(ssl.SSLError):
        subject_served(own.context(), old=True)
    self_signed(tmp_path, "second.example")
    assert subject_served(own.context(True), old=True) == "second.example"


def test_without_such_a_device_there_is_no_such_context(own: Certificates, tmp_path: Path) -> None:
    asyncio.run(own.ensure())
    assert own.context(True) is own.context()
    asyncio.run(own.reconfigure(with_legacy(tmp_path)))
    assert own.context(True) is not own.context()
    asyncio.run(own.reconfigure(replace(with_legacy(tmp_path), devices=())))
    with pytest.raises(ssl.SSLError):
        subject_served(own.context(True), old=True)
