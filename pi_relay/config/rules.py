"""What keys mean together, and with the machine: one function a rule, listed in RULES.

Rules: the docstring of each stands in docs/configuration.md. A rule sees a Config whose bad
values have been reported already and stand at their defaults; it never raises. It must not know TOML.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from pi_relay import signing_keys
from pi_relay.validity import validity

from . import machine, secret_files
from .data import Config, SmartHost
from .exposure import exposures
from .findings import KeyPath, Report
from .kinds import Wrong, shown
from .reading import did_you_mean, sender_of

_PRIVATE_NAMES = (".local", ".lan", ".internal", ".home.arpa")
_PEM_SIZE_MAX_BYTES = 1024 * 1024
_DAY_SECONDS = 86_400
_EXPIRES_SOON_DAYS = 14

Rule = Callable[[Config, Report], None]


# ── who may submit, and where ────────────────────────────────────────────────────────────────────


def listeners_do_not_clash(config: Config, report: Report) -> None:
    """Two listeners cannot share an address and port; ":PORT" takes the port of every address."""
    for number, listener in enumerate(config.listeners):
        for earlier in config.listeners[:number]:
            if listener.port and listener.port == earlier.port and _overlap(listener.host, earlier.host):
                report.error(
                    ("listeners", number, "address"),
                    f"port {listener.port} is taken by another listener of this file",
                    "give each listener a port or an address of its own, or take one of them out",
                )
                break


def _overlap(one: str, other: str) -> bool:
    if "" in (one, other) or one == other:
        return True
    if (":" in one) != (":" in other):
        return False
    return bool({one, other} & {"0.0.0.0", "::"})


def devices_can_sign_in(config: Config, report: Report) -> None:
    """A listener that requires AUTH needs TLS, for AUTH is not offered in clear, and a device with a
    password (a warning)."""
    for number, listener in enumerate(config.listeners):
        if listener.auth != "required":
            continue
        if listener.tls == "off" and not any(device.legacy for device in config.devices):
            report.error(
                ("listeners", number, "auth"),
                'nobody could sign in here: AUTH is not offered without TLS, and tls is "off"',
                'set tls = "starttls", or auth = "off"',
            )
        elif not any(device.username for device in config.devices):
            report.warning(
                ("listeners", number, "auth"),
                "no device has a username: nobody can send through this listener",
                "add a [[devices]] section with username and password_hash (`pi-relay password` makes it)",
            )


def world_is_kept_out(config: Config, report: Report) -> None:
    """Networks that reach beyond private addresses are warned of: in `submission.networks`, whoever is in
    them sends without a password."""
    for number, network in enumerate(config.submission.networks):
        if _reaches_the_world(network):
            report.warning(
                ("submission", "networks", number),
                f"whoever connects from {network} may send to anywhere without a password",
                'keep to "local" and private networks; others should sign in',
            )
    for at, listener in enumerate(config.listeners):
        for number, network in enumerate(listener.networks):
            if _reaches_the_world(network):
                report.warning(
                    ("listeners", at, "networks", number),
                    f"this listener lets in clients from {network}, beyond your own networks",
                    'keep to "local" and private networks, unless devices elsewhere must send through it',
                )


def world_does_not_reach_in(config: Config, report: Report) -> None:
    """A listener that the world can reach, for the machine has a public address, is warned of."""
    found = exposures(config, machine.public_addresses())
    if not report.has("listeners"):
        found = found[:1]  # one of the usual three stands for all
    for exposure in found:
        if not exposure.address:
            continue  # what is wrong with its networks is said already
        report.warning(
            ("listeners", exposure.listener, "address"),
            exposure.in_words(config),
            'give it a private address of this machine, like "192.168.1.10:25", or close the port there',
        )


def _reaches_the_world(network: str) -> bool:
    return network != "local" and ip_network(network).is_global


def submission_fits(config: Config, report: Report) -> None:
    """A message of `message_size_max` must fit into the queue; one client cannot have more connections than
    all together."""
    submission = config.submission
    if submission.message_size_max_bytes > config.queue.size_max_bytes:
        place: KeyPath = ("submission", "message_size_max")
        if not report.has(*place):
            place = ("queue", "size_max")
        report.error(
            place,
            f"a message of the largest size ({_size(submission.message_size_max_bytes)}) does not fit "
            f"into the queue ({_size(config.queue.size_max_bytes)})",
            "raise queue.size_max, or lower submission.message_size_max",
        )
    if submission.connections_per_client_max > submission.connections_max and report.has(
        "submission", "connections_per_client_max"
    ):
        report.warning(
            ("submission", "connections_per_client_max"),
            f"is more than connections_max ({submission.connections_max}), which holds for all together",
            "raise connections_max, or lower this one",
        )


def senders_are_known(config: Config, report: Report) -> None:
    """Where `sender_domains` is ["*"], or nothing says what it should be, any sender is accepted: a warning.
    `default_sender` lies within it."""
    submission = config.submission
    if "*" in submission.sender_domains and _senders_matter(config, report):
        given = report.has("submission", "sender_domains")
        report.warning(
            ("submission", "sender_domains"),
            "any sender is accepted"
            + ("" if given else ": no smart host has a sender from which your domain could be known"),
            'name your domains: sender_domains = ["office.example"]'
            if given
            else 'set the smart host\'s sender to an address of yours, like "relay@office.example"',
        )
    elif report.has("submission", "default_sender") and not _in_domains(
        submission.default_sender, submission.sender_domains
    ):
        report.warning(
            ("submission", "default_sender"),
            f"{submission.default_sender} does not lie in sender_domains",
            "add its domain to sender_domains, or choose another address",
        )


def _senders_matter(config: Config, report: Report) -> bool:
    """Not where nothing can be sent, nor where a sender is given, but badly: that is said already."""
    if report.has("submission", "sender_domains"):
        return True
    places = [("smart_hosts", host.name, "sender") for host in config.smart_hosts]
    return bool(config.routes) and not any(report.has(*place) for place in places)


def _in_domains(address: str, domains: tuple[str, ...]) -> bool:
    domain = address.rpartition("@")[2].lower()
    return any(
        domain.endswith(pattern.removeprefix("*")) if pattern.startswith("*.") else domain == pattern
        for pattern in domains
    )


def certificate_and_key_fit(config: Config, report: Report) -> None:
    """`certificate` and `key` come together, can be read, belong to each other, and the key is closed to
    others and has no passphrase. One that has expired, or does so within two weeks, is warned of."""
    certificate, key = config.tls.certificate, config.tls.key
    if certificate is None and key is None:
        return
    if certificate is None or key is None:
        given, missing = ("key", "certificate") if certificate is None else ("certificate", "key")
        report.error(("tls", given), f"needs {missing} beside it", f"add {missing}, or take both out")
        return
    readable = [
        _can_read(report, ("tls", "certificate"), certificate, is_secret=False),
        _can_read(report, ("tls", "key"), key, is_secret=True),
    ]
    if all(readable):
        _check_pair(report, certificate, key)
        _check_end(report, certificate)


def _check_end(report: Report, certificate: Path) -> None:
    try:
        _, end = validity(certificate.read_text("ascii", "replace"))
    except (OSError, ValueError):
        return  # what is wrong with it is said already
    days_left = int((end - time.time()) // _DAY_SECONDS)
    if days_left < _EXPIRES_SOON_DAYS:
        words = "has expired" if days_left < 0 else f"expires in {days_left} day(s)"
        report.warning(
            ("tls", "certificate"),
            f"{certificate} {words}",
            "renew it where it came from; the relay takes up the new files by itself",
        )


def _check_pair(report: Report, certificate: Path, key: Path) -> None:
    import ssl  # slow to import, and only wanted here

    asked = []

    def passphrase() -> bytes:
        asked.append(True)
        return b""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, passphrase)
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", "") or ""
        if asked:
            words, hint = "is protected by a passphrase", "openssl pkey -in OLD -out NEW takes it off"
        elif "MISMATCH" in reason:
            words, hint = "does not belong to the certificate", "give the key from which it was requested"
        else:
            words = "cannot be used with the certificate"
            hint = "both must be PEM files (-----BEGIN ...), the server's own certificate first"
        report.error(("tls", "key"), f"{key} {words}", hint)


def _can_read(report: Report, place: KeyPath, path: Path, *, is_secret: bool) -> bool:
    try:
        secret_files.read_regular(path, _PEM_SIZE_MAX_BYTES)
        if is_secret:
            secret_files.refuse_open(path)
    except Wrong as wrong:
        report.error(place, wrong.message, wrong.hint)
        return False
    return True


# ── devices ──────────────────────────────────────────────────────────────────────────────────────


def devices_are_told_apart(config: Config, report: Report) -> None:
    """No two devices share a name, an address or prefix, a mac, or a username; together with an address or
    mac, a username needs to be unique all the same."""
    for key in ("name", "address", "mac", "username"):
        seen: dict[str, str] = {}
        for number, device in enumerate(config.devices):
            value = getattr(device, key)
            comparable = _comparable_network(value) if key == "address" and value else value
            if comparable and comparable in seen:
                other = f"the device {shown(seen[comparable])}" if key != "name" else "another device"
                report.error(
                    ("devices", number, key),
                    f"{shown(value)} belongs to {other} already",
                    f"give each device its own {key}",
                )
            elif comparable:
                seen[comparable] = device.name


def _comparable_network(address: str) -> str:
    return str(ip_network(address))


def devices_are_recognised(config: Config, report: Report) -> None:
    """A username needs a `password_hash` and the other way round; a device without address, mac and username
    is never recognised, nor is one by an address beyond the office alone (warnings)."""
    for number, device in enumerate(config.devices):
        has_hash = report.has("devices", number, "password_hash")
        if device.username and not has_hash:
            report.error(
                ("devices", number, "username"),
                "needs a password_hash beside it",
                'run `pi-relay password` and add the line password_hash = "..." that it prints',
            )
        if has_hash and not report.has("devices", number, "username"):
            report.error(
                ("devices", number, "password_hash"),
                "needs a username beside it",
                'add a line like: username = "copier"',
            )
        ways = ("address", "mac", "username", "password_hash")
        if device.name and not any(report.has("devices", number, key) for key in ways):
            report.warning(
                ("devices", number),
                f"the device {shown(device.name)} is never recognised",
                "give it an address, or a username and a password_hash",
            )
        elif device.address and ip_network(device.address).is_global and not device.username:
            report.warning(
                ("devices", number, "address"),
                "is an address beyond the local networks, where an address alone is no identity",
                "give the device a username and a password_hash too",
            )


def devices_make_sense(config: Config, report: Report) -> None:
    """`legacy` needs an address or mac, for it is chosen before the handshake; of `sender` and `senders`,
    `sender` wins (a warning)."""
    for number, device in enumerate(config.devices):
        if device.legacy and not (device.address or device.mac):
            report.error(
                ("devices", number, "legacy"),
                "needs an address or mac: the old ciphers are chosen before the device signs in",
                'add a line like: address = "192.168.1.23"',
            )
        if device.sender and device.senders:
            report.warning(
                ("devices", number, "senders"),
                "has no effect: sender replaces whatever the device claims",
                "keep one of the two",
            )


# ── the ways out ─────────────────────────────────────────────────────────────────────────────────


def there_is_a_way_out(config: Config, report: Report) -> None:
    """Without a smart host or direct delivery all mail is refused with 451 (a warning)."""
    if not config.smart_hosts and not any("direct" in route.via for route in config.routes):
        report.warning(
            ("smart_hosts",),
            "there is no smart host: nothing can be sent, and devices are told to try later",
            "add a section [smart_hosts.isp] with host, username and password_file",
        )


def smart_hosts_are_named_well(config: Config, report: Report) -> None:
    """A smart host is not called "direct", and its name is a word without spaces."""
    for host in config.smart_hosts:
        if host.name.lower() == "direct":
            report.error(
                ("smart_hosts", host.name),
                'cannot be the name of a smart host: in `via` it means "to the recipient\'s own servers"',
                "choose another name",
            )
        elif not 1 <= len(host.name) <= 64 or not host.name.isprintable() or " " in host.name:
            report.error(
                ("smart_hosts", host.name),
                "is no good name for a smart host",
                "choose a short word without spaces, like [smart_hosts.isp]",
            )


def smart_hosts_sign_in_safely(config: Config, report: Report) -> None:
    """A password has a username, is given once, and never goes out with `tls = "off"`; `null_sender = false`
    needs a `sender`."""
    for host in config.smart_hosts:
        for key, message, hint in _sign_in_troubles(host, report):
            report.error(("smart_hosts", host.name, key), message, hint)


def _sign_in_troubles(host: SmartHost, report: Report) -> Iterator[tuple[str, str, str]]:
    place = ("smart_hosts", host.name)
    ways = [key for key in ("password_file", "password") if report.has(*place, key)]
    if len(ways) == 2:
        yield "password", "is given twice: password_file names one as well", "take one of the two lines out"
    if host.auth == "password" and not host.username and not report.has(*place, "username"):
        yield "auth", "needs a username", 'add the lines username = "..." and password_file = "..."'
    elif ways and not host.username and not report.has(*place, "username"):
        yield ways[0], "needs a username beside it", 'add a line like: username = "u1234"'
    if host.username and host.auth == "password" and not ways:
        hint = f'write the password into a file, chmod 600, and add: password_file = "{host.name}.password"'
        yield "username", "has no password", hint
    if ways and host.auth == "none" and host.username:
        yield "auth", 'is "none", but there is a password', 'set auth = "password", or take the password out'
    if host.tls == "off" and (ways or host.auth == "password"):
        yield (
            "tls",
            "must not be off: the password would go out in clear",
            'set tls = "starttls" or "implicit"',
        )
    if not host.null_sender and not sender_of(host):
        yield (
            "null_sender",
            "is false, but there is no sender to use instead",
            'add sender = "u1234@isp.example"',
        )


def smart_hosts_are_verified(config: Config, report: Report) -> None:
    """Warned of: `tls_verify = false`, `tls = "off"` beyond this machine, and ports that expect the other
    kind of TLS."""
    for host in config.smart_hosts:
        place = ("smart_hosts", host.name)
        if host.tls_verify is False and host.tls != "off":
            report.warning(
                (*place, "tls_verify"),
                "anybody between us and this host could pose as it, and read mail and password",
                'set it to true, or to the certificate\'s fingerprint "sha256:..."',
            )
        if host.tls == "off" and host.auth == "none" and host.host and not _is_loopback(host.host):
            report.warning(
                (*place, "tls"),
                "mail goes to this host in clear",
                'set tls = "starttls" unless the way there is your own',
            )
        expected = {465: "implicit", 587: "starttls", 25: "starttls"}.get(host.port)
        if expected and host.tls not in (expected, "off"):
            report.warning(
                (*place, "tls"),
                f'servers rarely speak "{host.tls}" on port {host.port}',
                f'set tls = "{expected}", or the port that fits: 465 for "implicit", 587 for "starttls"',
            )


def _is_loopback(host: str) -> bool:
    return host in _own_names() if _ip(host) is None else ip_address(host).is_loopback


def _own_names() -> frozenset[str]:
    return frozenset({"localhost", "localhost.localdomain"})


def mail_does_not_come_back(config: Config, report: Report) -> None:
    """A smart host that is this machine and the port of one of its listeners would be a loop; seen where
    `host` is an IP address, localhost or our own `hostname`."""
    for host in config.smart_hosts:
        listeners = [listener for listener in config.listeners if listener.port == host.port]
        own = _own_addresses(host.host, config.hostname) if listeners and host.host else ()
        if any(_overlap(listener.host, str(address)) for listener in listeners for address in own):
            report.error(
                ("smart_hosts", host.name, "host"),
                f"{host.host} port {host.port} is this relay itself: mail would go round in a circle",
                "give the provider's server; another mail server on this machine needs another port",
            )


def _own_addresses(host: str, hostname: str) -> tuple[IPv4Address | IPv6Address, ...]:
    """The addresses of this machine that the host certainly is; none where only DNS could tell."""
    if host in _own_names():
        return ip_address("127.0.0.1"), ip_address("::1")
    if host == hostname:
        return ip_address("0.0.0.0"), ip_address("::")
    address = _ip(host)
    if address is None:
        return ()
    is_own = address.is_loopback or address.is_unspecified or machine.is_own_address(str(address))
    return (address,) if is_own else ()


def _ip(host: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def routes_lead_somewhere(config: Config, report: Report) -> None:
    """Routes name smart hosts and devices of this file, each once; a route behind one that takes everything,
    and a smart host in no route, are warned of."""
    names = [host.name for host in config.smart_hosts]
    devices = [device.name for device in config.devices]
    for number, route in enumerate(config.routes):
        place = ("routes", number)
        for position, name in enumerate(route.via):
            if name != "direct" and name not in names:
                hint = did_you_mean(name, [*names, "direct"]) or f"add a section [smart_hosts.{name}]"
                report.error((*place, "via", position), f"there is no smart host {shown(name)}", hint)
            elif name in route.via[:position]:
                report.error((*place, "via", position), f"{shown(name)} is named twice", "name each once")
        for position, name in enumerate(route.devices):
            if name not in devices:
                hint = did_you_mean(name, devices) or "name it in a [[devices]] section"
                report.error((*place, "devices", position), f"there is no device {shown(name)}", hint)
        if any(not (r.recipients or r.senders or r.devices) for r in config.routes[:number]):
            report.warning(place, "is never used: a route before it takes everything", "put it further up")
    used = {name for route in config.routes for name in route.via}
    are_whole = bool(config.routes) and all(route.via for route in config.routes)
    for name in names:
        if name not in used and are_whole:
            report.warning(
                ("smart_hosts", name), "is in no route: it is never used", "add it to a route's via"
            )


def direct_has_a_name(config: Config, report: Report) -> None:
    """Direct delivery needs a real `hostname`: with a dot, and not in .local, .lan, .internal or
    .home.arpa."""
    is_real = "." in config.hostname and not config.hostname.endswith(_PRIVATE_NAMES)
    if not is_real and any("direct" in route.via for route in config.routes):
        report.error(
            ("hostname",),
            f"{shown(config.hostname)} is no name for direct delivery: other servers would refuse our mail",
            'set hostname to a name that DNS knows, like "relay.office.example"',
        )


def signing_keys_can_be_used(config: Config, report: Report) -> None:
    """Each key of `[[dkim]]` is a PEM file with an RSA or Ed25519 private key, closed to others and without a
    passphrase; RSA has at least 1024 bits, and 2048 to 4096 if it shall be verified everywhere (a warning). A
    domain has each selector once."""
    seen = set()
    for number, dkim in enumerate(config.dkim):
        place = ("dkim", number, "key_file")
        if report.has(*place) and _can_read(report, place, dkim.key_file, is_secret=True):
            _check_signing_key(report, place, dkim.key_file)
        if dkim.selector and (dkim.domain, dkim.selector) in seen:
            words = f"{dkim.domain} has this selector already"
            report.error(("dkim", number, "selector"), words, "take one of the sections out")
        seen.add((dkim.domain, dkim.selector))


def _check_signing_key(report: Report, place: KeyPath, path: Path) -> None:
    try:
        key = signing_keys.read_key(secret_files.read_regular(path, _PEM_SIZE_MAX_BYTES))
    except signing_keys.KeyInvalid as invalid:
        report.error(place, f"{path} {invalid.message}", invalid.hint)
        return
    if key.kind == "rsa" and not signing_keys.RSA_BITS <= key.bits <= signing_keys.RSA_BITS_MAX:
        what = "are taken for weak" if key.bits < signing_keys.RSA_BITS else "are not verified everywhere"
        report.warning(
            place,
            f"{path} is an RSA key of {key.bits} bits; such signatures {what}",
            "make another with `pi-relay dkim`, under a new selector",
        )


# ── keeping, and telling people ──────────────────────────────────────────────────────────────────


def postmaster_is_known(config: Config, report: Report) -> None:
    """Without a `postmaster`, a report that has no sender to go back to reaches nobody (a warning)."""
    if not report.has("postmaster"):
        report.warning(
            ("postmaster",),
            "is missing: failures that no sender can be told of reach nobody",
            'add a line like postmaster = "admin@office.example" at the top of the file',
        )


def queue_survives(config: Config, report: Report) -> None:
    """The queue is a folder, not on FAT, in memory, on a network share or an overlay (a warning: a power cut
    may lose mail there), and fits its partition (a warning)."""
    queue = config.queue
    place = ("queue", "directory")
    try:
        if queue.directory.exists() and not queue.directory.is_dir():
            report.error(place, f"{queue.directory} is a file, not a folder", "name a folder of its own")
            return
    except OSError as error:
        report.error(place, f"{queue.directory} cannot be used: {error.strerror}", "name a folder of its own")
        return
    partition = machine.partition_of(queue.directory)
    if partition is None:
        return
    if partition.forgetful:
        report.warning(
            place,
            f"{queue.directory} lies on {partition.forgetful}: a power cut may lose mail there",
            "choose a folder on the machine's own disk (ext4 or the like)",
        )
    if queue.size_max_bytes > partition.size_bytes:
        report.warning(
            ("queue", "size_max"),
            f"is more than the whole partition has ({_size(partition.size_bytes)})",
            "lower it, or move the queue to a larger partition",
        )
    if queue.free_space_min_bytes >= partition.free_bytes:
        report.warning(
            ("queue", "free_space_min"),
            f"the partition has only {_size(partition.free_bytes)} free: no mail would be accepted now",
            "make room, lower free_space_min, or move the queue to a larger partition",
        )


def schedule_makes_sense(config: Config, report: Report) -> None:
    """Warned of: a `lifetime` shorter than the first of `retry_delays`, and a `delay_warning_after` that is
    not before it."""
    queue = config.queue
    if queue.lifetime_seconds < queue.retry_delays_seconds[0]:
        report.warning(
            ("queue", "lifetime"),
            "is shorter than the first of retry_delays: mail is given up after one attempt",
            'give mail a few days: lifetime = "4d"',
        )
    if queue.delay_warning_after_seconds >= queue.lifetime_seconds:
        report.warning(
            ("queue", "delay_warning_after"),
            "is not before the end of lifetime: nobody is told that a message is late",
            'shorten it, or set it to "0s" if nobody shall be told',
        )


def file_is_closed(config: Config, report: Report) -> None:
    """With a password in it, pi-relay.toml itself is closed to others."""
    for host in config.smart_hosts:
        if report.has("smart_hosts", host.name, "password"):
            try:
                secret_files.refuse_open(config.path)
            except Wrong as wrong:
                report.error(("smart_hosts", host.name, "password"), wrong.message, wrong.hint)


def _size(size_bytes: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size_bytes >= factor:
            return (
                f"{size_bytes / factor:.3g} {unit}"
                if size_bytes < 1000 * factor
                else f"{size_bytes // factor} {unit}"
            )
    return f"{size_bytes} bytes"


RULES: tuple[Rule, ...] = (
    postmaster_is_known,
    listeners_do_not_clash,
    devices_can_sign_in,
    world_is_kept_out,
    world_does_not_reach_in,
    submission_fits,
    senders_are_known,
    certificate_and_key_fit,
    devices_are_told_apart,
    devices_are_recognised,
    devices_make_sense,
    there_is_a_way_out,
    smart_hosts_are_named_well,
    smart_hosts_sign_in_safely,
    smart_hosts_are_verified,
    mail_does_not_come_back,
    routes_lead_somewhere,
    direct_has_a_name,
    signing_keys_can_be_used,
    queue_survives,
    schedule_makes_sense,
    file_is_closed,
)
