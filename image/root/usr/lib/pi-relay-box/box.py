"""The box around the relay: what is dropped on the boot partition, and what STATUS.txt there says.

    box.py take-over    at each boot, before the network: check the dropped files, take the good ones over
    box.py tell         once the relay runs, and when addresses change: write STATUS.txt
    box.py greet        at a login: the state, and the next step

The boot partition is a FAT that any PC reads and writes. So names are taken in any case and with a .txt
behind them, texts with a BOM, as UTF-16, with CRLF or CR; and a file that was taken is wiped from there, for
it may hold a password. A bad file stays where it is, for its owner to mend, and what was in force before
stays in force.

Rules: everything is written whole or not at all, and done again after a power cut. Nothing here keeps the box
from coming up: what goes wrong is told in STATUS.txt. It must not know how the relay works: it asks pi-relay.
"""

from __future__ import annotations

import ipaddress
import json
import os
import pwd
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

SIZE_MAX_BYTES = 1024 * 1024
RELAY_USER = "pi-relay"

GUIDE = """\
Files that you may put here, beside this one (any PC can); the box takes them at its next start:
  pi-relay.toml     the configuration of the relay
  NAME.password     a password that pi-relay.toml names (password_file = "NAME.password")
  authorized_keys   SSH keys that may log in: ssh admin@{host}
  hostname.txt      the name of the box
  network.txt       lines like: address = 192.168.1.5/24, gateway = 192.168.1.1, dns = 192.168.1.1,
                    time_zone = Asia/Tokyo (without address: DHCP)
  factory-reset.txt (empty) everything that was set up or waits is deleted
"""


class Bad(Exception):
    """A dropped file that cannot be taken: each argument says one thing that is wrong."""


@dataclass
class Places:
    """Where things are; tests bring their own."""

    boot: Path = Path("/boot/firmware")
    config: Path = Path("/etc/pi-relay")
    state: Path = Path("/var/lib/pi-relay")
    box: Path = Path("/var/lib/pi-relay-box")
    backups: Path = Path("/var/backups/pi-relay")
    home: Path = Path("/var/home")
    zoneinfo: Path = Path("/usr/share/zoneinfo")
    sample: Path = Path("/usr/share/pi-relay-box/pi-relay.toml")

    @property
    def news(self) -> Path:
        return self.box / "taken.json"


@dataclass
class News:
    """What became of one dropped file."""

    name: str
    taken: bool
    words: list[str] = field(default_factory=list)


# ── reading what people drop ─────────────────────────────────────────────────────────────────────


def text_of(data: bytes) -> str:
    """The text of a file as Windows, macOS and Linux write it, lines ended by LF. Bad: it is no text."""
    encoding = "utf-8-sig"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise Bad("is no text: save it as UTF-8") from None
    if "\0" in text:
        raise Bad("is no text: save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def known_name(name: str) -> str:
    """What a file is, by its name in any case, with or without .txt; "" for what is none of ours."""
    plain = name.lower()
    plain = plain.removesuffix(".txt")
    if plain in ("pi-relay.toml", "authorized_keys", "hostname", "network", "factory-reset"):
        return plain
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,60}\.password", plain):
        # The case of its name is the one that pi-relay.toml names.
        return name[: len(plain) - len(".password")] + ".password"
    return ""


def dropped(boot: Path) -> dict[str, list[Path]]:
    """The files there are for us (two of a kind, perhaps): passwords before the file that names them."""
    found: dict[str, list[Path]] = {}
    with suppress(OSError):
        for path in sorted(boot.iterdir()):
            name = known_name(path.name)
            if name and path.is_file() and not path.is_symlink():
                found.setdefault(name, []).append(path)
    return dict(sorted(found.items(), key=lambda pair: (pair[0] == "pi-relay.toml", pair[0])))


# ── taking over ──────────────────────────────────────────────────────────────────────────────────


def take_over(places: Places) -> list[News]:
    """Every dropped file: checked, put in force, and wiped from the card."""
    places.box.mkdir(parents=True, exist_ok=True)
    found = dropped(places.boot)
    news = []
    if not found:
        return []
    with _writable(places.boot):
        if "factory-reset" in found:
            _reset(places)
            for path in found.pop("factory-reset"):
                wipe(path)
                news.append(News(path.name, True, ["everything that was set up has been deleted"]))
        for name, paths in found.items():
            if len(paths) == 1:
                news.append(_take(places, name, paths[0]))
            else:
                both = " and ".join(path.name for path in paths)
                news.append(
                    News(paths[0].name, False, [f"{both} are the same to the box: leave one of them"])
                )
    write(places.news, json.dumps([vars(each) for each in news], ensure_ascii=False).encode())
    return news


def _take(places: Places, name: str, path: Path) -> News:
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_MAX_BYTES + 1)
        if len(data) > SIZE_MAX_BYTES:
            raise Bad("is larger than 1 MB: it seems to be the wrong file")
        taker = _TAKERS.get(name, _take_password)
        words = taker(places, name, text_of(data))
    except Bad as bad:
        return News(path.name, False, [str(each) for each in bad.args])
    except OSError as problem:
        return News(path.name, False, [f"could not be taken over: {problem.strerror or problem}"])
    wipe(path)
    return News(path.name, True, words)


def _take_password(places: Places, name: str, text: str) -> list[str]:
    if not text.strip("\n") or "\n" in text.strip("\n"):
        raise Bad("must hold the password in one line, and nothing else")
    write(places.config / name, text.strip("\n").encode() + b"\n", owner=RELAY_USER)
    return []


def _take_toml(places: Places, name: str, text: str) -> list[str]:
    """In force only if `pi-relay check` finds no error; its warnings are told all the same."""
    candidate = places.config / ".pi-relay.toml.dropped"
    write(candidate, text.encode(), mode=0o640, owner=RELAY_USER)
    try:
        result = subprocess.run(
            ["pi-relay", "-c", candidate, "check", "--json"],
            capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        findings = json.loads(result.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired) as problem:
        candidate.unlink(missing_ok=True)
        raise Bad(f"could not be checked: {problem}") from None
    findings.sort(key=lambda finding: finding["severity"] != "error")
    words = [_finding_in_words(finding) for finding in findings]
    if result.returncode != 0:
        candidate.unlink(missing_ok=True)
        raise Bad(*words)
    candidate.replace(places.config / name)
    return words


def _finding_in_words(finding: dict[str, object]) -> str:
    line = f"line {finding['line']}: " if finding["line"] else ""
    mark = "warning: " if finding["severity"] == "warning" else ""
    key = f"{finding['key']}: " if finding["key"] else ""
    hint = f" (hint: {finding['hint']})" if finding["hint"] else ""
    return f"{line}{mark}{key}{finding['message']}{hint}"


def _take_keys(places: Places, name: str, text: str) -> list[str]:
    if "PRIVATE KEY" in text:
        raise Bad("holds a private key: put the public one here (the file that ends in .pub)")
    lines = [line.strip() for line in text.split("\n") if line.strip() and not line.startswith("#")]
    if not lines:
        raise Bad("holds no key")
    said = []
    for number, line in enumerate(lines, 1):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(line + "\n")
            file.flush()
            result = subprocess.run(
                ["ssh-keygen", "-l", "-f", file.name], capture_output=True, text=True, check=False, timeout=30
            )
        if result.returncode != 0:
            raise Bad(f"key {number} is no SSH public key: {line[:40]}...")
        said.append(result.stdout.strip())
    write(places.box / "ssh" / "authorized_keys", "\n".join(lines).encode() + b"\n", mode=0o644)
    return said


def _take_hostname(places: Places, name: str, text: str) -> list[str]:
    wanted = text.strip().lower().rstrip(".")
    label = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
    if not re.fullmatch(rf"{label}(?:\.{label})*", wanted) or len(wanted) > 64:
        raise Bad("must hold one name of letters, digits and hyphens, like pi-relay or relay.office.example")
    write(places.box / "hostname", wanted.encode() + b"\n", mode=0o644)
    return [wanted]


def _take_network(places: Places, name: str, text: str) -> list[str]:
    """A static address for the wired network, or DHCP again; and the time zone."""
    values = network_values(text)
    zone = values.get("time_zone")
    if zone is not None:
        target = places.zoneinfo / zone
        if ".." in Path(zone).parts or not target.is_file():
            raise Bad(f'time_zone: there is no "{zone}"; it looks like Asia/Tokyo or Europe/Berlin')
        link = places.box / "localtime"
        temporary = link.with_name(".localtime.new")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(target)
        temporary.replace(link)
    network = places.box / "network" / "10-wired.network"
    if "address" in values:
        write(network, network_file(values).encode(), mode=0o644)
    else:
        network.unlink(missing_ok=True)
    return [f"{key} = {value}" for key, value in values.items()] or ["DHCP"]


def network_values(text: str) -> dict[str, str]:
    """The lines of network.txt, checked. Bad names everything that is wrong with them."""
    values: dict[str, str] = {}
    wrong = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        key, sign, value = _key_and_value(line)
        check = _NETWORK_KEYS.get(key)
        if not sign or check is None:
            wrong.append(f"line {number}: only {', '.join(_NETWORK_KEYS)} are known, as: key = value")
        elif problem := check(value):
            wrong.append(f"line {number}: {key}: {problem}")
        else:
            values[key] = value
    if "address" in values and not wrong:
        wrong += _gateway_trouble(values)
    if wrong:
        raise Bad(*wrong)
    return values


def _key_and_value(line: str) -> tuple[str, str, str]:
    """People write "=" or ":", and quotes or none."""
    found = re.match(r"([A-Za-z_ -]+?)\s*([=:])\s*(.*)", line)
    if found is None:
        return line, "", ""
    return found[1].lower().replace(" ", "_").replace("-", "_"), found[2], found[3].strip("\"' ")


def _interface_trouble(text: str) -> str:
    try:
        found = ipaddress.ip_interface(text)
    except ValueError:
        return f'"{text}" is no address with a prefix like 192.168.1.5/24'
    if "/" not in text:
        return f'"{text}" lacks its prefix: {text}/24 is usual'
    alone = found.network.num_addresses > 2 and found.ip in (found.network[0], found.network[-1])
    return f'"{text}" is the address of a network, not of a box in it' if alone else ""


def _address_trouble(text: str) -> str:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return f'"{text}" is no address like 192.168.1.1'
    return ""


def _addresses_trouble(text: str) -> str:
    parts = re.split(r"[,\s]+", text)
    return next((trouble for part in parts if (trouble := _address_trouble(part))), "")


def _nothing_trouble(_: str) -> str:
    return ""


_NETWORK_KEYS: dict[str, Callable[[str], str]] = {
    "address": _interface_trouble,
    "gateway": _address_trouble,
    "dns": _addresses_trouble,
    "time_zone": _nothing_trouble,
}


def _gateway_trouble(values: dict[str, str]) -> list[str]:
    network = ipaddress.ip_interface(values["address"]).network
    gateway = values.get("gateway")
    if gateway is None:
        return ["gateway is missing: without it nothing leaves the office"]
    if ipaddress.ip_address(gateway) not in network:
        return [f"gateway {gateway} does not lie in {network}"]
    return []


def network_file(values: dict[str, str]) -> str:
    """systemd.network(5)."""
    servers = re.split(r"[,\s]+", values.get("dns", values["gateway"]))
    return (
        "[Match]\nType=ether\n\n[Network]\n"
        f"Address={values['address']}\nGateway={values['gateway']}\n"
        + "".join(f"DNS={server}\n" for server in servers)
        + "MulticastDNS=yes\n"
    )


_TAKERS: dict[str, Callable[[Places, str, str], list[str]]] = {
    "pi-relay.toml": _take_toml,
    "authorized_keys": _take_keys,
    "hostname": _take_hostname,
    "network": _take_network,
}


def _reset(places: Places) -> None:
    """As new: configuration, mail, keys, name and network are gone. Done again if it was cut off."""
    for directory in (places.config, places.state, places.box, places.backups, places.home):
        for path in list(directory.iterdir()) if directory.is_dir() else []:
            if path == places.box / "config":
                continue  # it is mounted as places.config, and has been emptied
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
    if places.sample.exists():
        write(places.config / "pi-relay.toml", places.sample.read_bytes(), mode=0o640, owner=RELAY_USER)
    os.sync()


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def write(path: Path, data: bytes, *, mode: int = 0o600, owner: str = "") -> None:
    """The new content or the old, whatever happens; durable."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.writing")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fchmod(descriptor, mode)
        if owner:
            with suppress(KeyError, PermissionError):
                found = pwd.getpwnam(owner)
                os.fchown(descriptor, found.pw_uid, found.pw_gid)
        os.fsync(descriptor)
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    with suppress(OSError):
        os.fsync(folder)
    os.close(folder)


def wipe(path: Path) -> None:
    """Overwrite and remove: a PC must not find a password on the card. (Flash may keep an old block.)"""
    with suppress(OSError), path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)
        file.flush()
        os.fsync(file.fileno())
    with suppress(OSError):
        path.unlink()


class _writable:  # noqa: N801  # used like a function
    """The boot partition, which is read-only otherwise, while something is written there."""

    def __init__(self, boot: Path) -> None:
        self._boot = boot

    def __enter__(self) -> None:
        self._remount("rw")

    def __exit__(self, *_: object) -> None:
        os.sync()
        self._remount("ro")

    def _remount(self, how: str) -> None:
        if self._boot.is_mount():
            subprocess.run(["mount", "-o", f"remount,{how}", self._boot], check=False, capture_output=True)


# ── telling ──────────────────────────────────────────────────────────────────────────────────────


def tell(places: Places) -> None:
    """Write STATUS.txt, if it says anything new: the card is spared."""
    path = places.boot / "STATUS.txt"
    text = status_text(places)
    data = text.replace("\n", "\r\n").encode("utf-8-sig")
    with suppress(OSError):
        if path.read_bytes() == data:
            return
    with _writable(places.boot), suppress(OSError):
        temporary = path.with_name("STATUS.new")
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)


def status_text(places: Places) -> str:
    host = socket.gethostname()
    addresses = own_addresses()
    by_mdns = f"{host.partition('.')[0]}.local"
    server = addresses[0] if addresses else by_mdns
    paragraphs = [
        f"pi-relay box {host}",
        "\n".join(_news_lines(places)),
        "Health of the relay\n" + "\n".join(f"  {line}" for line in relay_health()),
        "Addresses of the box\n" + "\n".join(f"  {each}" for each in (*addresses, by_mdns)),
        "SSH\n" + "\n".join(f"  {line}" for line in _ssh_lines(places, server)),
        "What to type into the printer\n"
        f"  SMTP server   {server}\n"
        "  port          587 (or 25; 465 with SSL/TLS)\n"
        "  encryption    STARTTLS, or none\n"
        "  user, password  none, unless a device was given one: pi-relay devices add NAME --login\n"
        "  sender        an address of your office",
        GUIDE.format(host=server).rstrip(),
    ]
    return "\n\n".join(paragraphs) + "\n"


def _news_lines(places: Places) -> list[str]:
    """What the last start that found something took, and what was wrong."""
    try:
        news = [News(**each) for each in json.loads(places.news.read_bytes())]
    except (OSError, ValueError, TypeError):
        return ["Nothing has been dropped here yet."]
    lines = ["What was found here"]
    for each in news:
        lines.append(
            f"  {each.name}: " + ("taken" if each.taken else "NOT taken, what was in force before stays")
        )
        lines += [f"      {word}" for word in each.words]
    return lines


def relay_health() -> list[str]:
    """What `pi-relay status` says, in a few lines."""
    try:
        result = subprocess.run(
            ["pi-relay", "status", "--json"],
            capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        status = json.loads(result.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return ["it is not running (yet)"]
    return [status["health"], *status["reasons"]]


def own_addresses() -> list[str]:
    """Those that a device of the office would reach us by."""
    try:
        result = subprocess.run(
            ["ip", "-j", "address"], capture_output=True, text=True, check=True, timeout=10
        )
        links = json.loads(result.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return [
        address["local"]
        for link in links
        for address in link.get("addr_info", ())
        if address.get("scope") == "global"
    ]


def _ssh_lines(places: Places, server: str) -> list[str]:
    if not (places.box / "ssh" / "authorized_keys").exists():
        return ["nobody can log in: drop a file authorized_keys with your public key here"]
    lines = [f"ssh admin@{server}"]
    for key in sorted((places.box / "ssh").glob("ssh_host_*_key.pub")):
        result = subprocess.run(["ssh-keygen", "-l", "-f", key], capture_output=True, text=True, check=False)
        lines += [f"fingerprint {result.stdout.strip()}"] if result.returncode == 0 else []
    return lines


def greet(places: Places) -> None:
    """The first thing an admin sees."""
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(["pi-relay", "status"], timeout=30, check=False, stdin=subprocess.DEVNULL)
    print(f"\nNext: {next_step(relay_health())}\n", flush=True)


def next_step(health: list[str]) -> str:
    said = " ".join(health)
    if "no smart host" in said and "there is" in said:
        edit = "sudoedit /etc/pi-relay/pi-relay.toml"
        return f"name a way out: {edit}, then: pi-relay check && sudo pi-relay reload"
    if health[0] == "ok":
        return "pi-relay send-test ADDRESS, or pi-relay devices add NAME for the first printer"
    return "pi-relay status, and journalctl -u pi-relay"


# ── the command ──────────────────────────────────────────────────────────────────────────────────


def main(arguments: list[str]) -> int:
    places = Places()
    match arguments:
        case ["take-over"]:
            for each in take_over(places):
                print(f"{each.name}: {'taken' if each.taken else 'not taken'}: {'; '.join(each.words)}")
        case ["tell"]:
            tell(places)
        case ["greet"]:
            greet(places)
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
