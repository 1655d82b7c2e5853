"""box.py of the image by itself: what people drop on the card, and what they read there."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BOX = Path(__file__).parents[2] / "image/root/usr/lib/pi-relay-box/box.py"
GOOD = 'hostname = "relay.office.example"\npostmaster = "admin@office.example"\n'
SMART_HOST = (
    '[smart_hosts.isp]\nhost = "smtp.isp.example"\nusername = "office"\npassword_file = "isp.password"\n'
)


def _load() -> ModuleType:
    specification = importlib.util.spec_from_file_location("pi_relay_box", BOX)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules["pi_relay_box"] = module
    specification.loader.exec_module(module)
    return module


box = _load()


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin")
    names = ("boot", "config", "state", "box", "backups", "home")
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "sample.toml").write_text("# nothing set up\n")
    return box.Places(**{name: tmp_path / name for name in names}, sample=tmp_path / "sample.toml")


@pytest.fixture(scope="module")
def public_key(tmp_path_factory: pytest.TempPathFactory) -> str:
    key = tmp_path_factory.mktemp("key") / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    return key.with_suffix(".pub").read_text()


@pytest.mark.parametrize(
    "data",
    [
        b"one\ntwo\n",
        b"one\r\ntwo\r\n",
        b"one\rtwo\r",
        b"\xef\xbb\xbfone\r\ntwo\r\n",
        "one\r\ntwo\r\n".encode("utf-16"),
        b"\xfe\xff" + "one\ntwo\n".encode("utf-16-be"),
    ],
)
def test_text_as_every_editor_writes_it(data: bytes) -> None:
    assert box.text_of(data) == "one\ntwo\n"


@pytest.mark.parametrize("data", [b"caf\xe9", b"a\0b", b"\xff\xfea"])
def test_what_is_no_text_is_said_so(data: bytes) -> None:
    with pytest.raises(box.Bad, match="UTF-8"):
        box.text_of(data)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("pi-relay.toml", "pi-relay.toml"),
        ("PI-RELAY.TOML", "pi-relay.toml"),
        ("Pi-Relay.toml.TXT", "pi-relay.toml"),
        ("authorized_keys", "authorized_keys"),
        ("Authorized_Keys.txt", "authorized_keys"),
        ("HOSTNAME.TXT", "hostname"),
        ("network", "network"),
        ("Factory-Reset.txt", "factory-reset"),
        ("Isp.PASSWORD.txt", "Isp.password"),
        ("._pi-relay.toml", ""),
        ("../x.password", ""),
        ("README.txt", ""),
        ("STATUS.txt", ""),
        ("config.txt", ""),
    ],
)
def test_names_in_all_their_forms(name: str, known: str) -> None:
    assert box.known_name(name) == known


def test_a_good_file_is_taken_and_wiped_from_the_card(places: Any) -> None:
    (places.boot / "isp.password").write_bytes(b"secret\r\n")
    (places.boot / "PI-RELAY.TOML.txt").write_bytes(
        (GOOD + SMART_HOST).replace("\n", "\r\n").encode("utf-8-sig")
    )
    news = box.take_over(places)
    assert [(each.name, each.taken) for each in news] == [
        ("isp.password", True),
        ("PI-RELAY.TOML.txt", True),
    ], news
    assert (places.config / "pi-relay.toml").read_text() == GOOD + SMART_HOST
    assert (places.config / "isp.password").read_text() == "secret\n"
    assert (places.config / "isp.password").stat().st_mode & 0o077 == 0
    assert list(places.boot.iterdir()) == []


def test_a_bad_file_leaves_the_last_good_one(places: Any) -> None:
    (places.config / "pi-relay.toml").write_text(GOOD)
    (places.boot / "pi-relay.toml").write_text(GOOD + "[submission]\nnetwork = 3\n")
    (news,) = box.take_over(places)
    assert not news.taken
    assert news.words[0].startswith("line 4: ")
    assert "hint: " in news.words[0]
    assert (places.config / "pi-relay.toml").read_text() == GOOD
    assert (places.boot / "pi-relay.toml").exists()
    assert [path.name for path in places.config.iterdir()] == ["pi-relay.toml"]
    status = box.status_text(places)
    assert "NOT taken" in status
    assert news.words[0] in status


def test_the_same_twice_is_not_guessed_at(places: Any) -> None:
    (places.boot / "hostname").write_text("one\n")
    (places.boot / "hostname.txt").write_text("two\n")
    (news,) = box.take_over(places)
    assert not news.taken
    assert "hostname and hostname.txt" in news.words[0]
    assert not (places.box / "hostname").exists()


def test_keys(places: Any, public_key: str) -> None:
    (places.boot / "authorized_keys.txt").write_text(f"# mine\r\n\r\n{public_key.strip()}\r\n")
    (news,) = box.take_over(places)
    assert news.taken
    assert "SHA256:" in news.words[0]
    assert (places.box / "ssh/authorized_keys").read_text() == public_key


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\n", "private key"),
        ("", "no key"),
        ("ssh-ed25519 AAAAnonsense me\n", "no SSH public key"),
    ],
)
def test_what_is_no_key_leaves_the_old_ones(places: Any, text: str, word: str) -> None:
    (places.box / "ssh").mkdir()
    (places.box / "ssh/authorized_keys").write_text("old")
    (places.boot / "authorized_keys").write_text(text)
    (news,) = box.take_over(places)
    assert not news.taken
    assert word in news.words[0]
    assert (places.box / "ssh/authorized_keys").read_text() == "old"


@pytest.mark.parametrize(
    ("text", "taken"), [("Mailbox\r\n", True), ("a.b.example", True), ("my box", False), ("", False)]
)
def test_hostname(places: Any, text: str, taken: bool) -> None:
    (places.boot / "hostname.txt").write_text(text)
    (news,) = box.take_over(places)
    assert news.taken is taken
    assert (places.box / "hostname").exists() is taken


def test_a_static_address(places: Any) -> None:
    lines = (
        "Address: 192.168.1.5/24",
        'gateway = "192.168.1.1"',
        "dns = 192.168.1.1, 9.9.9.9",
        "Time zone: Asia/Tokyo",
    )
    (places.boot / "Network.TXT").write_text("\r\n".join(lines))
    (news,) = box.take_over(places)
    assert news.taken, news.words
    made = (places.box / "network/10-wired.network").read_text()
    assert "Address=192.168.1.5/24\nGateway=192.168.1.1\nDNS=192.168.1.1\nDNS=9.9.9.9\n" in made
    assert (places.box / "localtime").readlink() == Path("/usr/share/zoneinfo/Asia/Tokyo")

    (places.boot / "network.txt").write_text("# DHCP again\n")
    (news,) = box.take_over(places)
    assert news.taken
    assert not (places.box / "network/10-wired.network").exists()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("adress = 192.168.1.5/24", "line 1: only address, gateway, dns, time_zone"),
        ("address = 192.168.1.5", "lacks its prefix"),
        ("address = 192.168.1.0/24\ngateway = 192.168.1.1", "address of a network"),
        ("address = 192.168.1.5/24", "gateway is missing"),
        ("address = 192.168.1.5/24\ngateway = 192.168.2.1", "does not lie in 192.168.1.0/24"),
        ("address = 192.168.1.5/24\ngateway = router", "line 2: gateway"),
        ("time_zone = Mars/Base", "Mars/Base"),
        ("time_zone = ../../etc/passwd", "there is no"),
        ("dns = 1.2.3.4, x", "line 1: dns"),
    ],
)
def test_what_is_wrong_with_a_network_is_said(places: Any, text: str, word: str) -> None:
    (places.boot / "network.txt").write_text(text)
    (news,) = box.take_over(places)
    assert not news.taken
    assert word in " ".join(news.words)
    assert not (places.box / "network").exists()


def test_a_huge_file_is_no_reason_to_stay_down(places: Any) -> None:
    (places.boot / "pi-relay.toml").write_bytes(b"#" * (box.SIZE_MAX_BYTES + 1))
    (news,) = box.take_over(places)
    assert not news.taken
    assert "larger than 1 MB" in news.words[0]


def test_a_factory_reset_takes_everything_but_what_lies_beside_it(places: Any, public_key: str) -> None:
    for path in (
        "config/isp.password",
        "state/queue/x",
        "box/ssh/authorized_keys",
        "backups/old",
        "home/admin/notes",
    ):
        place = places.boot.parent / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("old")
    (places.box / "config").mkdir()  # /etc/pi-relay is mounted from here
    (places.boot / "factory-reset.txt").write_bytes(b"")
    (places.boot / "authorized_keys").write_text(public_key)
    news = box.take_over(places)
    assert [each.taken for each in news] == [True, True]
    assert [path.name for path in places.config.iterdir()] == ["pi-relay.toml"]
    assert (places.config / "pi-relay.toml").read_text() == "# nothing set up\n"
    assert list(places.state.iterdir()) + list(places.backups.iterdir()) + list(places.home.iterdir()) == []
    assert (places.box / "config").is_dir()
    assert (places.box / "ssh/authorized_keys").read_text() == public_key
    assert list(places.boot.iterdir()) == []


def test_a_wiped_file_holds_nothing(tmp_path: Path) -> None:
    path, link = tmp_path / "isp.password", tmp_path / "the same blocks"
    path.write_text("secret")
    link.hardlink_to(path)
    box.wipe(path)
    assert not path.exists()
    assert link.read_bytes() == b"\0" * 6


def test_status_is_for_any_editor_and_written_only_when_it_changes(places: Any) -> None:
    box.tell(places)
    path = places.boot / "STATUS.txt"
    data = path.read_bytes()
    assert data.startswith(b"\xef\xbb\xbf")
    assert b"\n" not in data.replace(b"\r\n", b"")
    text = data.decode("utf-8-sig")
    for word in (
        "Nothing has been dropped",
        "it is not running",
        "587",
        "drop a file authorized_keys",
        "factory-reset.txt",
    ):
        assert word in text
    before = path.stat().st_mtime_ns
    box.tell(places)
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("health", "word"),
    [
        (["degraded", "there is no smart host: mail waits"], "sudoedit"),
        (["ok"], "send-test"),
        (["it is not running (yet)"], "journalctl"),
    ],
)
def test_the_greeting_names_the_next_step(health: list[str], word: str) -> None:
    assert word in box.next_step(health)
