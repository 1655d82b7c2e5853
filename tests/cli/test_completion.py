"""Completion, as a shell runs it: what is offered for the word under the cursor."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pi_relay.cli import COMMANDS

STAND_IN = '#!/bin/sh\necho \'[{"queue_id": "ab1"}, {"queue_id": "ab2"}, {"queue_id": "cd3"}]\'\n'


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with the completion of each shell, and a pi-relay that lists three messages."""
    for shell in ("bash", "zsh"):
        command = [sys.executable, "-m", "pi_relay.cli.completion", shell]
        text = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
        (tmp_path / shell).write_bytes(text)
    program = tmp_path / "pi-relay"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return tmp_path


def in_bash(written: Path, *words: str) -> list[str]:
    script = (
        f'PATH={written}:$PATH; source {written}/bash; COMP_WORDS=(pi-relay "$@"); COMP_CWORD=$#;'
        ' _pi_relay; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "-c", script, "bash", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()


def in_zsh(written: Path, *words: str) -> list[str]:
    """What it hands to compadd; "FILES" where it offers files."""
    script = (
        f"path=({written} $path); compadd() {{ shift; print -l -- $@ }}; _files() {{ print FILES }};"
        f' words=(pi-relay "$@"); CURRENT=$(( $# + 1 )); source {written}/zsh'
    )
    command = ["zsh", "-f", "-c", script, "zsh", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.split()


SHELLS = [
    pytest.param(in_bash, id="bash"),
    pytest.param(in_zsh, id="zsh", marks=pytest.mark.skipif(not shutil.which("zsh"), reason="no zsh here")),
]


@pytest.mark.parametrize("offered", SHELLS)
def test_verbs_actions_and_options(written: Path, offered) -> None:  # type: ignore[no-untyped-def]
    assert set(COMMANDS) <= set(offered(written, ""))
    assert {"list", "show", "export"} <= set(offered(written, "queue", ""))
    assert "--recipient" in offered(written, "-c", "file", "queue", "list", "--")


@pytest.mark.parametrize("offered", SHELLS)
def test_queue_ids_are_those_that_wait(written: Path, offered) -> None:  # type: ignore[no-untyped-def]
    assert {"ab1", "ab2"} <= set(offered(written, "queue", "show", "ab"))


def test_bash_offers_what_begins_like_the_word(written: Path) -> None:
    assert in_bash(written, "que") == ["queue"]
    assert in_bash(written, "queue", "show", "ab") == ["ab1", "ab2"]


def test_files_are_offered_where_a_file_is_wanted(written: Path) -> None:
    assert f"{written}/bash" in in_bash(written, "backup", f"{written}/ba")
    if shutil.which("zsh"):
        assert in_zsh(written, "restore", "") == ["FILES"]
