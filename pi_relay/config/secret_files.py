"""Files that hold secrets: passwords, private keys, and pi-relay.toml itself with a password in it.

Rules: a secret that others can read is no secret, so it is an error and not a warning. Only regular files
are opened: a pipe or a device could keep us waiting. It must not know the keys of the file.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from .kinds import Wrong

SECRET_SIZE_MAX_BYTES = 64 * 1024


def read_regular(path: Path, most_bytes: int) -> bytes:
    """The file's content; raises Wrong in words for the admin."""
    try:
        # Without O_NONBLOCK the opening of a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise Wrong(f"{path} is not a regular file", "name a file, not a folder or a device")
            data = os.read(descriptor, most_bytes + 1)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        raise Wrong(
            f"{path} does not exist", "check the spelling; names count from the folder of pi-relay.toml"
        ) from None
    except PermissionError:
        raise Wrong(
            f"{path} cannot be read by this user", f"chown it to the relay's user: chown pi-relay {path}"
        ) from None
    except (OSError, ValueError) as error:
        words = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise Wrong(f"{path} cannot be read: {words}", "check the name and the disk") from None
    if len(data) > most_bytes:
        raise Wrong(f"{path} is larger than {most_bytes // 1024} KiB", "it seems to be the wrong file")
    return data


def refuse_open(path: Path) -> None:
    """Raises Wrong where group or others may read or change the file."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except (OSError, ValueError):
        return  # whoever reads it will say so
    if mode & 0o077:
        raise Wrong(
            f"{path} holds a secret, but other users can get at it (mode {mode:04o})",
            f"run: chmod 600 {path}",
        )


def read_password(path: Path) -> str:
    """The password in ``path``; a systemd credential of the same name goes first, and systemd guards it."""
    credentials = os.environ.get("CREDENTIALS_DIRECTORY", "")
    credential = Path(credentials, path.name)
    is_credential = bool(credentials) and credential.is_file()
    path = credential if is_credential else path
    data = read_regular(path, SECRET_SIZE_MAX_BYTES)
    if not is_credential:
        refuse_open(path)
    try:
        text = data.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError:
        raise Wrong(f"{path} is not UTF-8 text", "write the password, and nothing else, into it") from None
    if not text or not text.isprintable():
        what = "is empty" if not text else "must hold one line"
        raise Wrong(f"{path} {what}", "write the password, and nothing else, into it")
    return text
