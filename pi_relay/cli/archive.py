"""What a backup is: a gzipped tar of configuration, secrets, state folder and, if wanted, queue.

    manifest.json         format version, when, by which pi-relay, how many files follow
    config/pi-relay.toml  the file, and beside it what it names below its folder (passwords, keys, DKIM)
    files/...             what it names elsewhere, by its whole path
    state/...             certificates, counters, the last known time; no log, and not the queue
    queue/...             the queue as it lies on disk (a relay that is stopped)

Rules: nothing is read or written outside of these; a member that is no plain file, or climbs out, makes it no
backup. The layout within state and queue belongs to their rooms.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from pi_relay import __version__
from pi_relay.cli.output import BAD_CONFIGURATION, FAILED, CliError
from pi_relay.cli.texts import t
from pi_relay.folders import state_directory

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
CONFIG_FILE = "config/pi-relay.toml"
PARTS = ("config", "files", "state", "queue")

_NOT_STATE = ("log", "queue")  # of the state folder
_NOT_QUEUE = ("lock",)
_SECTIONS_WITH_FILES = {
    "smart_hosts": ("password_file",),
    "tls": ("certificate", "key"),
    "dkim": ("key_file",),
}


class Member(NamedTuple):
    name: str  # in the archive
    path: Path


# ── what belongs in it ───────────────────────────────────────────────────────────────────────────


def parse(data: bytes, path: Path) -> dict[str, Any]:
    """The file as TOML; a file that is none ends the command."""
    try:
        return tomllib.loads(data.decode("utf-8-sig"))
    except ValueError as error:
        raise CliError(
            BAD_CONFIGURATION, f"{path}: {error}", t("pi-relay check names every error and warning")
        ) from None


def queue_directory(document: dict[str, Any], folder: Path) -> Path:
    """Where the file puts the queue; ``folder`` is the file's."""
    section = document.get("queue")
    named = section.get("directory") if isinstance(section, dict) else None
    return folder / named if isinstance(named, str) and named else state_directory() / "queue"


def members(config: Path, *, with_queue: bool) -> Iterator[Member]:
    """What a backup of this machine holds, the configuration first."""
    document = parse(config.read_bytes(), config)
    folder = config.absolute().parent
    yield Member(CONFIG_FILE, config)
    yield from _named_files(document, folder)
    queue = queue_directory(document, folder)
    for path in _files_below(state_directory(), _NOT_STATE):
        if not path.is_relative_to(queue):
            yield Member(f"state/{path.relative_to(state_directory())}", path)
    if with_queue:
        for path in _files_below(queue, _NOT_QUEUE):
            yield Member(f"queue/{path.relative_to(queue)}", path)


def _named_files(document: dict[str, Any], folder: Path) -> Iterator[Member]:
    named = {
        value
        for section, keys in _SECTIONS_WITH_FILES.items()
        for table in _tables(document.get(section))
        for key in keys
        if isinstance(value := table.get(key), str)
    }
    for name in sorted(named):
        path = Path(os.path.normpath(folder / name))
        inside = path.is_relative_to(folder) and not Path(name).is_absolute()
        yield Member(f"config/{path.relative_to(folder)}" if inside else f"files{path}", path)


def _tables(section: Any) -> Iterator[dict[str, Any]]:
    """The section itself, and those in it: [name], [[name]] and [name.NAME] look alike from here."""
    found = [section, *section.values()] if isinstance(section, dict) else section
    yield from (each for each in found or () if isinstance(each, dict))


def _files_below(directory: Path, but: tuple[str, ...]) -> Iterator[Path]:
    for root, folders, names in os.walk(directory):
        if Path(root) == directory:
            folders[:] = [name for name in folders if name not in but]
            names = [name for name in names if name not in but]
        folders.sort()
        yield from (Path(root, name) for name in sorted(names) if _is_plain(Path(root, name)))


def _is_plain(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


# ── writing and reading ──────────────────────────────────────────────────────────────────────────


def write(file: IO[bytes], wanted: list[Member], *, with_queue: bool) -> None:
    """Raises OSError."""
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=6) as archive:
        manifest = {
            "format_version": FORMAT_VERSION,
            "pi_relay_version": __version__,
            "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "with_queue": with_queue,
            "files": len(wanted),
        }
        data = json.dumps(manifest, indent=2).encode() + b"\n"
        about = tarfile.TarInfo(MANIFEST)
        about.size, about.mode, about.mtime = len(data), 0o600, int(time.time())
        archive.addfile(about, io.BytesIO(data))
        for name, path in wanted:
            with path.open("rb") as content:
                about = archive.gettarinfo(arcname=name, fileobj=content)
                about.uid = about.gid = 0
                about.uname = about.gname = "root"
                archive.addfile(about, content)


def verify(path: Path) -> dict[str, Any]:
    """The manifest, after every byte has been read once. CliError where it is no backup, or not whole."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            manifest = _manifest(archive)
            count = sum(1 for each in archive if _is_allowed(each))
            while archive.fileobj is not None and archive.fileobj.read(1 << 20):
                pass  # to the checksum at the end
    except FileNotFoundError:
        raise CliError(FAILED, t("{path} does not exist", path=path)) from None
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError) as problem:
        raise _no_backup(path, str(problem)) from None
    if count != manifest["files"]:
        raise _no_backup(path, t("files are missing"))
    return manifest


def _manifest(archive: tarfile.TarFile) -> dict[str, Any]:
    first = archive.next()
    content = archive.extractfile(first) if first is not None and first.name == MANIFEST else None
    manifest = json.loads(content.read(65536)) if content is not None else {}
    if not isinstance(manifest.get("format_version"), int):
        raise ValueError(t("it has no manifest"))
    if manifest["format_version"] > FORMAT_VERSION:
        raise ValueError(
            t("it was made by a newer pi-relay ({version})", version=manifest.get("pi_relay_version"))
        )
    return dict(manifest)


def _is_allowed(member: tarfile.TarInfo) -> bool:
    if member.name == MANIFEST:
        return False
    name = PurePosixPath(member.name)
    if not member.isreg() or name.parts[0] not in PARTS or ".." in name.parts or len(name.parts) < 2:
        raise ValueError(t("{name} does not belong in it", name=member.name))
    return True


def _no_backup(path: Path, why: str) -> CliError:
    return CliError(
        FAILED,
        t("{path} is no whole backup of pi-relay: {why}", path=path, why=why),
        t("nothing was changed; take another file"),
    )


def contents(path: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    """The files of a verified backup, in their order."""
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            content = archive.extractfile(member) if _is_allowed(member) else None
            if content is not None:
                yield member, content
