"""From the TOML document to Config, by the table in schema.py.

Rules: never stops at the first error; what does not fit is reported and stands at its default, so that the
rules over several keys can still be checked. It must not know what keys mean together (rules.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

from pi_relay.folders import state_directory

from . import data, machine, secret_files
from .findings import KeyPath, Report
from .kinds import Wrong, looks_like_address, type_words
from .schema import (
    DEVICES,
    DIRECT,
    DKIM,
    LISTENERS,
    LOG,
    QUEUE,
    ROUTES,
    SMART_HOSTS,
    SUBMISSION,
    TABLES,
    TLS,
    TOP,
    Key,
    Table,
    generic_name,
    in_toml_line,
)

NOT_AVAILABLE = "not available in this version"
SIZE_MAX_DEFAULT_BYTES = 4_000 * data.MB


def read(document: dict[str, Any], path: Path, report: Report, not_yet: Collection[str]) -> data.Config:
    """``path``: absolute, of the file; names of files in it count from its folder."""
    return _Reader(document, path, report, not_yet).config()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint, or ""."""
    from difflib import get_close_matches  # slow to import, and only wanted where something is wrong

    lowered = {option.lower(): option for option in known}
    close = get_close_matches(word.lower()[:80], lowered, 1, 0.7)
    return f'did you mean "{lowered[close[0]]}"?' if close else ""


class _Reader:
    def __init__(
        self, document: dict[str, Any], path: Path, report: Report, not_yet: Collection[str]
    ) -> None:
        self._document = document
        self._path = path
        self._report = report
        self._not_yet = not_yet

    def config(self) -> data.Config:
        sections = {table.name: table for table in TABLES[1:]}
        top = {}
        for name, value in self._document.items():
            if name in self._not_yet:
                self._refuse_section(name, value)
            elif name not in sections:
                top[name] = value
        values = self._section(TOP, top, ())
        smart_hosts = tuple(self._smart_host(*found) for found in self._named(SMART_HOSTS))
        return data.Config(
            path=self._path,
            hostname=values.pop("hostname", "") or machine.full_name(),
            listeners=self._listeners(),
            submission=self._submission(smart_hosts),
            tls=data.Tls(**self._single(TLS)),
            devices=tuple(data.Device(**values) for values in self._array(DEVICES)),
            smart_hosts=smart_hosts,
            routes=self._routes(smart_hosts),
            direct=data.Direct(**self._single(DIRECT)),
            dkim=tuple(data.Dkim(**values) for values in self._array(DKIM)),
            queue=self._queue(),
            log=data.Log(**self._single(LOG)),
            **values,
        )

    # ── sections ─────────────────────────────────────────────────────────────────────────────────

    def _refuse_section(self, name: str, value: object) -> None:
        places: list[KeyPath] = [(name,)]
        if isinstance(value, list) and value:
            places = [(name, number) for number in range(len(value))]
        for place in places:
            self._report.error(place, NOT_AVAILABLE, "take this section out of the file")

    def _raw(self, table: Table, wanted: type) -> Any:
        """The document's value for the section, or an empty one of the wanted type."""
        raw = self._document.get(table.name)
        if raw is None or table.name in self._not_yet:
            return wanted()
        if not isinstance(raw, wanted):
            message, hint = f"must be a section, not {type_words(raw)}", f"begin it with {table.header}"
            if isinstance(raw, dict | list):
                brackets = "with two brackets" if table.is_array else "with one bracket"
                message, hint = f"must be given as {table.header}", f"write {table.header}, {brackets}"
            self._report.error((table.name,), message, hint)
            return wanted()
        return raw

    def _single(self, table: Table) -> dict[str, Any]:
        return self._section(table, self._raw(table, dict), (table.name,))

    def _array(self, table: Table) -> Iterator[dict[str, Any]]:
        """The sections in order; one that is none of its kind keeps its place, at the defaults."""
        for number, raw in enumerate(self._raw(table, list)):
            place = (table.name, number)
            if not isinstance(raw, dict):
                words = f"must be a section, not {type_words(raw)}"
                self._report.error(place, words, f"begin each with {table.header}")
                yield self._defaults(table)
            else:
                yield self._section(table, raw, place)

    def _named(self, table: Table) -> Iterator[tuple[str, dict[str, Any]]]:
        for name, raw in self._raw(table, dict).items():
            place = (table.name, name)
            if isinstance(raw, dict):
                yield name, self._section(table, raw, place)
            elif table.key(name) is not None:
                self._report.error(
                    place, "stands in no smart host", "give the section a name: [smart_hosts.isp]"
                )
            else:
                words = f"must be a section, not {type_words(raw)}"
                self._report.error(place, words, f"begin it with [{table.name}.{name}]")

    def _section(self, table: Table, raw: dict[str, Any], place: KeyPath) -> dict[str, Any]:
        """The values by field: the given ones, and the table's defaults for the others."""
        values = self._defaults(table)
        for name, value in raw.items():
            key = table.key(name)
            if self._is_not_yet(table, name, value, (*place, name)):
                continue
            if key is None:
                self._report.error((*place, name), "is not a key of pi-relay", self._unknown(table, name))
                continue
            for read_value in self._values(key, value, (*place, name)):
                values[key.field] = read_value
        for key in table.keys:
            if key.required and key.name not in raw:
                self._report.error((*place, key.name), "is missing", f"add a line like: {in_toml_line(key)}")
        return values

    def _defaults(self, table: Table) -> dict[str, Any]:
        values = {key.field: key.kind.read(key.default) for key in table.keys if key.default is not None}
        return values | {key.field: _PLACEHOLDERS.get(key.field, "") for key in table.keys if key.required}

    def _is_not_yet(self, table: Table, name: str, value: object, place: KeyPath) -> bool:
        generic = ".".join(filter(None, (table.name, "*" if table.is_named else "", name)))
        if generic in self._not_yet:
            self._report.error(place, NOT_AVAILABLE, "take this line out of the file")
            return True
        elements = enumerate(value) if isinstance(value, list) else [(None, value)]
        refused = [number for number, element in elements if f'{generic} = "{element}"' in self._not_yet]
        for number in refused:
            inside = place if number is None else (*place, number)
            self._report.error(inside, NOT_AVAILABLE, "take this value out of the file")
        return bool(refused)

    def _values(self, key: Key, value: object, place: KeyPath) -> Iterator[Any]:
        """The value as ours, or nothing where it does not fit."""
        try:
            read_value = key.kind.read(value)
        except* Wrong as group:
            for wrong in group.exceptions:
                assert isinstance(wrong, Wrong)
                inside = place if wrong.inside is None else (*place, wrong.inside)
                self._report.error(inside, wrong.message, wrong.hint or f"for example: {in_toml_line(key)}")
        else:
            yield self._path.parent / read_value if isinstance(read_value, Path) else read_value

    def _unknown(self, table: Table, name: str) -> str:
        """What was probably meant."""
        if homes := [other for other in TABLES if other.key(name) is not None]:
            header = homes[0].header
            return (
                f"it belongs in {header}" if header else "it belongs at the top, before the first [section]"
            )
        known = [key.name for key in table.keys if generic_name(table, key) not in self._not_yet]
        if table is TOP:
            known += [other.name for other in TABLES[1:] if other.name not in self._not_yet]
        return did_you_mean(name, known) or f"known here: {', '.join(known)}"

    # ── what a section becomes ───────────────────────────────────────────────────────────────────

    def _listeners(self) -> tuple[data.Listener, ...]:
        if "listeners" not in self._document:
            return data.DEFAULT_LISTENERS
        listeners = []
        for values in self._array(LISTENERS):
            host, port = values.pop("address") or ("", 0)
            listeners.append(data.Listener(host, port, **values))
        if self._document["listeners"] == []:
            self._report.error(
                ("listeners",), "must name at least one", "take the line out for the usual ports"
            )
        return tuple(listeners)

    def _smart_host(self, name: str, values: dict[str, Any]) -> data.SmartHost:
        place = ("smart_hosts", name)
        password_file = values.pop("password_file", None)
        if password_file is not None:
            try:
                values.setdefault("password", secret_files.read_password(password_file))
            except Wrong as wrong:
                self._report.error((*place, "password_file"), wrong.message, wrong.hint)
        values.setdefault("tls", "implicit" if values["port"] == 465 else "starttls")
        values.setdefault("auth", "password" if values.get("username") else "none")
        return data.SmartHost(name=name, **values)

    def _submission(self, smart_hosts: tuple[data.SmartHost, ...]) -> data.Submission:
        values = self._single(SUBMISSION)
        senders = [sender_of(host) for host in smart_hosts]
        domains = dict.fromkeys(sender.rpartition("@")[2].lower() for sender in senders if sender)
        values.setdefault("sender_domains", tuple(domains) or ("*",))
        values.setdefault("default_sender", senders[0] if senders else "")
        return data.Submission(**values)

    def _routes(self, smart_hosts: tuple[data.SmartHost, ...]) -> tuple[data.Route, ...]:
        if "routes" in self._document:
            return tuple(
                data.Route(**{**values, "via": values["via"] or ()}) for values in self._array(ROUTES)
            )
        return (data.Route(via=tuple(host.name for host in smart_hosts)),) if smart_hosts else ()

    def _queue(self) -> data.Queue:
        values = self._single(QUEUE)
        values.setdefault("directory", state_directory().absolute() / "queue")
        if "size_max_bytes" not in values:
            partition = machine.partition_of(values["directory"])
            half = partition.size_bytes // 2 if partition else SIZE_MAX_DEFAULT_BYTES
            values["size_max_bytes"] = min(SIZE_MAX_DEFAULT_BYTES, half)
        return data.Queue(**values)


_PLACEHOLDERS: dict[str, Any] = {"key_file": Path(), "via": (), "address": None}


def sender_of(host: data.SmartHost) -> str:
    """The address that the provider surely accepts from us, "" where it is not known."""
    return host.sender or (host.username if looks_like_address(host.username) else "")
