"""What judges our DKIM signatures: dkimpy, and OpenDKIM from Debian; both are handed the records of DNS."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import dkim as dkimpy

_SIGNATURE = re.compile(rb"(?mi)^dkim-signature:")


def count(message: bytes) -> int:
    """How many signatures there are on the message."""
    header = message.partition(b"\r\n\r\n")[0] + b"\r\n"
    return len(_SIGNATURE.findall(header))


def dkimpy_verifies(message: bytes, records: dict[str, str]) -> bool:
    """Whether every signature is genuine, and there is one. ``records``: {name in DNS: text}."""
    texts = {f"{name}.".encode(): text.encode() for name, text in records.items()}
    verifier = dkimpy.DKIM(message)
    signatures = count(message)
    try:
        return signatures > 0 and all(
            verifier.verify(idx=index, dnsfunc=lambda name, timeout=5: texts.get(name))
            for index in range(signatures)
        )
    except dkimpy.DKIMException:  # a body that does not fit is told so
        return False


def opendkim_verifies(message: bytes, records: dict[str, str]) -> bool:
    """Whether OpenDKIM's test mode takes every signature for genuine."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "message").write_bytes(message)
        keys = "".join(f"{record} {text}\n" for record, text in records.items())
        (folder / "keys").write_text(keys)
        (folder / "conf").write_text(f"Mode v\nTestPublicKeys {folder}/keys\n")
        said = subprocess.run(
            [_opendkim(), "-x", f"{folder}/conf", "-t", f"{folder}/message", "-vv"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    results = re.findall(r"dkim=(\w+)", said.stdout)
    if said.returncode or not results:
        raise AssertionError(f"opendkim: exit {said.returncode}: {said.stdout}{said.stderr}")
    return results == ["pass"] * count(message)


def _opendkim() -> str:
    return shutil.which("opendkim", path="/usr/sbin:/usr/bin") or "opendkim"


def missing_tools() -> str:
    """In words for a skip; "" where OpenDKIM is installed."""
    return "" if shutil.which(_opendkim()) else "opendkim not installed (Debian's opendkim)"
