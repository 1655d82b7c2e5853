"""Asks the DNS: each question once, the answer kept as long as it may be, every failure told in words.

Rules: names are absolute, search domains never apply. Equal questions share the one query that is under way,
and whoever stops waiting leaves it to the others. Answers are kept by the monotonic clock: on a box without a
clock chip the wall clock jumps, and would keep an answer for years. dnspython does the rest: servers in turn,
time-outs, TCP where an answer is truncated, ids and ports that cannot be guessed.

dnspython costs some 3 MB: import this only where something is asked. It must not know mail.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import dns.asyncbackend
import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.nameserver
import dns.rcode
import dns.rdata
import dns.rdatatype
import dns.resolver

RESOLV_CONF = Path("/etc/resolv.conf")
QUESTION_SECONDS = 12.0  # all servers, all tries
TRY_SECONDS = 3.0  # one server, once
EDNS_PAYLOAD_BYTES = 1232  # passes everywhere without fragments (DNS flag day 2020)
CNAMES_MAX = 8  # followed by us, where a server does not follow them itself

CACHED_MAX = 1000
CACHED_TEXT_MAX = 8192  # characters of one answer: longer ones are asked for again
# However long the answer says: a changed record is noticed within the hour, a new name within five minutes.
POSITIVE_TTL_MAX_SECONDS = 3600.0
NEGATIVE_TTL_MAX_SECONDS = 300.0
FAILURE_TTL_SECONDS = 1.0  # RFC 9520 3.2: the least; a server that is well again shall be believed at once


@dataclass(frozen=True, slots=True)
class Answer:
    """``records``: of A, AAAA addresses; of MX "10 mail.office.example", no final dot; of TXT joined strings.

    Without any, the name ``exists`` with other types of records, or does not (NXDOMAIN); or it is not known,
    and ``trouble`` says in words what the servers did.
    """

    ttl_seconds: float
    records: tuple[str, ...] = ()
    exists: bool = True
    trouble: str = ""


Question = tuple[str, str]  # the name in lower case without its final dot; "A", "AAAA", "MX", "TXT"


class Resolver:
    """``servers``: "9.9.9.9" or "127.0.0.1:5353"; without any, those of resolv.conf, whenever it changes."""

    def __init__(
        self,
        servers: tuple[str, ...] = (),
        *,
        resolv_conf: Path = RESOLV_CONF,
        question_seconds: float = QUESTION_SECONDS,
        try_seconds: float = TRY_SECONDS,
    ) -> None:
        self.questions = 0  # asked of the servers: neither cached nor shared
        self.queries = 0  # sent to them: more than the questions where a try failed or TCP was needed
        self._servers = servers
        self._resolv_conf = resolv_conf
        self._question_seconds = question_seconds
        self._try_seconds = try_seconds
        self._resolver: dns.asyncresolver.Resolver | None = None
        self._read_from: object = None  # what resolv.conf was when it was read
        self._cache = _Cache()
        self._under_way: dict[Question, asyncio.Task[Answer]] = {}

    async def ask(self, name: str, kind: str) -> Answer:
        """Never raises for what the DNS does or is: see Answer. Takes ``question_seconds`` at most."""
        question = (name.lower().removesuffix("."), kind)
        kept = self._cache.get(question)
        if kept is not None:
            return kept
        asking = self._under_way.get(question)
        if asking is None:
            asking = asyncio.get_running_loop().create_task(self._find(question))
            self._under_way[question] = asking
            asking.add_done_callback(lambda _: self._under_way.pop(question))
        return await asyncio.shield(asking)

    async def close(self) -> None:
        """Drop what is under way: it counts as not answered."""
        asking = list(self._under_way.values())
        for each in asking:
            each.cancel()
        await asyncio.gather(*asking, return_exceptions=True)

    async def _find(self, question: Question) -> Answer:
        self.questions += 1
        try:
            async with asyncio.timeout(self._question_seconds + 1):
                answer = await self._follow(*question)
        except TimeoutError:
            answer = _no_answer("no answer in time")
        except asyncio.CancelledError:  # by close(): whoever waits here was not cancelled
            return _no_answer("the relay stopped asking")
        self._cache.put(question, answer)
        return answer

    async def _follow(self, name: str, kind: str) -> Answer:
        """Servers that know nothing beyond their own zones leave the next step of a CNAME to us."""
        ttl_seconds = POSITIVE_TTL_MAX_SECONDS
        for _ in range(CNAMES_MAX):
            found = await self._ask_servers(name, kind)
            if isinstance(found, Answer):
                return found
            ttl_seconds = min(ttl_seconds, found.chaining_result.minimum_ttl)
            if not _is_cut_short(found):
                return _in_short(found, ttl_seconds)
            name = found.canonical_name.to_text(omit_final_dot=True)
        return _no_answer("the name is an endless row of CNAMEs")

    async def _ask_servers(self, name: str, kind: str) -> dns.resolver.Answer | Answer:
        try:
            absolute = dns.name.from_text(name, dns.name.root)
        except (dns.exception.DNSException, UnicodeError):
            return Answer(NEGATIVE_TTL_MAX_SECONDS, exists=False)  # nothing that a zone could hold
        try:
            resolver = self._current_resolver()
            return await resolver.resolve(absolute, kind, raise_on_no_answer=False, search=False)
        except dns.resolver.NXDOMAIN as nothing:
            response: dns.message.QueryMessage = nothing.kwargs["responses"][absolute]
            ttl_seconds = response.resolve_chaining().minimum_ttl
            return Answer(min(ttl_seconds, NEGATIVE_TTL_MAX_SECONDS), exists=False)
        except (dns.exception.DNSException, OSError) as problem:
            return _no_answer(_words(problem))

    def _current_resolver(self) -> dns.asyncresolver.Resolver:
        """Made anew when resolv.conf has changed: DHCP brings other servers."""
        current = None if self._servers else _identity(self._resolv_conf)
        if self._resolver is None or current != self._read_from:
            self._resolver = self._make_resolver()
            self._read_from = current
        return self._resolver

    def _make_resolver(self) -> dns.asyncresolver.Resolver:
        """Raises dns.resolver.NoResolverConfiguration."""
        resolver = dns.asyncresolver.Resolver(configure=False)
        if not self._servers:
            resolver.read_resolv_conf(str(self._resolv_conf))
        known = self._servers or tuple(map(str, resolver.nameservers))
        resolver.nameservers = [_Server(self, *_endpoint(each)) for each in known]
        resolver.use_edns(0, 0, EDNS_PAYLOAD_BYTES)
        resolver.timeout = self._try_seconds
        resolver.lifetime = self._question_seconds
        return resolver

    def put_last(self, server: dns.nameserver.Nameserver) -> None:
        """It did not answer: the questions to come shall not wait for it first."""
        if self._resolver is not None and server in self._resolver.nameservers:
            others = [each for each in self._resolver.nameservers if each is not server]
            self._resolver.nameservers = [*others, server]


class _Server(dns.nameserver.Do53Nameserver):
    """One server, which counts its queries and knows what old routers make of EDNS."""

    def __init__(self, resolver: Resolver, address: str, port: int) -> None:
        super().__init__(address, port)
        self._of = resolver

    async def async_query(self, request: dns.message.QueryMessage, *args: Any, **kwargs: Any) -> Any:
        response = await self._query(request, *args, **kwargs)
        if request.edns >= 0 and response.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP):
            request.use_edns(None)  # RFC 6891 6.2.2
            response = await self._query(request, *args, **kwargs)
        return response

    async def _query(self, request: dns.message.QueryMessage, *args: Any, **kwargs: Any) -> Any:
        self._of.queries += 1
        try:
            response = await super().async_query(request, *args, **kwargs)
        except dns.exception.Timeout:
            self._of.put_last(self)
            raise
        if response.flags & dns.flags.TC:  # over TCP, too: what is missing must not pass for "no records"
            raise dns.exception.FormError
        return response


class _Cache:
    """The answers used last, by the monotonic clock."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Question, tuple[float, Answer]] = OrderedDict()

    def get(self, question: Question) -> Answer | None:
        until, answer = self._kept.get(question, (0.0, None))
        if answer is None:
            return None
        if until <= monotonic():
            del self._kept[question]
            return None
        self._kept.move_to_end(question)
        return answer

    def put(self, question: Question, answer: Answer) -> None:
        if answer.ttl_seconds > 0 and sum(map(len, answer.records)) <= CACHED_TEXT_MAX:
            self._kept[question] = (monotonic() + answer.ttl_seconds, answer)
            if len(self._kept) > CACHED_MAX:
                self._kept.popitem(last=False)


# ── what dnspython says ──────────────────────────────────────────────────────────────────────────


def _is_cut_short(found: dns.resolver.Answer) -> bool:
    """It ends with a CNAME, and not because the target has nothing: a SOA would say so (RFC 2308 2.2)."""
    has_soa = any(each.rdtype == dns.rdatatype.SOA for each in found.response.authority)
    return found.rrset is None and found.canonical_name != found.qname and not has_soa


def _in_short(found: dns.resolver.Answer, ttl_seconds: float) -> Answer:
    if found.rrset is None:
        return Answer(min(ttl_seconds, NEGATIVE_TTL_MAX_SECONDS))
    records = tuple(map(_record, found.rrset))
    return Answer(min(ttl_seconds, POSITIVE_TTL_MAX_SECONDS), records)


def _record(record: Any) -> str:
    match record.rdtype:
        case dns.rdatatype.MX:
            return f"{record.preference} {record.exchange.to_text(omit_final_dot=True)}"
        case dns.rdatatype.TXT:
            return b"".join(record.strings).decode("utf-8", "replace")
        case _:
            return str(record.address)


def _no_answer(trouble: str) -> Answer:
    return Answer(FAILURE_TTL_SECONDS, trouble=trouble)


def _words(problem: BaseException) -> str:
    """What each server did, without dnspython's own wording: "127.0.0.1 said SERVFAIL"."""
    if isinstance(problem, dns.resolver.NoResolverConfiguration):
        return "no DNS server is known"
    errors = getattr(problem, "kwargs", {}).get("errors") or ()
    said = dict.fromkeys(_said(server, what) for server, _, _, what, _ in errors)
    return ", ".join(said) or "no answer in time"


def _said(server: str, what: object) -> str:
    address = re.sub(r"^Do53:|@53$", "", server).replace("@", " port ")
    match what:
        case str():
            return f"{address} said {what}"
        case dns.exception.Timeout():
            return f"{address} did not answer"
        case OSError() if what.strerror:
            return f"{address}: {what.strerror}"
        case _:
            return f"{address} answered something unintelligible"


# ── which servers ────────────────────────────────────────────────────────────────────────────────


def _endpoint(server: str) -> tuple[str, int]:
    """ "9.9.9.9", "9.9.9.9:5353", "2620:fe::fe", "[2620:fe::fe]:5353"."""
    bracketed = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?", server)
    if bracketed:
        return bracketed[1], int(bracketed[2] or 53)
    address, colon, port = server.rpartition(":")
    if colon and ":" not in address:
        return address, int(port)
    return server, 53


def _identity(path: Path) -> object:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
