"""Every key of pi-relay.toml: its kind, default and meaning, in one table.

The table drives both the reading (reading.py) and the reference (docs/configuration.md), so that the two
cannot say different things. Rules: data only. A default is written as it would stand in the file; None: what
``default_words`` say.
"""

from __future__ import annotations

from dataclasses import dataclass

from . import kinds
from .kinds import Kind, many


@dataclass(frozen=True, slots=True)
class Key:
    name: str
    kind: Kind
    about: str
    default: object = None
    default_words: str = ""
    example: str = ""  # TOML, where the default does not serve as one
    required: bool = False

    @property
    def field(self) -> str:
        """The name of the field that holds the value: units come last in names."""
        return f"{self.name}_{self.kind.unit}" if self.kind.unit else self.name


@dataclass(frozen=True, slots=True)
class Table:
    name: str  # "" is the top of the file
    keys: tuple[Key, ...]
    about: str
    is_array: bool = False  # [[name]]
    is_named: bool = False  # [name.NAME]

    def key(self, name: str) -> Key | None:
        return next((key for key in self.keys if key.name == name), None)

    @property
    def header(self) -> str:
        if not self.name:
            return ""
        return (
            f"[[{self.name}]]"
            if self.is_array
            else f"[{self.name}.NAME]"
            if self.is_named
            else f"[{self.name}]"
        )


def generic_name(table: Table, key: Key) -> str:
    """The key with its section, as NOT_YET names it: "smart_hosts.*.port"."""
    return ".".join(filter(None, (table.name, "*" if table.is_named else "", key.name)))


def in_toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case str():
            return f'"{value}"'
        case list():
            return f"[{', '.join(in_toml(element) for element in value)}]"
        case _:
            return str(value)


def in_toml_line(key: Key, width: int = 0) -> str:
    """A line of the file that gives the key its default, or an example."""
    return f"{key.name:<{width}} = {key.example or in_toml(key.default)}"


_TLS = ("starttls", "implicit", "off")
_PATTERNS = many(kinds.address_pattern(), "address patterns", example='for example ["*@office.example"]')
_NETWORKS = many(kinds.network(), "networks", least=1, example='for example ["local", "192.168.7.0/24"]')

TOP = Table(
    "",
    (
        Key(
            "hostname",
            kinds.host_name(),
            "The name by which this machine greets others; it stands in Received and Message-ID too.",
            default_words="the machine's full name",
            example='"relay.office.example"',
        ),
        Key(
            "postmaster",
            kinds.mail_address("admin@office.example"),
            "Gets the reports that have no sender to go back to.",
            default_words="nobody (a warning)",
            example='"admin@office.example"',
        ),
        Key("language", kinds.choice("en", "ja"), "The language of reports and alerts.", "en"),
    ),
    "The top of the file, before the first section.",
)

LISTENERS = Table(
    "listeners",
    (
        Key(
            "address",
            kinds.endpoint(),
            'Where to listen: ":PORT" is every interface, IPv4 and IPv6.',
            example='"192.168.1.10:25"',
            required=True,
        ),
        Key(
            "tls",
            kinds.choice(*_TLS),
            '"starttls" offers encryption, "implicit" begins with it, "off" has none.',
            "starttls",
        ),
        Key(
            "auth",
            kinds.choice("off", "optional", "required"),
            'Whether devices may sign in; "required" asks it of local ones as well. '
            "AUTH is offered under TLS only.",
            "optional",
        ),
        Key(
            "networks", _NETWORKS, "Who may connect at all; everybody else gets 554 and is closed.", ["local"]
        ),
        Key(
            "proxy_protocol",
            kinds.flag(),
            "Expect PROXY v1 or v2 from a load balancer in these networks.",
            False,
        ),
    ),
    "Where devices connect, one section each. Without any: port 25 and 587 with STARTTLS offered, and port "
    "465 with implicit TLS, all with optional AUTH and for local networks only.",
    is_array=True,
)

SUBMISSION = Table(
    "submission",
    (
        Key("networks", _NETWORKS, "Who may submit without signing in.", ["local"]),
        Key(
            "sender_domains",
            many(kinds.domain_pattern(), "domains", least=1, example='for example ["office.example"]'),
            "The domains in which reverse-path and From must lie.",
            default_words="the domains of the smart hosts' senders; where none is known, any (a warning)",
            example='["office.example"]',
        ),
        Key(
            "default_sender",
            kinds.mail_address("relay@office.example"),
            "Takes the place of a sender that is missing, invalid or not allowed.",
            default_words="the first smart host's `sender`, or its username if that is an address",
            example='"relay@office.example"',
        ),
        Key("message_size_max", kinds.size("1 KB", "2 GB"), "Larger messages are refused.", "35 MB"),
        Key("recipients_max", kinds.whole(1, 10_000), "Recipients of one message.", 100),
        Key("connections_max", kinds.whole(1, 10_000), "Connections at once, of all clients together.", 100),
        Key("connections_per_client_max", kinds.whole(1, 10_000), "Connections at once of one address.", 20),
        Key(
            "messages_per_hour_max",
            kinds.whole(0, 1_000_000),
            "Messages an hour of an unknown client. What goes over it is accepted and held; beyond three "
            "times as much is refused with 450. 0: no limit.",
            100,
        ),
        Key(
            "idle_timeout", kinds.duration("1s", "1h"), "A client that is silent for so long is closed.", "5m"
        ),
    ),
    "What clients may do.",
)

TLS = Table(
    "tls",
    (
        Key(
            "certificate",
            kinds.file_path("a PEM file"),
            "The certificate that devices see, with its chain. Read again when the file changes.",
            default_words="one made by the relay's own CA in the state folder",
            example='"tls/fullchain.pem"',
        ),
        Key(
            "key",
            kinds.file_path("a PEM file"),
            "Its private key, closed to others (chmod 600).",
            default_words="made with the certificate",
            example='"tls/key.pem"',
        ),
        Key("version_min", kinds.choice("1.2", "1.3"), "The oldest TLS that is spoken with devices.", "1.2"),
    ),
    "The certificate that devices see.",
)

DEVICES = Table(
    "devices",
    (
        Key(
            "name",
            kinds.line("a name", 64),
            "Stands in the log and in `status`.",
            example='"copier-2f"',
            required=True,
        ),
        Key(
            "address",
            kinds.network(local=False),
            "Its address, or a network. Of several that fit a client, the longest prefix wins.",
            default_words="none",
            example='"192.168.1.23"',
        ),
        Key(
            "mac",
            kinds.mac(),
            "Its mac address, for devices on DHCP: it identifies, it does not authenticate.",
            default_words="none",
            example='"00:1b:a9:12:34:56"',
        ),
        Key(
            "username",
            kinds.line("a user name", 64),
            "The name with which it signs in. Together with an address, both must match.",
            default_words="none",
            example='"copier"',
        ),
        Key(
            "password_hash",
            kinds.password_hash(),
            "Made by `pi-relay password`.",
            default_words="none",
            example='"scrypt$..."',
        ),
        Key(
            "sender",
            kinds.mailbox("Copier 2F <scans@office.example>"),
            "Replaces its reverse-path, From and Sender.",
            default_words="what it sends",
            example='"Copier 2F <scans@office.example>"',
        ),
        Key(
            "senders",
            _PATTERNS,
            "The senders that it may claim beyond `submission.sender_domains`.",
            [],
            example='["*@office.example"]',
        ),
        Key(
            "reports_to",
            kinds.mail_address("admin@office.example"),
            "Gets its delivery reports if its own sender cannot.",
            default_words="`postmaster`",
            example='"admin@office.example"',
        ),
        Key(
            "recipients",
            _PATTERNS,
            "Where it may send; everything else is refused with 550.",
            [],
            default_words="anywhere",
            example='["*@office.example"]',
        ),
        Key(
            "messages_per_hour_max",
            kinds.whole(0, 1_000_000),
            "What goes over it is accepted and held; beyond three times as much is refused with 450. "
            "0: no limit.",
            0,
        ),
        Key("recipients_per_hour_max", kinds.whole(0, 1_000_000), "Likewise. 0: no limit.", 0),
        Key(
            "legacy",
            kinds.flag(),
            "For this device alone: TLS 1.0 with old ciphers, and AUTH in clear. Needs `address` or `mac`.",
            False,
        ),
    ),
    "A device: known by address or mac, by username, or by both together.",
    is_array=True,
)

SMART_HOSTS = Table(
    "smart_hosts",
    (
        Key("host", kinds.host(), "Its name or IP address.", example='"smtp.isp.example"', required=True),
        Key("port", kinds.whole(1, 65535), "587 or 465 at most providers.", 587),
        Key(
            "tls",
            kinds.choice(*_TLS),
            '"starttls" and "implicit" both require encryption; "off" with a password is refused.',
            default_words='"starttls"; with port 465 "implicit"',
            example='"starttls"',
        ),
        Key(
            "tls_verify",
            kinds.verification(),
            "Whether its certificate and name are verified. A fingerprint is the SHA-256 of its certificate, "
            'as "sha256:...", and takes the place of the verification; false accepts anybody (a warning).',
            True,
        ),
        Key(
            "auth",
            kinds.choice("password", "none"),
            "How we sign in there.",
            default_words='"password" with a username, else "none"',
            example='"password"',
        ),
        Key(
            "username",
            kinds.line("a user name"),
            "Our account there.",
            default_words="none",
            example='"u1234"',
        ),
        Key(
            "password_file",
            kinds.file_path(),
            "Holds the password in one line, closed to others (chmod 600). A systemd credential of the same "
            "name goes first.",
            default_words="none",
            example='"isp.password"',
        ),
        Key(
            "password",
            kinds.line("a password", 1024),
            "The password itself; then pi-relay.toml must be closed to others (chmod 600).",
            default_words="none",
            example='"..."',
        ),
        Key(
            "sender",
            kinds.mail_address("u1234@isp.example"),
            "The sender that the provider demands: it stands for whoever sent a message, in reverse-path, "
            "From and Sender. Leave it out where the account may send as others.",
            default_words="none demanded",
            example='"u1234@isp.example"',
        ),
        Key(
            "message_size_max",
            kinds.size("1 KB", "100 GB"),
            "Larger messages take another way out, or are refused.",
            default_words="no limit but its own",
            example='"20 MB"',
        ),
        Key("connections_max", kinds.whole(1, 1000), "Connections to it at once.", 4),
        Key(
            "messages_per_minute_max",
            kinds.whole(0, 10**6),
            "The relay waits rather than being refused. 0: no limit.",
            0,
        ),
        Key(
            "messages_per_hour_max",
            kinds.whole(0, 10**7),
            "Where they are spent, mail takes the next way out, or waits. 0: no limit.",
            0,
        ),
        Key("messages_per_day_max", kinds.whole(0, 10**8), "Likewise. 0: no limit.", 0),
        Key("recipients_per_day_max", kinds.whole(0, 10**8), "Likewise. 0: no limit.", 0),
        Key(
            "null_sender",
            kinds.flag(),
            "false: it refuses MAIL FROM:<>, and our reports go to it as `sender`.",
            True,
        ),
    ),
    "A server that takes all our mail: the provider's. NAME is yours to choose.",
    is_named=True,
)

ROUTES = Table(
    "routes",
    (
        Key("recipients", _PATTERNS, "Recipients that take this route.", [], default_words="any"),
        Key("senders", _PATTERNS, "Senders that take this route.", [], default_words="any"),
        Key(
            "devices",
            many(kinds.line("a device's name", 64), "names of devices"),
            "Devices that take this route.",
            [],
            default_words="any",
        ),
        Key(
            "via",
            many(kinds.line("the name of a smart host", 64), "names of smart hosts", least=1),
            'The ways out, tried in turn: names of smart hosts, or "direct" for the recipients\' servers.',
            example='["office", "isp"]',
            required=True,
        ),
    ),
    "Which way out a message takes; the first route that fits wins, looked up again at every attempt. "
    "Without any: every smart host, in the order of the file.",
    is_array=True,
)

DIRECT = Table(
    "direct",
    (
        Key(
            "dns_servers",
            many(kinds.endpoint_or_ip(), "addresses of DNS servers"),
            "Whom to ask.",
            [],
            default_words="the system's",
            example='["9.9.9.9"]',
        ),
        Key(
            "address_families",
            many(kinds.choice("ipv4", "ipv6"), "address families", least=1),
            "IPv6 only where our address has a PTR record: large providers refuse mail without.",
            ["ipv4"],
        ),
        Key("allow_private", kinds.flag(), "Whether servers in private networks are used.", False),
        Key("mta_sts", kinds.flag(), "Whether MTA-STS policies (RFC 8461) are obeyed.", True),
    ),
    'Delivery straight to the recipients\' servers (`via = ["direct"]`).',
)

DKIM = Table(
    "dkim",
    (
        Key(
            "domain",
            kinds.signing_name("domain", "office.example"),
            "Mail with a From in exactly this domain is signed.",
            example='"office.example"',
            required=True,
        ),
        Key(
            "selector",
            kinds.signing_name("selector", "relay1"),
            "The name of the key in DNS: SELECTOR._domainkey.DOMAIN. A new key takes a new selector.",
            example='"relay1"',
            required=True,
        ),
        Key(
            "key_file",
            kinds.file_path("a PEM file"),
            "The private key, made by `pi-relay dkim`, closed to others (chmod 600).",
            example='"dkim/relay1.pem"',
            required=True,
        ),
    ),
    "Signs what leaves us with a From in a domain, one section for each key. A domain with two keys (RSA, "
    "and Ed25519 beside it) gets two signatures. Mail whose key cannot be used waits, and is never sent "
    "unsigned.",
    is_array=True,
)

QUEUE = Table(
    "queue",
    (
        Key(
            "directory",
            kinds.file_path("a folder"),
            "Where accepted mail is kept. Not on FAT, in memory or on a network share.",
            default_words='"queue" in the state folder',
            example='"/var/lib/pi-relay/queue"',
        ),
        Key(
            "size_max",
            kinds.size("1 MB", "100 TB"),
            "Beyond it clients are told 452 and keep their mail.",
            default_words="the smaller of 4 GB and half the partition",
            example='"4 GB"',
        ),
        Key("free_space_min", kinds.size("0 B", "100 TB"), "Left free on the partition.", "256 MB"),
        Key(
            "retry_delays",
            many(
                kinds.duration("1s", "30d"),
                "durations",
                least=1,
                most=100,
                example='for example ["1m", "15m", "1h"]',
            ),
            "The waits between attempts; the last repeats until `lifetime`.",
            ["1m", "5m", "15m", "30m", "1h", "2h", "4h"],
        ),
        Key(
            "lifetime",
            kinds.duration("1s", "365d"),
            "Then a message is given up and its sender told. Counted along the schedule, so that a wrong "
            "clock cannot expire mail.",
            "4d",
        ),
        Key(
            "delay_warning_after",
            kinds.duration("1s", "365d", zero="never"),
            'When the sender is told, once, that a message is late; "0s": never.',
            "4h",
        ),
    ),
    "How mail is kept until it is delivered.",
)

LOG = Table(
    "log",
    (
        Key("retention", kinds.duration("1h", "3650d"), "Older daily files are deleted.", "30d"),
        Key("size_max", kinds.size("64 KB", "100 GB"), "All daily files together.", "64 MB"),
        Key("addresses", kinds.choice("full", "hashed"), "How mail addresses stand in the log.", "full"),
    ),
    "The daily mail log in the state folder, which `pi-relay trace` reads.",
)

TABLES = (TOP, LISTENERS, SUBMISSION, TLS, DEVICES, SMART_HOSTS, ROUTES, DIRECT, DKIM, QUEUE, LOG)

# Whole sections, keys, or single values of a key whose feature does not exist yet. They are refused even at
# their default, so that nobody relies on what is not there. Deleting a line makes the key available.
NOT_YET: frozenset[str] = frozenset(
    {
        # of later versions
        "smart_hosts.*.provider",
        "smart_hosts.*.oauth",
        'smart_hosts.*.auth = "oauth"',
        "devices.silent_after",
        "alerts",
        "web",
    }
)
