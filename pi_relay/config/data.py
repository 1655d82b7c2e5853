"""The admin's TOML file as frozen data.

Rules: frozen dataclasses only; a field is named like its key, with the unit at the end. Paths are absolute,
domains in patterns are A-labels in lower case. It must not know TOML, nor how a value is checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

DEFAULT_PATH = Path("/etc/pi-relay/pi-relay.toml")
MB = 1_000_000


@dataclass(frozen=True, slots=True)
class Listener:
    host: str  # "" = every interface, IPv4 and IPv6
    port: int
    tls: str = "starttls"  # "off" | "starttls" | "implicit"
    auth: str = "optional"  # "off" | "optional" | "required"
    networks: tuple[str, ...] = ("local",)
    proxy_protocol: bool = False


@dataclass(frozen=True, slots=True)
class Submission:
    networks: tuple[str, ...] = ("local",)
    sender_domains: tuple[str, ...] = ()  # filled by load() with the default of behaviour.md
    default_sender: str = ""
    message_size_max_bytes: int = 35 * MB
    recipients_max: int = 100
    connections_max: int = 100
    connections_per_client_max: int = 20
    messages_per_hour_max: int = 100
    idle_timeout_seconds: float = 300.0


@dataclass(frozen=True, slots=True)
class Tls:
    certificate: Path | None = None  # None: the local CA's leaf in the state folder
    key: Path | None = None
    version_min: str = "1.2"


@dataclass(frozen=True, slots=True)
class Device:
    name: str
    address: str = ""  # an address or a CIDR
    mac: str = ""
    username: str = ""
    password_hash: str = ""
    sender: str = ""
    senders: tuple[str, ...] = ()
    reports_to: str = ""
    recipients: tuple[str, ...] = ()
    messages_per_hour_max: int = 0
    recipients_per_hour_max: int = 0
    legacy: bool = False


@dataclass(frozen=True, slots=True)
class SmartHost:
    name: str
    host: str
    port: int = 587
    tls: str = "starttls"  # "starttls" | "implicit" | "off"
    tls_verify: bool | str = True  # or "sha256:..." of the DER leaf
    auth: str = "none"  # "password" | "none"
    username: str = ""
    password: str = field(default="", repr=False)  # resolved from password_file or a credential
    sender: str = ""
    message_size_max_bytes: int = 0  # 0 = not known: no limit
    connections_max: int = 4
    messages_per_minute_max: int = 0
    messages_per_hour_max: int = 0
    messages_per_day_max: int = 0
    recipients_per_day_max: int = 0
    null_sender: bool = True


@dataclass(frozen=True, slots=True)
class Route:
    via: tuple[str, ...]
    recipients: tuple[str, ...] = ()  # patterns; () = any
    senders: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Direct:
    dns_servers: tuple[str, ...] = ()
    address_families: tuple[str, ...] = ("ipv4",)
    allow_private: bool = False
    mta_sts: bool = True


@dataclass(frozen=True, slots=True)
class Dkim:
    domain: str
    selector: str
    key_file: Path


@dataclass(frozen=True, slots=True)
class Queue:
    directory: Path
    size_max_bytes: int = 4_000 * MB
    free_space_min_bytes: int = 256 * MB
    retry_delays_seconds: tuple[float, ...] = (60, 300, 900, 1800, 3600, 7200, 14400)
    lifetime_seconds: float = 4 * 86400
    delay_warning_after_seconds: float = 4 * 3600  # 0 = never


@dataclass(frozen=True, slots=True)
class Log:
    retention_seconds: float = 30 * 86400
    size_max_bytes: int = 64 * MB
    addresses: str = "full"  # "full" | "hashed"


DEFAULT_LISTENERS = (
    Listener("", 25),
    Listener("", 587),
    Listener("", 465, tls="implicit"),
)


@dataclass(frozen=True, slots=True)
class Config:
    hostname: str
    queue: Queue
    path: Path = DEFAULT_PATH
    postmaster: str = ""
    language: str = "en"
    listeners: tuple[Listener, ...] = DEFAULT_LISTENERS
    submission: Submission = Submission()
    tls: Tls = Tls()
    devices: tuple[Device, ...] = ()
    smart_hosts: tuple[SmartHost, ...] = ()  # in the order of the file
    routes: tuple[Route, ...] = ()  # load() fills in the default: every smart host in file order
    direct: Direct = Direct()
    dkim: tuple[Dkim, ...] = ()
    log: Log = Log()
