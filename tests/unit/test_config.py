"""Reading pi-relay.toml: values, defaults, lines, files, and the reference from the same table."""

from __future__ import annotations

import dataclasses
import os
import string
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pi_relay import config, folders
from pi_relay.config import Config, ConfigInvalid, Listener, check, kinds, load, machine, schema
from pi_relay.config.locate import Locator
from pi_relay.config.reference import example, reference
from pi_relay.passwords import hash_password

OFFICE = """\
postmaster = "admin@office.example"

[smart_hosts.isp]
host = "smtp.isp.example"
username = "relay@office.example"
password_file = "isp.password"
"""
NOTHING = frozenset[str]()  # no key is missing
BAD_CONFIGS = Path(__file__).parents[1] / "bad_configs"
_TMPFS = Path("/dev/shm")  # noqa: S108


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STATE_DIRECTORY", f"{tmp_path}/state:{tmp_path}/other")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    (tmp_path / "isp.password").write_text("s3cret\r\n")
    (tmp_path / "isp.password").chmod(0o600)
    (tmp_path / "relay1.pem").write_bytes((BAD_CONFIGS / "dkim" / "ed25519.pem").read_bytes())  # a good one
    (tmp_path / "relay1.pem").chmod(0o600)
    return tmp_path


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "pi-relay.toml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    path.chmod(0o600)
    return path


def errors(path: Path, not_yet: frozenset[str] = config.NOT_YET) -> list[tuple[int, str]]:
    return [(f.line, f.key) for f in check(path, not_yet=not_yet)[1] if f.severity == "error"]


def warned(path: Path, key: str, not_yet: frozenset[str] = config.NOT_YET) -> str:
    """What the warning about the key says, "" where there is none."""
    found = check(path, not_yet=not_yet)[1]
    return next((f.message for f in found if f.severity == "warning" and f.key == key), "")


# ── a typical office ─────────────────────────────────────────────────────────────────────────────


def test_five_lines_are_enough(folder: Path) -> None:
    loaded = load(write(folder, OFFICE))
    (isp,) = loaded.smart_hosts
    assert (isp.name, isp.host, isp.port, isp.tls, isp.auth) == (
        "isp",
        "smtp.isp.example",
        587,
        "starttls",
        "password",
    )
    assert isp.password == "s3cret"  # noqa: S105
    assert "s3cret" not in repr(loaded)
    assert loaded.path == folder / "pi-relay.toml"
    assert loaded.listeners == config.DEFAULT_LISTENERS
    assert [route.via for route in loaded.routes] == [("isp",)]
    assert loaded.submission.sender_domains == ("office.example",)
    assert loaded.submission.default_sender == "relay@office.example"
    assert loaded.queue.directory == folder / "state" / "queue"


def test_bom_and_crlf_are_tolerated(folder: Path) -> None:
    plain = load(write(folder, OFFICE))
    assert load(write(folder, b"\xef\xbb\xbf" + OFFICE.replace("\n", "\r\n").encode())) == plain


def test_load_raises_everything_at_once(folder: Path) -> None:
    path = write(folder, OFFICE + 'port = "587"\ntlss = "off"\n')
    with pytest.raises(ConfigInvalid) as raised:
        load(path)
    assert [finding.line for finding in raised.value.findings] == [7, 8]
    assert f"{path}:7: smart_hosts.isp.port: " in str(raised.value)


def test_missing_file_is_a_finding_without_a_line(folder: Path) -> None:
    loaded, (finding,) = check(folder / "nothing.toml")
    assert loaded is None
    assert (finding.line, finding.key, finding.severity) == (0, "", "error")
    assert "does not exist" in finding.message


@pytest.mark.parametrize("name", [".", "pipe", "a\0b", "x" * 300])
def test_what_is_no_file_is_a_finding(folder: Path, name: str) -> None:
    os.mkfifo(folder / "pipe")
    assert check(folder / name)[0] is None


def test_deep_nesting_is_a_finding(folder: Path) -> None:
    loaded, findings = check(write(folder, "x = " + "[" * 100_000))
    assert loaded is None and findings


# ── values ───────────────────────────────────────────────────────────────────────────────────────

READ: list[tuple[kinds.Kind, object, object]] = [
    (kinds.size("1 KB", "1 TB"), "35 MB", 35_000_000),
    (kinds.size("1 KB", "1 TB"), "35MiB", 35 * 2**20),
    (kinds.size("1 KB", "1 TB"), "1.5 gb", 1_500_000_000),
    (kinds.duration("1s", "9d"), "90s", 90.0),
    (kinds.duration("1s", "9d"), "4h", 14_400.0),
    (kinds.duration("1s", "9d"), "3 d", 259_200.0),
    (kinds.duration("1s", "9d", zero="never"), "0s", 0.0),
    (kinds.endpoint(), ":25", ("", 25)),
    (kinds.endpoint(), "192.168.1.10:25", ("192.168.1.10", 25)),
    (kinds.endpoint(), "[FD00::1]:465", ("fd00::1", 465)),
    (kinds.network(), "local", "local"),
    (kinds.network(), "192.168.7.0/24", "192.168.7.0/24"),
    (kinds.network(), "FD00:0::/8", "fd00::/8"),
    (kinds.network(local=False), "192.168.1.23", "192.168.1.23"),
    (kinds.network(local=False), "FD00::0001", "fd00::1"),
    (kinds.host(), "SMTP.ISP.example.", "smtp.isp.example"),
    (kinds.host(), "[fd00::1]", "fd00::1"),
    (kinds.host(), "smtp.büro.example", "smtp.xn--bro-hoa.example"),
    (kinds.mail_address(""), "Scans@Büro.example", "Scans@xn--bro-hoa.example"),
    (kinds.mail_address(""), "a..b@office.example", "a..b@office.example"),
    (kinds.mail_address(""), '"a b"@office.example', '"a b"@office.example'),
    (kinds.mailbox(""), "Copier 2F <scans@office.example>", "Copier 2F <scans@office.example>"),
    (kinds.address_pattern(), "*@*.Office.example", "*@*.office.example"),
    (kinds.address_pattern(), "*@büro.example", "*@xn--bro-hoa.example"),
    (kinds.domain_pattern(), "*.Office.example", "*.office.example"),
    (kinds.mac(), "00-1B-A9-12-34-56", "00:1b:a9:12:34:56"),
    (kinds.verification(), "SHA256:" + ":".join(["AB"] * 32), "sha256:" + "ab" * 32),
    (kinds.verification(), False, False),
]


@pytest.mark.parametrize(("kind", "value", "ours"), READ)
def test_good_values(kind: kinds.Kind, value: object, ours: object) -> None:
    assert kind.read(value) == ours


BAD: list[tuple[kinds.Kind, list[object]]] = [
    (kinds.size("1 KB", "1 MB"), [35, "35", "MB", "1 B", "2 MB", "1 XB", "", "1e3 KB", True, "９ KB"]),
    (kinds.duration("1s", "9d"), [90, "90", "0s", "10d", "1w", "-1s", "4h30m", None]),
    (kinds.endpoint(), ["25", ":0", ":65536", "fd00::1:25", "[::1]", "localhost:25", ":٢٥", 25, True]),
    (kinds.network(), ["", "local ,", "10.0.0.1/8", "1.2.3", "::ffff:10.0.0.0/104", "10.0.0.0/33", 10]),
    (kinds.network(local=False), ["local"]),
    (kinds.host(), ["", "a b", "a..b", "-a", "smtp://a", "a:25", "1.2.3", "x" * 64]),
    (kinds.host_name(), ["", "10.0.0.1", "a_b", "a b", "ü" * 70]),
    (kinds.mail_address(""), ["", "a", "a@", "@a", "a b@c", "<a@b>", "a@b@c", "a\r\n@b", "a@" + "x" * 300]),
    (kinds.address_pattern(), ["", "office.example", "*@", "@x", "a b@c"]),
    (kinds.domain_pattern(), ["", "*.", "a@b", "a*.b", "a b"]),
    (kinds.mac(), ["", "00:1b", "00:1b:a9:12:34:5g"]),
    (kinds.verification(), ["true", "sha256:12", "md5:" + "0" * 64, 1]),
    (
        kinds.password_hash(),
        ["", "secret", hash_password("x")[:-30], hash_password("x").replace("scrypt", "bcrypt")],
    ),
    (kinds.whole(1, 9), [0, 10, 1.0, "1", True]),
    (kinds.flag(), [0, "true", None]),
]


@pytest.mark.parametrize(("kind", "value"), [(kind, value) for kind, values in BAD for value in values])
def test_bad_values(kind: kinds.Kind, value: object) -> None:
    with pytest.raises(kinds.Wrong):
        kind.read(value)


def test_a_list_names_each_bad_element() -> None:
    with pytest.raises(ExceptionGroup) as raised:
        kinds.many(kinds.whole(1, 9), "numbers").read([1, "2", 3, 40])
    assert [wrong.inside for wrong in raised.value.exceptions if isinstance(wrong, kinds.Wrong)] == [1, 3]


# ── the table of keys ────────────────────────────────────────────────────────────────────────────

_CLASSES: dict[str, type] = {
    "": Config,
    "listeners": Listener,
    "submission": config.Submission,
    "tls": config.Tls,
    "devices": config.Device,
    "smart_hosts": config.SmartHost,
    "routes": config.Route,
    "direct": config.Direct,
    "dkim": config.Dkim,
    "queue": config.Queue,
    "log": config.Log,
}
_NOT_FIELDS = {("listeners", "address"), ("smart_hosts", "password_file")}
_NOT_KEYS = {("listeners", "host"), ("listeners", "port"), ("smart_hosts", "name"), ("", "path")}


@pytest.mark.parametrize("table", schema.TABLES, ids=lambda table: table.name or "top")
def test_the_table_agrees_with_the_dataclasses(table: schema.Table) -> None:
    fields = {field.name: field for field in dataclasses.fields(_CLASSES[table.name])}
    by_field = {key.field: key for key in table.keys if (table.name, key.name) not in _NOT_FIELDS}
    sections = {other.name for other in schema.TABLES}
    known = {name for name in fields if (table.name, name) not in _NOT_KEYS}
    assert known - (sections if not table.name else set()) == set(by_field)
    for name, key in by_field.items():
        default = fields[name].default
        if key.default is not None and default is not dataclasses.MISSING:
            assert key.kind.read(key.default) == default, name


@pytest.mark.parametrize("table", schema.TABLES, ids=lambda table: table.name or "top")
def test_every_example_is_good(table: schema.Table) -> None:
    values: Any = tomllib.loads("\n".join(example(table, NOTHING)))
    if table.name:
        values = values[table.name]
        values = values[0] if table.is_array else values["NAME"] if table.is_named else values
    assert list(values) == [key.name for key in table.keys]
    for key in table.keys:
        if key.name != "password_hash":
            key.kind.read(values[key.name])


def test_the_reference_is_the_one_of_this_program() -> None:
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    again = "run: python -m pi_relay.config.reference > docs/configuration.md"
    assert page.read_text() == reference(), again


def test_what_is_not_yet_there_names_real_keys() -> None:
    never = {"provider", "oauth", "silent_after", "alerts", "web"}
    names = {schema.generic_name(table, key) for table in schema.TABLES for key in table.keys}
    names |= {table.name for table in schema.TABLES}
    for entry in config.NOT_YET:
        key = entry.partition(" = ")[0]
        assert key in names or key.rpartition(".")[2] in never, entry


# ── every key, once it is available ──────────────────────────────────────────────────────────────

WHOLE = f"""\
hostname = "Relay.office.example"
postmaster = "admin@office.example"
language = "ja"

[[listeners]]
address = "127.0.0.1:2525"
tls = "off"
auth = "off"
networks = ["local", "10.0.0.0/8"]
proxy_protocol = true

[submission]
networks = ["192.168.0.0/16"]
sender_domains = ["office.example", "*.office.example"]
default_sender = "relay@office.example"
message_size_max = "20 MiB"
recipients_max = 50
connections_max = 60
connections_per_client_max = 6
messages_per_hour_max = 0
idle_timeout = "2m"

[[devices]]
name = "copier-2f"
address = "192.168.1.23"
mac = "00:1b:a9:12:34:56"
username = "copier"
password_hash = "{hash_password("x")}"
senders = ["*@office.example"]
reports_to = "it@office.example"
recipients = ["*@office.example"]
messages_per_hour_max = 60
recipients_per_hour_max = 300
legacy = true

[smart_hosts.office]
host = "smtp.office.example"
port = 465
username = "u1"
password = "inline"
tls_verify = "sha256:{"0" * 64}"
sender = "u1@isp.example"
message_size_max = "20 MB"
connections_max = 2
messages_per_minute_max = 30
messages_per_hour_max = 300
messages_per_day_max = 3000
recipients_per_day_max = 9000
null_sender = false

[smart_hosts.isp]
host = "10.1.2.3"
auth = "none"
username = "me@isp2.example"

[[routes]]
recipients = ["*@office.example"]
senders = ["*"]
devices = ["copier-2f"]
via = ["direct"]

[[routes]]
via = ["isp", "office"]

[direct]
dns_servers = ["127.0.0.1:5353"]
address_families = ["ipv4", "ipv6"]
allow_private = true
mta_sts = false

[[dkim]]
domain = "office.example"
selector = "relay1"
key_file = "relay1.pem"

[queue]
directory = "q"
size_max = "1 GB"
free_space_min = "1 MB"
retry_delays = ["1s", "2s"]
lifetime = "10s"
delay_warning_after = "0s"

[log]
retention = "7d"
size_max = "1 MB"
addresses = "hashed"
"""


def test_every_key_reaches_the_configuration(folder: Path) -> None:
    loaded, findings = check(write(folder, WHOLE), not_yet=NOTHING)
    assert [f.message for f in findings if f.severity == "error"] == []
    assert loaded is not None
    assert (loaded.hostname, loaded.language) == ("relay.office.example", "ja")
    assert loaded.listeners == (Listener("127.0.0.1", 2525, "off", "off", ("local", "10.0.0.0/8"), True),)
    assert loaded.submission == config.Submission(
        ("192.168.0.0/16",), ("office.example", "*.office.example"), "relay@office.example",
        20 * 2**20, 50, 60, 6, 0, 120.0,
    )  # fmt: skip
    assert loaded.devices[0].mac == "00:1b:a9:12:34:56" and loaded.devices[0].legacy
    office, isp = loaded.smart_hosts
    assert (office.tls, office.auth, office.password, office.null_sender) == (
        "implicit",
        "password",
        "inline",
        False,
    )
    assert (office.messages_per_minute_max, office.recipients_per_day_max) == (30, 9000)
    assert (isp.auth, isp.password) == ("none", "")
    assert loaded.routes == (
        config.Route(("direct",), ("*@office.example",), ("*",), ("copier-2f",)),
        config.Route(("isp", "office")),
    )
    assert loaded.direct == config.Direct(("127.0.0.1:5353",), ("ipv4", "ipv6"), True, False)
    assert loaded.dkim == (config.Dkim("office.example", "relay1", folder / "relay1.pem"),)
    assert loaded.queue == config.Queue(folder / "q", 10**9, 10**6, (1.0, 2.0), 10.0, 0.0)
    assert loaded.log == config.Log(7 * 86400.0, 10**6, "hashed")


def test_every_key_that_is_described_is_available(folder: Path) -> None:
    loaded, findings = check(write(folder, WHOLE))
    assert loaded is not None, findings


def test_sender_domains_come_from_the_smart_hosts(folder: Path) -> None:
    text = OFFICE.replace("relay@office.example", "u1") + 'sender = "a@Büro.example"\n\n'
    text += '[smart_hosts.two]\nhost = "two.example"\nauth = "none"\nusername = "b@two.example"\n'
    submission = load(write(folder, text)).submission
    assert submission.sender_domains == ("xn--bro-hoa.example", "two.example")
    assert submission.default_sender == "a@xn--bro-hoa.example"


def test_unknown_sender_domains_are_any(folder: Path) -> None:
    path = write(folder, '[smart_hosts.isp]\nhost = "smtp.isp.example"\n')
    assert load(path).submission.sender_domains == ("*",)
    assert warned(path, "submission.sender_domains")


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_secret_that_others_can_get_at_is_an_error(folder: Path, mode: int) -> None:
    (folder / "isp.password").chmod(mode)
    assert errors(write(folder, OFFICE)) == [(6, "smart_hosts.isp.password_file")]


def test_an_inline_password_closes_the_file(folder: Path) -> None:
    path = write(folder, OFFICE.replace('password_file = "isp.password"', 'password = "x"'))
    assert load(path).smart_hosts[0].password == "x"  # noqa: S105
    path.chmod(0o644)
    assert errors(path) == [(6, "smart_hosts.isp.password")]


def test_a_credential_goes_first_and_keeps_its_mode(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "credentials").mkdir()
    (folder / "credentials" / "isp.password").write_text("from systemd")
    (folder / "credentials" / "isp.password").chmod(0o440)
    (folder / "isp.password").unlink()
    path = write(folder, OFFICE)
    assert errors(path)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(folder / "credentials"))
    assert load(path).smart_hosts[0].password == "from systemd"  # noqa: S105


def test_a_pipe_for_a_password_does_not_hang(folder: Path) -> None:
    (folder / "isp.password").unlink()
    os.mkfifo(folder / "isp.password", 0o600)
    assert errors(write(folder, OFFICE)) == [(6, "smart_hosts.isp.password_file")]


# ── the machine ──────────────────────────────────────────────────────────────────────────────────


def test_folders_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATE_DIRECTORY", "/a:/b")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/c")
    assert (folders.state_directory(), folders.runtime_directory()) == (Path("/a"), Path("/c"))
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "")
    assert folders.state_directory() == Path("/var/lib/pi-relay")
    assert folders.runtime_directory() == Path("/run/pi-relay")


def named(monkeypatch: pytest.MonkeyPatch, own: str) -> None:
    uname = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((uname[0], own, *uname[2:])))


@pytest.mark.parametrize(
    ("own", "hosts", "full"),
    [
        ("relay.office.example", "", "relay.office.example"),
        ("relay", "127.0.1.1 relay.office.example relay # us\n", "relay.office.example"),
        ("Relay", "# 127.0.1.1 relay.wrong.example relay\n127.0.1.1 relay\n", "relay"),
        ("relay", "127.0.0.1 localhost\n", "relay"),
        ("my_relay", "", "localhost"),
    ],
)
def test_full_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: str, hosts: str, full: str) -> None:
    named(monkeypatch, own)
    (tmp_path / "hosts").write_text(hosts)
    assert machine.full_name(tmp_path / "hosts") == full
    if not hosts:
        assert machine.full_name(tmp_path / "none") == full


@pytest.mark.parametrize(
    ("kind", "is_forgetful"),
    [("ext4", False), ("vfat", True), ("tmpfs", True), ("nfs4", True), ("overlay", True), ("btrfs", False)],
)
def test_partition_is_the_innermost_and_latest_mount(tmp_path: Path, kind: str, is_forgetful: bool) -> None:
    inner = tmp_path / "a b"
    inner.mkdir()
    escaped = str(inner).replace(" ", "\\040")
    (tmp_path / "mounts").write_text(
        f"/dev/x {escaped} xfs rw 0 0\n/dev/y {escaped} {kind} rw 0 0\n/dev/root / ext3 rw 0 0\nodd line\n"
    )
    partition = machine.partition_of(inner / "to" / "be" / "made", tmp_path / "mounts")
    assert partition is not None
    assert bool(partition.forgetful) == is_forgetful
    usage = os.statvfs(inner)
    assert partition.size_bytes == usage.f_blocks * usage.f_frsize


@pytest.mark.skipif(not _TMPFS.is_dir(), reason="no tmpfs to look at")
def test_a_queue_in_memory_is_warned_of(folder: Path) -> None:
    path = write(folder, OFFICE + f'\n[queue]\ndirectory = "{_TMPFS}/pi-relay-test"\n')
    assert "power cut" in warned(path, "queue.directory")


def test_default_size_of_the_queue(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(folder, OFFICE)
    for size_bytes, size_max_bytes in ((100 * 10**9, 4 * 10**9), (3 * 10**9, 1_500_000_000)):
        partition = machine.Partition(size_bytes, size_bytes, "")
        monkeypatch.setattr(machine, "partition_of", lambda directory, found=partition: found)
        assert load(path).queue.size_max_bytes == size_max_bytes


def test_our_own_addresses_are_known() -> None:
    assert machine.is_own_address("127.0.0.1")
    assert not machine.is_own_address("8.8.8.8")
    assert not machine.is_own_address("nonsense")


# ── lines ────────────────────────────────────────────────────────────────────────────────────────


def test_lines_in_every_notation() -> None:
    text = '''\
# top
a = 1
"b c".'d' = """
x = 7 # no key
""""
[e] # [no]
"\\u0066" = [ # one
  { g = 1 },
  'x', [1,
  2]
]
[[h]]
i = 2026-01-01 10:00:00
[h.j]
k = "]" # ]
[[h]]
i = \'\'\'a
\'\'\'
[e.l.m]
n = { o.p = "}", q = [
  1 ] }
'''
    lines = Locator(text)
    expected: dict[tuple[str | int, ...], int] = {
        ("a",): 2,
        ("b c", "d"): 3,
        ("e",): 6,
        ("e", "f"): 7,
        ("e", "f", 0, "g"): 8,
        ("e", "f", 1): 9,
        ("e", "f", 2, 1): 10,
        ("h", 0): 12,
        ("h", 0, "i"): 13,
        ("h", 0, "j", "k"): 15,
        ("h", 1): 16,
        ("h", 1, "i"): 17,
        ("e", "l", "m", "n", "o", "p"): 20,
        ("e", "l", "m", "n", "q", 0): 21,
        ("e", "unknown"): 6,
        ("unknown",): 1,
    }
    assert {path: lines.line(path) for path in expected} == expected
    tomllib.loads(text)


_KEYS = st.text(string.ascii_letters + " .\"'#=[]\n\\é", max_size=6)
_SCALARS = st.one_of(
    st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=12), st.dates(), st.times()
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS, inner, max_size=3),
    max_leaves=8,
)


def paths_of(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    steps = (
        list(value.items())
        if isinstance(value, dict)
        else list(enumerate(value))
        if isinstance(value, list)
        else []
    )
    found = [path] if path else []
    for step, inner in steps:
        found += paths_of(inner, (*path, step))
    return found


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(_KEYS, _VALUES, max_size=5), st.booleans())
def test_every_key_is_found(document: dict[str, Any], multiline: bool) -> None:
    text = tomli_w.dumps(document, multiline_strings=multiline)
    lines = Locator(text)
    for path in paths_of(tomllib.loads(text)):
        assert path in lines._lines, (text, path)


# ── nothing makes check() raise ──────────────────────────────────────────────────────────────────

_KNOWN = [key.name for table in schema.TABLES for key in table.keys] + [table.name for table in schema.TABLES]
_PLAUSIBLE = st.sampled_from(
    [
        ":25", "off", "password", "required", "isp", "direct", "local", "::1", "192.168.1.0/24", "0.0.0.0/0",
        "127.0.0.1", "localhost", "a@office.example", "*@office.example", "*", "4h", "0s", "35 MB", "", "\0",
        "ü@ü", "xn--", "。", "..", "/", "/proc/self/mem", "x" * 5000, hash_password("x"),
    ]
)  # fmt: skip
_ODD = st.recursive(
    st.one_of(_SCALARS, _PLAUSIBLE),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KNOWN) | _KEYS, inner, max_size=4)
    ),
    max_leaves=10,
)
_SECTION = st.dictionaries(st.sampled_from(_KNOWN), _PLAUSIBLE | _ODD, max_size=6)
_DOCUMENT = st.fixed_dictionaries(
    {},
    optional={
        table.name: st.lists(_SECTION, max_size=3)
        if table.is_array
        else st.dictionaries(st.sampled_from(["isp", "direct", "", "a b"]), _SECTION, max_size=3)
        if table.is_named
        else _SECTION
        for table in schema.TABLES[1:]
    },
)
# Generous, for the machine may be busy; the folder may well be shared by all examples.
_BOUNDED = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def assert_judged(path: Path) -> None:
    for not_yet in (config.NOT_YET, NOTHING):
        loaded, findings = check(path, not_yet=not_yet)
        assert (loaded is None) == any(finding.severity == "error" for finding in findings)
        last = path.read_bytes().count(b"\n") + 1
        for finding in findings:
            assert 0 <= finding.line <= last
            assert finding.message and finding.hint
            assert config.in_words(path, finding).count("\n") == 1


@_BOUNDED
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_make_check_raise(folder: Path, data: bytes) -> None:
    assert_judged(write(folder, data))


@_BOUNDED
@given(_DOCUMENT | st.dictionaries(st.sampled_from(_KNOWN) | _KEYS, _ODD, max_size=5))
def test_no_document_makes_check_raise(folder: Path, document: dict[str, Any]) -> None:
    assert_judged(write(folder, tomli_w.dumps(document)))


@_BOUNDED
@given(st.integers(0, len(WHOLE)), st.integers(0, 40), st.text("\"'[]{}=#.,\n\\ a1é", max_size=6))
def test_no_damage_makes_check_raise(folder: Path, at: int, length: int, inserted: str) -> None:
    assert_judged(write(folder, WHOLE[:at] + inserted + WHOLE[at + length :]))
