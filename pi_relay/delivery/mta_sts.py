"""What a recipient's domain asks of TLS on the way to it: MTA-STS (RFC 8461).

    TXT _mta-sts.DOMAIN says that there is a policy, and by its id whether it is a new one;
    https://mta-sts.DOMAIN/.well-known/mta-sts.txt holds it.

Rules
    - A policy is kept in the state folder and stays in force until its max_age is over, whatever the DNS and
      the web server say, or do not say, meanwhile: only another policy takes its place (RFC 8461 5.1). It
      ends with ``mode: none``.
    - Without one that is kept, trouble of the DNS or of the web server means that there is none: RFC 8461
      protects from the second message on. A fetch that failed is not tried again for five minutes.
    - A policy older than a day is fetched again while it serves.
    - By a clock that is wrong no policy ends; one that was fetched "in the future" counts from now.

It must not know what a session makes of the policy. DANE (RFC 7672), which goes before MTA-STS where a domain
has both, would be asked for beside this, per MX host.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import monotonic, time

from pi_relay import maillog
from pi_relay.delivery.https import Fetcher, FetchFailed
from pi_relay.delivery.mx import LookupFailed, Lookups, a_labels
from pi_relay.state import write_durably

FETCH_SECONDS = 60.0
POLICY_SIZE_MAX_BYTES = 64 * 1024
PATH = "/.well-known/mta-sts.txt"
REFRESH_SECONDS = 86_400.0  # RFC 8461 10.2 suggests a day
FAILURE_SECONDS = 300.0  # RFC 8461 3.3
MAX_AGE_LIMIT_SECONDS = 31_557_600  # RFC 8461 3.2: a year
KEPT_IN_MEMORY_MAX = 200
FILES_MAX = 1000

_MODES = ("enforce", "testing", "none")
_PATTERN = re.compile(r"(?:\*\.)?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Policy:
    domain: str  # A-labels
    id: str  # of the TXT record: a new one means a new policy
    mode: str  # "enforce" | "testing" | "none"
    mx_patterns: tuple[str, ...]  # "mail.office.example", "*.office.example"
    max_age_seconds: int
    fetched_at: float  # since the epoch

    def allows(self, host: str) -> bool:
        """Whether an MX host is one of the policy's (RFC 8461 4.1)."""
        return any(_fits(pattern, host.lower().removesuffix(".")) for pattern in self.mx_patterns)


class PolicyMalformed(Exception):
    """In words for the log."""


class Policies:
    """The policies of all domains; to be made where ``direct.mta_sts`` is on.

    ``tls_context``: one that verifies against the CA store. ``port``: of HTTPS, for tests.
    """

    def __init__(
        self,
        state_directory: Path,
        lookups: Lookups,
        *,
        tls_context: Callable[[], Awaitable[ssl.SSLContext]],
        clock_is_wrong: Callable[[], bool] = lambda: False,
        now: Callable[[], float] = time,
        port: int = 443,
        fetch_seconds: float = FETCH_SECONDS,
    ) -> None:
        self._files = _Files(state_directory / "mta-sts")
        self._lookups = lookups
        self._tls_context = tls_context
        self._clock_is_wrong = clock_is_wrong
        self._now = now
        self._port = port
        self._fetch_seconds = fetch_seconds
        self._fetcher = Fetcher()
        self._fetching: dict[str, asyncio.Task[Policy | None]] = {}
        self._kept: OrderedDict[str, Policy | None] = OrderedDict()  # as in the files
        self._failed_until: dict[str, float] = {}  # monotonic

    async def policy(self, domain: str) -> Policy | None:
        """What is in force for a recipient's domain, None where nothing is. Raises only cancellation.

        Takes as long as the DNS and a fetch may take: about a minute and a half at the very worst.
        """
        try:
            name = a_labels(domain)
        except LookupFailed:
            return None  # an address literal, or nothing that mail goes to
        known = self._in_force(name)
        try:
            announced = announced_id(await self._lookups.txt(f"_mta-sts.{name}"))
        except LookupFailed:
            return known
        if not announced:
            return known
        if known is None or known.id != announced:
            return await self._fetch(name, announced) or known
        if self._now() - known.fetched_at >= REFRESH_SECONDS:
            self._begin_fetch(name, announced)
        return known

    async def close(self) -> None:
        """Cut the fetches that are under way: they count as failed."""
        fetching = list(self._fetching.values())
        for each in fetching:
            each.cancel()
        await asyncio.gather(*fetching, return_exceptions=True)
        self._fetcher.close()

    def _in_force(self, name: str) -> Policy | None:
        if name not in self._kept:
            self._remember(name, self._files.read(name))
        self._kept.move_to_end(name)
        policy = self._kept[name]
        if policy is None or self._clock_is_wrong():
            return policy
        now = self._now()
        if policy.fetched_at > now:  # by a clock that was wrong
            policy = replace(policy, fetched_at=now)
            self._remember(name, policy)
        return policy if now - policy.fetched_at < policy.max_age_seconds else None

    def _remember(self, name: str, policy: Policy | None) -> None:
        self._kept[name] = policy
        if len(self._kept) > KEPT_IN_MEMORY_MAX:
            self._kept.popitem(last=False)

    # ── fetching ─────────────────────────────────────────────────────────────────────────────────

    async def _fetch(self, name: str, policy_id: str) -> Policy | None:
        fetching = self._begin_fetch(name, policy_id)
        return await asyncio.shield(fetching) if fetching else None

    def _begin_fetch(self, name: str, policy_id: str) -> asyncio.Task[Policy | None] | None:
        """The fetch under way, for whoever needs it; None where the last one failed just now."""
        if name not in self._fetching:
            if self._failed_until.get(name, 0.0) > monotonic():
                return None
            task = asyncio.get_running_loop().create_task(self._fetch_and_keep(name, policy_id))
            self._fetching[name] = task
            task.add_done_callback(lambda _: self._fetching.pop(name))
        return self._fetching[name]

    async def _fetch_and_keep(self, name: str, policy_id: str) -> Policy | None:
        try:
            policy = parse_policy(name, policy_id, await self._download(f"mta-sts.{name}"), self._now())
        except (LookupFailed, FetchFailed, PolicyMalformed, OSError) as problem:
            self._note_failure(name)
            maillog.error(f"MTA-STS: the policy of {name} cannot be fetched: {problem}")
            return None
        except asyncio.CancelledError:  # by close(): whoever waits here was not cancelled
            return None
        self._remember(name, policy)
        try:
            await asyncio.to_thread(self._files.write, policy)
        except OSError as problem:
            maillog.error(f"MTA-STS: the policy of {name} cannot be kept: {problem}")
        return policy

    async def _download(self, host: str) -> bytes:
        response = await self._fetcher.get(
            host,
            PATH,
            addresses=await self._lookups.addresses(host),
            port=self._port,
            context=await self._tls_context(),
            size_max_bytes=POLICY_SIZE_MAX_BYTES,
            timeout_seconds=self._fetch_seconds,
        )
        if response.status != 200:  # a redirect, too (RFC 8461 3.3)
            raise FetchFailed(f"{host} answers with status {response.status}")
        if response.content_type != "text/plain":
            raise FetchFailed(f"{host} sends {response.content_type}, not text/plain")
        return response.body

    def _note_failure(self, name: str) -> None:
        now = monotonic()
        self._failed_until = {each: until for each, until in self._failed_until.items() if until > now}
        self._failed_until[name] = now + FAILURE_SECONDS


class _Files:
    """A file for each domain, named after it; beyond FILES_MAX the one that was written longest ago goes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, domain: str) -> Policy | None:
        """None where there is none, or none that can be read."""
        try:
            fields = json.loads((self._directory / domain).read_bytes())
            return Policy(**{**fields, "mx_patterns": tuple(fields["mx_patterns"])})
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def write(self, policy: Policy) -> None:
        """Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_durably(self._directory / policy.domain, json.dumps(asdict(policy)).encode())
        files = [each for each in self._directory.iterdir() if not each.name.startswith(".")]
        if len(files) > FILES_MAX:
            for oldest in sorted(files, key=_written_at)[: len(files) - FILES_MAX]:
                oldest.unlink(missing_ok=True)


def _written_at(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


# ── the two texts ────────────────────────────────────────────────────────────────────────────────


def announced_id(records: Iterable[str]) -> str:
    """The id in the TXT records of _mta-sts.DOMAIN; "" where they announce no policy (RFC 8461 3.1)."""
    ours = [each for each in records if re.match(r"v=STSv1[ \t]*;", each)]
    if len(ours) != 1:
        return ""
    for field in ours[0].split(";")[1:]:
        key, _, value = field.strip(" \t").partition("=")
        if key == "id":
            return value if re.fullmatch(r"[A-Za-z0-9]{1,32}", value, re.ASCII) else ""
    return ""


def parse_policy(domain: str, policy_id: str, text: bytes, fetched_at: float) -> Policy:
    """RFC 8461 3.2. Raises PolicyMalformed."""
    fields: dict[str, list[str]] = {}
    for line in text.decode("utf-8", "replace").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), []).append(value.strip())
    version, mode, max_age = (fields.get(key, [""])[0] for key in ("version", "mode", "max_age"))
    if version != "STSv1":
        raise PolicyMalformed("it does not say version: STSv1")
    if mode not in _MODES:
        raise PolicyMalformed("its mode is none of enforce, testing, none")
    if not re.fullmatch(r"\d{1,10}", max_age, re.ASCII):
        raise PolicyMalformed("its max_age is no number of seconds")
    patterns = tuple(each for each in map(str.lower, fields.get("mx", [])) if _PATTERN.fullmatch(each))
    if not patterns and mode != "none":
        raise PolicyMalformed("it names no mx")
    return Policy(domain, policy_id, mode, patterns, min(int(max_age), MAX_AGE_LIMIT_SECONDS), fetched_at)


def _fits(pattern: str, host: str) -> bool:
    """A wildcard stands for exactly one label (RFC 8461 4.1)."""
    if pattern.startswith("*."):
        label, _, parent = host.partition(".")
        return bool(label) and parent == pattern[2:]
    return host == pattern
