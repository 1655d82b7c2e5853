"""A section more in a file that somebody else wrote: all else stays, octet for octet."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pi_relay.config.editing import CannotInsert, with_section

NEW = {"name": "copier", "address": "192.168.1.23"}
SECTION = '[[devices]]\nname = "copier"\naddress = "192.168.1.23"\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", SECTION),
        ("# mine\n", f"# mine\n\n{SECTION}"),
        ('hostname = "x"', f'hostname = "x"\n\n{SECTION}'),
        ("[queue]\n\n\n", f"[queue]\n\n\n{SECTION}"),
        ("[[devices]]\nname = 'a'\n# end\n", f"[[devices]]\nname = 'a'\n# end\n\n{SECTION}"),
        # behind the last of its kind, before the next section and what introduces it
        (
            "[[devices]]\nname = 'a'\n\n# the queue\n\n[queue]\n",
            f"[[devices]]\nname = 'a'\n\n{SECTION}\n# the queue\n\n[queue]\n".replace("\n\n\n#", "\n\n#"),
        ),
        (
            "[[devices]]\nname = 'a'\n# recipients = []\n\n[queue]\n",
            f"[[devices]]\nname = 'a'\n# recipients = []\n\n{SECTION}\n[queue]\n",
        ),
        (
            "[[devices]]\nname = 'a'\n# the queue\n[queue]\n",
            f"[[devices]]\nname = 'a'\n\n{SECTION}\n# the queue\n[queue]\n",
        ),
        ("[[devices]]\nname = 'a'\n[queue]\n", f"[[devices]]\nname = 'a'\n\n{SECTION}\n[queue]\n"),
        (
            "[[devices]]\nname = 'a'\n[queue]\n[[devices]]\nname='b'\n[log]\n",
            f"[[devices]]\nname = 'a'\n[queue]\n[[devices]]\nname='b'\n\n{SECTION}\n[log]\n",
        ),
        # what looks like a section and is none
        (
            "[[devices]]\nname = '''\n[[devices]]\n# [queue]'''\n[queue]\n",
            f"[[devices]]\nname = '''\n[[devices]]\n# [queue]'''\n\n{SECTION}\n[queue]\n",
        ),
        (
            "[[devices]]\nname = 'a'\nsenders = [\n  'x', # [queue]\n  # last\n]\n[queue]\n",
            f"[[devices]]\nname = 'a'\nsenders = [\n  'x', # [queue]\n  # last\n]\n\n{SECTION}\n[queue]\n",
        ),
    ],
)
def test_where_it_comes(before: str, after: str) -> None:
    changed, line = with_section(before.encode(), "devices", NEW)
    assert changed.decode() == after
    assert after.split("\n")[line - 1] == "[[devices]]"
    assert tomllib.loads(after)["devices"][-1] == NEW


def test_line_ends_and_bom_stay() -> None:
    before = b"\xef\xbb\xbfhostname = 'x'\r\n[[devices]]\r\nname = 'a'\r\n\r\n[queue]\r\n"
    changed, line = with_section(before, "devices", NEW)
    section = b'[[devices]]\r\nname = "copier"\r\naddress = "192.168.1.23"\r\n'
    assert changed == before.replace(b"\r\n[queue]", b"\r\n" + section + b"\r\n[queue]")
    assert line == 5
    assert with_section(b"\xef\xbb\xbf", "devices", NEW)[0] == b"\xef\xbb\xbf" + SECTION.encode()


@pytest.mark.parametrize("text", ["devices = [{name = 'a'}]\n", "devices = []\n[queue]\n"])
def test_inline_devices_are_left_alone(text: str) -> None:
    with pytest.raises(CannotInsert, match="devices = ") as refused:
        with_section(text.encode(), "devices", NEW)
    assert "[[devices]]" in refused.value.hint


LINES = st.sampled_from(
    ["", "# [[devices]]", "# note", "[queue]", "[log]", "[[devices]]", "[[routes]]", "a = 1",
     'b = """\n[x]\n"""', "c = [\n1,\n# [y]\n]", "[smart_hosts.isp]", "'[[devices]]' = 2", "  [tls]  # here"]
)  # fmt: skip


@given(st.lists(LINES, max_size=12), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.text(max_size=8))
def test_nothing_else_changes(lines: list[str], newline: str, ended: bool, name: str) -> None:
    text = "\n".join(lines) + ("\n" if ended else "")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    before = text.replace("\n", newline).encode()
    new = {"name": name.encode("utf-8", "replace").decode()}
    changed, line = with_section(before, "devices", new)
    added = tomllib.loads(changed.decode().replace("\r\n", "\n"))
    devices = added.pop("devices")
    assert devices == [*document.pop("devices", []), new]
    assert added == document
    assert changed.split(b"\n")[line - 1].rstrip(b"\r") == b"[[devices]]"
    old, kept = (
        [one.rstrip(b"\r") for one in data.split(b"\n") if one.strip()] for data in (before, changed)
    )
    assert any(kept[:at] + kept[at + 2 :] == old for at in range(len(old) + 1))
