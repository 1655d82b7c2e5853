"""`pi-relay backup` and `restore`: a box is made again from one file; what is no backup changes nothing."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.test_with_relay import Office
from tests.support.command_line import CommandLine

CONFIGURATION = """\
# written by hand
hostname = "relay.office.example"
postmaster = "admin@office.example"
[smart_hosts.isp]
host = "smtp.isp.example"
username = "u1"
password_file = "secrets/isp.password"
"""


@pytest.fixture
def box(pi_relay: CommandLine) -> CommandLine:
    """An office's box as it was: configuration, a password, state, logs."""
    pi_relay.file.write_text(CONFIGURATION)
    secret = pi_relay.file.parent / "secrets" / "isp.password"
    secret.parent.mkdir()
    secret.write_text("geheim\n")
    secret.chmod(0o600)
    for name, content in (("tls/ca.pem", "CA"), ("last-known-time", "1"), ("log/mail-2026-01-01.log", "x\n")):
        path = pi_relay.state_directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content)
        path.chmod(0o600)
    return pi_relay


@pytest.fixture
def fresh(tmp_path: Path) -> CommandLine:
    """Another box, with the file that its package brought."""
    directory = tmp_path / "fresh"
    directory.mkdir()
    return CommandLine(directory)


def done(box: CommandLine, *arguments: str) -> str:
    result = box(*arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_fresh_box_becomes_the_old_one(box: CommandLine, fresh: CommandLine, tmp_path: Path) -> None:
    backup = tmp_path / "backup.tar.gz"
    assert "passwords" in done(box, "backup", str(backup))
    assert backup.stat().st_mode & 0o777 == 0o600
    sample = fresh.file.read_text()
    said = done(fresh, "restore", str(backup))
    assert "restored: 4 files" in said and "0 error(s)" in said
    assert fresh.file.read_text() == CONFIGURATION
    assert fresh.file.with_name("pi-relay.toml.before-restore").read_text() == sample
    secret = fresh.file.parent / "secrets" / "isp.password"
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ("geheim\n", 0o600)
    assert (fresh.state_directory / "tls/ca.pem").read_text() == "CA"
    assert not (fresh.state_directory / "log").exists()


def test_what_is_named_elsewhere_goes_back_to_its_place(
    box: CommandLine, fresh: CommandLine, tmp_path: Path
) -> None:
    secret = tmp_path / "far" / "isp.password"
    secret.parent.mkdir()
    secret.write_text("geheim\n")
    secret.chmod(0o600)
    box.file.write_text(CONFIGURATION.replace("secrets/isp.password", str(secret)))
    done(box, "backup", str(tmp_path / "b"))
    secret.unlink()
    done(fresh, "restore", str(tmp_path / "b"))
    assert secret.read_text() == "geheim\n" and secret.stat().st_mode & 0o777 == 0o600


def test_errors_of_the_file_are_named_after_a_restore(
    box: CommandLine, fresh: CommandLine, tmp_path: Path
) -> None:
    (box.file.parent / "secrets" / "isp.password").unlink()
    result = box("backup", str(tmp_path / "b"))
    assert result.returncode == 0
    assert "not in the backup" in result.stderr and "isp.password" in result.stderr
    result = fresh("restore", str(tmp_path / "b"))
    assert result.returncode == 3
    assert "does not exist" in result.stdout


def test_an_existing_file_is_kept(box: CommandLine, tmp_path: Path) -> None:
    backup = tmp_path / "b"
    backup.write_text("mine")
    result = box("backup", str(backup))
    assert result.returncode == 1 and "--force" in result.stderr
    assert backup.read_text() == "mine"
    done(box, "backup", "--force", str(backup))
    with tarfile.open(backup) as archive:
        assert archive.getnames()[:2] == ["manifest.json", "config/pi-relay.toml"]


# ── the queue ────────────────────────────────────────────────────────────────────────────────────


def test_mail_that_waits_moves_to_the_new_box(
    pi_relay: CommandLine, fresh: CommandLine, tmp_path: Path
) -> None:
    office = Office(pi_relay, tmp_path)
    backup = str(tmp_path / "b")
    try:
        relay = office.start_relay()  # without its smart host
        queue_id = office.submit()
        result = pi_relay("backup", "--queue", backup)
        assert result.returncode == 1 and "systemctl stop" in result.stderr
        assert pi_relay("restore", backup).returncode == 1
        relay.kill()  # the message may be nowhere but in the journal
        relay.wait(20)
        done(pi_relay, "backup", "--queue", backup)
        assert "left out" in done(fresh, "restore", backup)
        assert json.loads(done(fresh, "queue", "list", "--json")) == []
        done(fresh, "restore", "--queue", backup)
        (waiting,) = json.loads(done(fresh, "queue", "list", "--json"))
        assert waiting["queue_id"] == queue_id
        result = fresh("restore", "--queue", backup)
        assert result.returncode == 1 and "holds mail" in result.stderr
        assert done(fresh, "queue", "export", queue_id).endswith("\n\n.one\n")
    finally:
        office.stop()


def test_a_running_relay_is_left_alone(box: CommandLine, tmp_path: Path) -> None:
    done(box, "backup", str(tmp_path / "b"))
    office = Office(box, tmp_path)
    try:
        office.start_relay()
        before = box.file.read_text()
        result = box("restore", str(tmp_path / "b"))
        assert result.returncode == 1 and "running" in result.stderr
        assert box.file.read_text() == before
    finally:
        office.stop()


# ── what is no backup ────────────────────────────────────────────────────────────────────────────


def _archive(path: Path, manifest: object, *members: tarfile.TarInfo) -> None:
    data = json.dumps(manifest).encode()
    about = tarfile.TarInfo("manifest.json")
    about.size = len(data)
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(about, io.BytesIO(data))
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))


def _climbing(path: Path) -> None:
    _archive(path, {"format_version": 1, "files": 1}, tarfile.TarInfo("config/../../evil"))


def _link(path: Path) -> None:
    member = tarfile.TarInfo("config/link")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    _archive(path, {"format_version": 1, "files": 1}, member)


def _stranger(path: Path) -> None:
    _archive(path, {"format_version": 1, "files": 1}, tarfile.TarInfo("etc/passwd"))


def _newer(path: Path) -> None:
    _archive(path, {"format_version": 99, "files": 0, "pi_relay_version": "9.0"})


def _without_files(path: Path) -> None:
    _archive(path, {"format_version": 1, "files": 3})


def _foreign(path: Path) -> None:
    with tarfile.open(path, "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("config/pi-relay.toml"))


def _text(path: Path) -> None:
    path.write_text("no archive at all")


@pytest.mark.parametrize("make", [_climbing, _link, _stranger, _newer, _without_files, _foreign, _text])
def test_what_is_no_backup_changes_nothing(
    fresh: CommandLine, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    before = fresh.file.read_text()
    make(tmp_path / "b")
    result = fresh("restore", str(tmp_path / "b"))
    assert result.returncode == 1
    assert "is no whole backup" in result.stderr and "hint: " in result.stderr
    assert fresh.file.read_text() == before
    assert not (tmp_path / "evil").exists()


def test_a_backup_that_was_cut_off_or_damaged_changes_nothing(
    box: CommandLine, fresh: CommandLine, tmp_path: Path
) -> None:
    done(box, "backup", str(tmp_path / "b"))
    whole = (tmp_path / "b").read_bytes()
    before = fresh.file.read_text()
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 0x55
    for number, data in enumerate((whole[:-9], whole[: len(whole) // 2], bytes(damaged))):
        path = tmp_path / f"bad{number}"
        path.write_bytes(data)
        assert fresh("restore", str(path)).returncode == 1
        assert fresh.file.read_text() == before


def test_a_backup_that_does_not_exist(fresh: CommandLine) -> None:
    result = fresh("restore", "/nowhere")
    assert result.returncode == 1 and "/nowhere does not exist" in result.stderr
