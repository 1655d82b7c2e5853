"""What every command has in common: usage errors, --help, languages, what is not there yet, speed."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pi_relay import __version__
from pi_relay.cli import COMMANDS, NOT_YET
from pi_relay.cli.japanese import TEXTS
from tests.support.command_line import CommandLine

CLI = Path(__file__).parents[2] / "pi_relay" / "cli"
MAN = Path(__file__).parents[2] / "docs" / "man"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["-c"],
        ["status", "--dance"],
        ["status", "more"],
        ["status", "--js"],  # no abbreviations
        ["queue"],
        ["queue", "dance"],
        ["queue", "list", "--state", "lost"],
        ["queue", "show"],
        ["queue", "retry"],
        ["queue", "retry", "0A1", "--all"],
        ["queue", "release"],
        ["queue", "release", "0A1", "--device", "copier"],
        ["queue", "hold"],
        ["queue", "delete"],
        ["queue", "export"],
        ["devices", "dance"],
        ["devices", "add"],
        ["devices", "add", "copier"],
        ["devices", "add", "copier", "--address", "copier.example"],
        ["devices", "add", "copier", "--address", "192.168.1.23/24"],
        ["devices", "add", "copier", "--mac", "00:1b"],
        ["devices", "add", "", "--login"],
        ["devices", "add", "two\nlines", "--login"],
        ["tls"],
        ["tls", "dance"],
        ["tls", "export-ca", "one", "two"],
        ["trace"],
        ["trace", ""],
        ["trace", "*"],
        ["trace", "ann@office.example", "--since", "yesterday"],
        ["send-test"],
        ["send-test", "ann@office.example", "--wait", "long"],
        ["dkim"],
        ["dkim", "@office.example"],
        ["dkim", "office.example", "--selector", "a b"],
        ["dkim", "office.example", "--selector", "../../relay1"],
        ["dkim", "office.example", "--type", "dsa"],
        ["sink", "--reply", "DANCE=250"],
        ["sink", "--reply", "RCPT=99"],
        ["sink", "--address", "nowhere"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2_with_words_and_no_traceback(pi_relay: CommandLine, arguments: list[str]) -> None:
    result = pi_relay(*arguments)
    assert result.returncode == 2, result.stderr
    assert result.stderr and not result.stdout
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("command", NOT_YET)
def test_what_is_not_there_yet_says_so(pi_relay: CommandLine, command: str) -> None:
    result = pi_relay(command, "--anything")
    assert result.returncode == 2
    assert "not available in this version" in result.stderr


def test_version(pi_relay: CommandLine) -> None:
    result = pi_relay("--version")
    assert (result.returncode, result.stdout) == (0, f"pi-relay {__version__}\n")


ACTIONS = {
    "queue": ("list", "show", "retry", "hold", "release", "delete", "export"),
    "devices": ("add",),
    "tls": ("show", "renew", "export-ca"),
}


@pytest.mark.parametrize(
    "command",
    [*([name] for name in COMMANDS), *([verb, name] for verb, names in ACTIONS.items() for name in names)],
)
def test_every_command_has_help_with_an_example(pi_relay: CommandLine, command: list[str]) -> None:
    result = pi_relay(*command, "--help")
    assert result.returncode == 0
    example = result.stdout.partition("example:")[2]
    assert (
        f"pi-relay {' '.join(command)}" in example or f"pi-relay -c ./pi-relay.toml {command[0]}" in example
    )


def test_help_of_the_whole_names_every_command(pi_relay: CommandLine) -> None:
    result = pi_relay("--help")
    assert result.returncode == 0
    assert all(re.search(rf"^  {command} ", result.stdout, re.MULTILINE) for command in COMMANDS)


# ── languages ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("variable", ["LANG", "LC_MESSAGES", "LC_ALL"])
def test_japanese(pi_relay: CommandLine, variable: str) -> None:
    result = pi_relay("status", **{variable: "ja_JP.UTF-8"})
    assert result.returncode == 4
    assert "リレーが動いていません" in result.stderr


def test_another_language_is_english(pi_relay: CommandLine) -> None:
    assert "not running" in pi_relay("status", LANG="de_DE.UTF-8").stderr


def test_a_terminal_without_the_letters_is_no_error(pi_relay: CommandLine) -> None:
    result = pi_relay("--help", LANG="ja_JP.UTF-8", PYTHONIOENCODING="ascii")
    assert result.returncode == 0
    assert "\\u" in result.stdout


def sentences() -> set[str]:
    """Every sentence that the command line asks the catalogue for."""
    found = set()
    for path in (*CLI.glob("*.py"), CLI.parent / "submission" / "advice.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("t", "_report", "_note")
            ):
                found |= {
                    part.value
                    for part in node.args
                    if isinstance(part, ast.Constant) and isinstance(part.value, str)
                }
    from pi_relay.cli import add_device, devices, queue, status, tls, trace

    found |= {*COMMANDS.values(), *trace.SENTENCES.values(), *queue.STATES}
    found |= {action[0] for verb in (queue, tls) for action in verb.ACTIONS.values()} | {tls.INSTALLING}
    found |= {devices.ADD, *add_device.ENCRYPTIONS.values()}
    found |= {sentence for _, sentence in status._HEALTH.values()}
    return found


def test_every_sentence_has_a_japanese_one_with_the_same_placeholders() -> None:
    missing = sentences() - TEXTS.keys()
    assert not missing
    for english, japanese in TEXTS.items():
        placeholders = [sorted(re.findall(r"\{[^}]*\}|%\(\w+\)\w|%\w", text)) for text in (english, japanese)]
        assert placeholders[0] == placeholders[1], english


# ── speed ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "arguments", [["status"], ["queue", "list", "--help"], ["trace", "x"], ["devices"]], ids=" ".join
)
def test_quick_commands_import_nothing_heavy(pi_relay: CommandLine, arguments: list[str]) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pi_relay", *arguments],
        env=pi_relay.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if "|" in line}
    assert "argparse" in imported
    heavy = {
        "asyncio",
        "ssl",
        "aiosmtpd",
        "aiosmtplib",
        "dns",
        "cryptography",
        "logging",
        "email",
        "dataclasses",
    }
    assert not heavy & {name.partition(".")[0] for name in imported}


# ── man pages ────────────────────────────────────────────────────────────────────────────────────


def test_the_man_pages_are_up_to_date(pi_relay: CommandLine, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pi_relay.cli.manual", tmp_path / "man"],
        env=pi_relay.environment(),
        check=True,
    )
    for name in ("pi-relay.1", "pi-relay.toml.5"):
        written = (MAN / name).read_text("utf-8")
        assert (tmp_path / "man" / name).read_text("utf-8") == written, (
            "run: python -m pi_relay.cli.manual docs/man"
        )


@pytest.mark.skipif(not shutil.which("man"), reason="no man here")
@pytest.mark.parametrize("name", ["pi-relay.1", "pi-relay.toml.5"])
def test_man_renders_them_without_a_warning(name: str) -> None:
    result = subprocess.run(
        ["man", "--warnings=w", "-l", MAN / name], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stderr == ""
    assert "SEE ALSO" in result.stdout
