"""docs/configuration.md, written from the table of keys and the list of rules.

``python -m pi_relay.config.reference > docs/configuration.md``; a test compares the two, so that the page
cannot tell anything but what the program does. Rules: what a key means stands in schema.py, what keys mean
together in rules.py; here is only the frame around them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from .rules import RULES
from .schema import NOT_YET, TABLES, Key, Table, generic_name, in_toml, in_toml_line

_INTRODUCTION = """\
# pi-relay.toml: the reference

<!-- Written by `python -m pi_relay.config.reference`; change pi_relay/config/ instead. -->

pi-relay has one configuration file, `/etc/pi-relay/pi-relay.toml` (another one: `pi-relay -c FILE ...`, or
the environment variable `PI_RELAY_CONFIG`). Nothing in it is needed but a way out; a typical office writes:

```toml
postmaster = "admin@office.example"

[smart_hosts.isp]
host = "smtp.isp.example"
username = "relay@office.example"
password_file = "isp.password"
```

Then: `pi-relay check` names everything that is wrong with it, and `pi-relay reload` makes the running relay
take it up. A file with errors is refused as a whole, and the relay goes on with the last good one.

- The file is [TOML](https://toml.io) in UTF-8. Order matters only among listeners, smart hosts and routes.
- A size is a number and a unit: `"35 MB"` (35,000,000 bytes) or `"35 MiB"`. A duration likewise: `"90s"`,
  `"5m"`, `"4h"`, `"3d"`.
- A file name counts from the folder of `pi-relay.toml`.
- In a pattern `*` stands for anything, and nothing else is special. Upper and lower case are the same.
- `"local"` means this machine and the private networks that it is in, whatever they are at the moment.
- A secret (a password file, a private key, and `pi-relay.toml` itself with a password in it) belongs to the
  relay's user alone: `chmod 600`. Anything wider is an error.
- The state folder is `$STATE_DIRECTORY` (systemd sets it), or `/var/lib/pi-relay`.

## What `pi-relay check` says

    FILE:LINE: key: what is wrong
    hint: what to do

All findings come at once. An error (exit status 3) keeps the relay from starting; a warning (exit status 0,
"warning:" before the words) does not. With `--json`, a list of `{line, key, severity, message, hint}`;
`line` is 0 where the whole file is meant.

An unknown key, a value of a wrong type, a value out of bounds, and a missing required key are errors. So is
a key whose feature this version does not have, even at its default: "not available in this version".
"""


def reference(not_yet: Collection[str] = NOT_YET) -> str:
    """The page, in Markdown."""
    parts = [_INTRODUCTION, "## Keys\n"]
    parts += [_section(table, not_yet) for table in TABLES]
    parts += [_missing(not_yet), _rules()]
    return "\n".join(parts)


def example(table: Table, not_yet: Collection[str] = NOT_YET) -> Iterator[str]:
    """The lines of a section that gives every key there is."""
    if table.name:
        yield table.header
    keys = [key for key in table.keys if generic_name(table, key) not in not_yet]
    width = max(len(key.name) for key in keys)
    for key in keys:
        yield in_toml_line(key, width)


def _section(table: Table, not_yet: Collection[str]) -> str:
    title = f"`{table.header}`" if table.name else "The top of the file"
    lines = [f"### {title}", "", table.about, ""]
    if table.name in not_yet:
        lines += ["Not available in this version.", ""]
    lines += [
        "```toml",
        *example(table, not_yet),
        "```",
        "",
        "| key | value | default | meaning |",
        "|---|---|---|---|",
    ]
    lines += [_row(table, key, not_yet) for key in table.keys]
    return "\n".join([*lines, ""])


def _row(table: Table, key: Key, not_yet: Collection[str]) -> str:
    about = key.about
    if generic_name(table, key) in not_yet:
        about += " *Not available in this version.*"
    cells = (f"`{key.name}`", key.kind.words, _default(key), about)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _default(key: Key) -> str:
    if key.required:
        return "required"
    return key.default_words or f"`{in_toml(key.default)}`"


def _missing(not_yet: Collection[str]) -> str:
    lines = ["### Not available in this version", ""]
    lines += [f"- `{name}`" for name in sorted(not_yet)]
    return "\n".join([*lines, ""])


def _rules() -> str:
    lines = ["## Rules over several keys", ""]
    lines += [f"- {' '.join((rule.__doc__ or '').split())}" for rule in RULES]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    print(reference(), end="")
