"""`pi-relay backup FILE`: everything that makes this box what it is, in one file."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from pi_relay.cli import archive
from pi_relay.cli.output import FAILED, OK, CliError, size_text
from pi_relay.cli.relay import is_running
from pi_relay.cli.texts import t


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = t(
        "Write the configuration, its secrets, keys and certificates, and with --queue the mail that waits,"
        " into one file of mode 0600. The relay may run, but for --queue it must be stopped."
    )
    parser.epilog = t("example:") + "\n  pi-relay backup /media/stick/pi-relay-backup.tar.gz"
    parser.add_argument("file", metavar="FILE", help=t("where to write it; - is stdout"))
    parser.add_argument("--queue", action="store_true", help=t("the mail that waits, too"))
    parser.add_argument("--force", action="store_true", help=t("replace FILE if it exists"))


def run(options: argparse.Namespace) -> int:
    config = Path(options.config)
    if not config.is_file():
        raise CliError(FAILED, t("{path} does not exist", path=config))
    if options.queue and is_running():
        raise CliError(
            FAILED,
            t("the relay is running: what it delivers after the backup would be sent again"),
            t("systemctl stop pi-relay first, or leave out --queue"),
        )
    wanted, missing = _sorted_out(list(archive.members(config, with_queue=options.queue)))
    for member in missing:
        print(t("not in the backup, for it does not exist: {path}", path=member.path), file=sys.stderr)
    try:
        if options.file == "-":
            archive.write(sys.stdout.buffer, wanted, with_queue=options.queue)
            return OK
        size_bytes = _write_file(Path(options.file), wanted, options)
    except PermissionError as problem:
        raise CliError(
            FAILED, t("{path} cannot be read or written", path=problem.filename), t("use sudo")
        ) from None
    print(
        t("{files} files, {size}: {path}", files=len(wanted), size=size_text(size_bytes), path=options.file)
    )
    print(t("It holds passwords and keys: keep it where nobody else reads it."))
    return OK


def _sorted_out(members: list[archive.Member]) -> tuple[list[archive.Member], list[archive.Member]]:
    there = [member for member in members if member.path.exists()]
    return there, [member for member in members if member not in there]


def _write_file(path: Path, wanted: list[archive.Member], options: argparse.Namespace) -> int:
    """How large it has become. The old file stays until the new one is whole and on the disk."""
    if path.exists() and not options.force:
        raise CliError(FAILED, t("{path} exists already", path=path), t("another name, or --force"))
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        temporary = Path(file.name)  # mode 0600
        try:
            archive.write(file, wanted, with_queue=options.queue)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path.stat().st_size
