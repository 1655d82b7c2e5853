"""`pi-relay restore FILE`: a fresh box becomes the one that the backup was made of.

Rules: nothing changes before the whole archive has been read and found good. A running relay is left alone,
and so is a queue that holds mail. A file of the configuration that was here before stays beside the new one.
"""

from __future__ import annotations

import argparse
import os
import pwd
import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pi_relay.cli import archive, check
from pi_relay.cli.output import FAILED, OK, CliError
from pi_relay.cli.relay import is_running
from pi_relay.cli.texts import t
from pi_relay.folders import state_directory

SERVICE_USER = "pi-relay"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Put back what pi-relay backup has written, and check it. The relay must be stopped. Files of the"
        " configuration that are here already stay, with .before-restore at the end of their names."
    )
    parser.epilog = t("example:") + "\n  pi-relay restore /media/stick/pi-relay-backup.tar.gz"
    parser.add_argument("file", metavar="FILE", help=t("what pi-relay backup has written"))
    parser.add_argument("--queue", action="store_true", help=t("the mail that waited, too"))


def run(options: argparse.Namespace) -> int:
    source, config = Path(options.file), Path(options.config).absolute()
    manifest = archive.verify(source)
    if is_running():
        raise CliError(FAILED, t("the relay is running"), t("systemctl stop pi-relay first"))
    queue = archive.queue_directory(_document(source), config.parent)
    _check_queue(options.queue, manifest, queue)
    places = {"config": config.parent, "files": Path("/"), "state": state_directory(), "queue": queue}
    owner = _service_owner()
    try:
        for member, content in archive.contents(source):
            part, *names = PurePosixPath(member.name).parts
            if part == "queue" and not options.queue:
                continue
            path = config if member.name == archive.CONFIG_FILE else places[part].joinpath(*names)
            _put(member, content, path, owner, keep_old=part in ("config", "files"))
        os.sync()
    except PermissionError as problem:
        raise CliError(FAILED, t("{path} cannot be written", path=problem.filename), t("use sudo")) from None
    print(t("restored: {files} files of {created_at}", **manifest))
    if manifest["with_queue"] and not options.queue:
        print(t("The mail in the backup was left out: --queue restores it too."))
    options.json = False
    result: int = check.run(options)
    if result == OK:
        print(t("Now: systemctl start pi-relay"))
    return result


def _document(source: Path) -> dict[str, Any]:
    for member, content in archive.contents(source):
        if member.name == archive.CONFIG_FILE:
            return archive.parse(content.read(), Path(member.name))
    raise CliError(FAILED, t("{path} holds no configuration", path=source))


def _check_queue(wanted: bool, manifest: dict[str, Any], queue: Path) -> None:
    if not wanted:
        return
    if not manifest["with_queue"]:
        raise CliError(FAILED, t("the backup holds no queue"), t("restore without --queue"))
    from pi_relay.queue.store import survey

    if queue.is_dir() and next(iter(survey(queue)), None) is not None:
        raise CliError(
            FAILED,
            t("{path} holds mail, which a restored queue would replace", path=queue),
            t("let it be delivered first, or restore without --queue"),
        )


def _service_owner() -> tuple[int, int] | None:
    """Whose the files are to be: the service's user, as far as root restores."""
    if os.geteuid() != 0:
        return None
    try:
        found = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return None
    return found.pw_uid, found.pw_gid


def _put(
    member: tarfile.TarInfo, content: IO[bytes], path: Path, owner: tuple[int, int] | None, *, keep_old: bool
) -> None:
    """The file appears whole. Secrets, state and mail are the service's; what all may read stays root's."""
    path.parent.mkdir(mode=0o700 if not keep_old else 0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.restoring")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        shutil.copyfileobj(content, file)
    temporary.chmod(member.mode & 0o777)
    os.utime(temporary, (member.mtime, member.mtime))
    if owner is not None and (not keep_old or not member.mode & 0o077):
        os.chown(temporary, *owner)
        if not keep_old:
            os.chown(path.parent, *owner)
    if keep_old and path.exists():
        path.replace(path.with_name(f"{path.name}.before-restore"))
    temporary.replace(path)
