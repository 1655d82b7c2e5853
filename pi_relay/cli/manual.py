"""The man pages, written from what the program itself says: --help of every verb, and the table of keys.

``python -m pi_relay.cli.manual docs/man`` writes them; a test compares them with those in the repository.
Rules: English; nothing is said here that another place says already.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from pi_relay import __version__
from pi_relay.cli import COMMANDS, NOT_YET, command_parser, top_parser

_ENDING = """\
.SH EXIT STATUS
.TP
.B 0
all is well
.TP
.B 1
the thing asked for failed
.TP
.B 2
wrong usage, or a command that is not in this version
.TP
.B 3
the configuration file has an error
.TP
.B 4
the relay is not running
.TP
.B 5
not found: no such queue id, device or smart host; nothing in the mail log
.SH JSON
Commands that read take
.BR \\-\\-json :
one document on stdout with keys that stay, RFC 3339 times in UTC, whole numbers of bytes and seconds.
.SH ENVIRONMENT
.TP
.B PI_RELAY_CONFIG
the configuration file, where
.B \\-c
is not given
.TP
.B STATE_DIRECTORY
certificates, counters, logs (default: /var/lib/pi\\-relay)
.TP
.B RUNTIME_DIRECTORY
the control socket (default: /run/pi\\-relay)
.TP
.BR LC_ALL ", " LC_MESSAGES ", " LANG
the language: English, or Japanese where it begins with "ja"
.TP
.B NO_COLOR
no colours, whatever the terminal
.SH FILES
.TP
.I /etc/pi\\-relay/pi\\-relay.toml
the configuration file,
.BR pi\\-relay.toml (5)
.TP
.I /var/lib/pi\\-relay/log/mail\\-YYYY\\-MM\\-DD.log
the mail log, a file a day
.TP
.I /run/pi\\-relay/control.sock
where the commands speak to the running relay; for root and the group pi\\-relay
.SH SEE ALSO
.BR pi\\-relay.toml (5),
.BR journalctl (1)
"""


def command_page() -> str:
    """pi-relay(1), in man's macros (man 7)."""
    lines = [
        _title("PI-RELAY", 1),
        ".SH NAME",
        "pi\\-relay \\- the mail relay that a small office plugs in and forgets",
        ".SH SYNOPSIS",
        ".B pi\\-relay",
        "[\\-c FILE] COMMAND ...",
        ".SH DESCRIPTION",
        "Takes mail from the devices of an office, keeps it safe until a smart host has taken it over,",
        "and says what became of it. One process",
        ".RB ( serve )",
        "does the work; the other commands look at it and steer it.",
        ".SH OPTIONS",
        *_options(top_parser()),
        ".SH COMMANDS",
    ]
    for command in COMMANDS:
        lines += _command(command_parser(command))
    not_yet = ", ".join(NOT_YET)
    lines += [".SS Not available in this version", _text(not_yet)]
    return "\n".join(lines) + "\n" + _ENDING


def _title(name: str, section: int) -> str:
    return f'.TH {_text(name)} {section} "" "pi\\-relay {__version__}" "pi\\-relay"'


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield f".SS {_text(parser.prog)}"
    runs_alone = not any(action.required for action in parser._actions if _is_choice_of_parsers(action))
    if runs_alone:
        yield f".B {_text(_usage(parser))}"
        yield ".PP"
    yield _text(parser.description or "")
    if runs_alone:
        yield from _options(parser)
        yield from _example(parser.epilog or "")
    for action in _sub_parsers(parser):
        yield from _command(action)


def _sub_parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    return [
        sub_parser
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for sub_parser in action.choices.values()
    ]


def _is_choice_of_parsers(action: argparse.Action) -> bool:
    return isinstance(action, argparse._SubParsersAction)


def _usage(parser: argparse.ArgumentParser) -> str:
    words = " ".join(parser.format_usage().split()).removeprefix("usage: ")
    return words.replace("[-h] [-c FILE] ", "").replace(" [-h] [-c FILE]", "")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """What every command takes (-h, -c) is told once, of the whole."""
    is_top = parser.prog == "pi-relay"
    for action in parser._actions:
        everywhere = bool({"-h", "-c"} & set(action.option_strings))
        if action.help in (None, argparse.SUPPRESS) or (everywhere and not is_top):
            continue
        metavar = str(action.metavar or "") if action.nargs != 0 else ""
        if action.choices and not metavar:
            metavar = "|".join(action.choices)
        names = ", ".join(action.option_strings) or metavar
        value = f" {metavar}" if action.option_strings and metavar else ""
        yield ".TP"
        yield f".B {_text(names + value)}"
        yield _text(str(action.help))


def _example(epilog: str) -> Iterator[str]:
    title, _, lines = epilog.partition("\n")
    yield ".PP"
    yield _text(title.capitalize())
    yield ".PP"
    yield ".EX"
    for line in lines.splitlines():
        yield _text(line)
    yield ".EE"


def file_page() -> str:
    """pi-relay.toml(5)."""
    from pi_relay.config.reference import reference

    lines = [
        _title("PI-RELAY.TOML", 5),
        ".SH NAME",
        "pi\\-relay.toml \\- the configuration file of pi\\-relay",
        *_from_markdown(reference().split("\n")),
        ".SH SEE ALSO",
        ".BR pi\\-relay (1)",
    ]
    return "\n".join(lines) + "\n"


# ── the little Markdown that our reference uses ──────────────────────────────────────────────────


def _from_markdown(lines: list[str]) -> Iterator[str]:
    position = 0
    while position < len(lines):
        line = lines[position]
        if line.startswith("```"):
            end = lines.index("```", position + 1)
            yield from (".PP", ".EX", *map(_text, lines[position + 1 : end]), ".EE")
            position = end
        elif line.startswith("    "):
            yield from (".PP", ".EX", _text(line.strip()), ".EE")
        elif line.startswith("|"):
            end = position
            while lines[end].startswith("|"):
                end += 1
            yield from _table(lines[position + 2 : end])
            position = end - 1
        else:
            yield from _prose(line)
        position += 1


def _prose(line: str) -> Iterator[str]:
    """A heading, a list item, or a line of a paragraph."""
    if line.startswith("# "):
        yield ".SH DESCRIPTION"
    elif line.startswith("## "):
        yield f".SH {_text(line[3:].replace('`', '').upper())}"
    elif line.startswith("### "):
        yield f".SS {_marked(line[4:])}"
    elif line.startswith("- "):
        yield from ('.IP "\\(bu" 2', _marked(line[2:]))
    elif line.startswith("<!--"):
        return
    elif line:
        yield _marked(line.strip())
    else:
        yield ".PP"


def _table(rows: list[str]) -> Iterator[str]:
    """A row a key: its name, what it may be, its default, what it means."""
    for row in rows:
        key, value, default, about = (
            cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)[1:-1]
        )
        yield ".TP"
        yield f".B {_text(key.strip('`'))}"
        yield _marked(f"{value}; {'required' if default == 'required' else f'default: {default}'}.")
        yield ".br"
        yield _marked(about)


def _marked(text: str) -> str:
    """`code` and *emphasis* in the fonts of man; links as their words."""
    text = re.sub(r"\[([^]`]+)\]\(([^)]+)\)", r"\1 (\2)", text)
    parts = re.split(r"(`[^`]+`|(?<![\w*`])\*[^*`]+\*(?![\w*`]))", text)
    marked = "".join(map(_part, parts))
    return f"\\&{marked}" if marked.startswith((".", "'")) else marked


def _part(part: str) -> str:
    if len(part) > 2 and part[0] == part[-1] == "`":
        return f"\\fB{_escaped(part[1:-1])}\\fR"
    if len(part) > 2 and part[0] == part[-1] == "*":
        return f"\\fI{_escaped(part[1:-1])}\\fR"
    return _escaped(part)


def _text(text: str) -> str:
    escaped = _escaped(text)
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("`", "\\(ga")


PAGES = {"pi-relay.1": command_page, "pi-relay.toml.5": file_page}


def write_pages(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (directory / name).write_text(page(), "utf-8")


if __name__ == "__main__":
    os.environ["LC_ALL"] = "C.UTF-8"
    os.environ.pop("PI_RELAY_CONFIG", None)
    write_pages(Path(sys.argv[1]))
