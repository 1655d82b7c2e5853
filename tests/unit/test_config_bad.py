"""A folder a bad configuration: exactly the expected findings, with their lines and hints.

In a folder: ``pi-relay.toml``; ``expected``, what `check` says of it; the files it names. Git keeps no modes,
so all files are closed to others, but for those that a file ``open`` lists.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pi_relay.config import NOT_YET, check, in_words, machine

FOLDERS = sorted((Path(__file__).parents[1] / "bad_configs").iterdir())
EVERY_KEY = b"# checked with every key available\n"


@pytest.fixture(autouse=True)
def same_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found must not depend on where the test runs."""
    partition = machine.Partition(size_bytes=100 * 10**9, free_bytes=50 * 10**9, forgetful="")
    monkeypatch.setattr(machine, "partition_of", lambda directory: partition)
    monkeypatch.setattr(machine, "public_addresses", lambda: [])
    monkeypatch.setattr(machine, "full_name", lambda: "relay.office.example")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def said_of(folder: Path, copy: Path) -> str:
    shutil.copytree(folder, copy)
    for file in copy.iterdir():
        file.chmod(0o600)
    if (copy / "open").exists():
        for name in (copy / "open").read_text().split():
            (copy / name).chmod(0o640)
    path = copy / "pi-relay.toml"
    not_yet = frozenset() if path.read_bytes().startswith(EVERY_KEY) else NOT_YET
    config, findings = check(path, not_yet=not_yet)
    assert (config is None) == any(finding.severity == "error" for finding in findings)
    return (
        "".join(f"{in_words(path, finding)}\n" for finding in findings)
        .replace(f"{copy}/", "")
        .replace(f"{copy}", "FOLDER")
    )


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_bad_configuration(folder: Path, tmp_path: Path) -> None:
    assert said_of(folder, tmp_path / "etc") == (folder / "expected").read_text()


def test_every_finding_says_what_to_do() -> None:
    lines = [line for folder in FOLDERS for line in (folder / "expected").read_text().splitlines()]
    without = [
        a for a, b in zip(lines, [*lines[1:], ""], strict=True) if ":" in a and not a.startswith("hint: ")
    ]
    assert len(FOLDERS) >= 40
    assert without
