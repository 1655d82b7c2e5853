"""Builds the rooms, joins them, and keeps them running: start, signals, reload, stop.

Rules: the only place where the rooms meet; each is handed the callables it needs and knows nothing of the
others. Start goes from the inside out (queue, ways out, then listeners), stop the other way round, so that
nothing is accepted that could not be kept. It must not decide anything about a message.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import resource
import signal
import sys
from pathlib import Path

from pi_relay import __version__, last_good, maillog
from pi_relay.config import Config, ConfigInvalid, Finding, Severity, check, in_words
from pi_relay.control import SOCKET_NAME, ControlServer
from pi_relay.delivery import Delivery
from pi_relay.folders import runtime_directory, state_directory
from pi_relay.model import IncomingMessage
from pi_relay.operations import Operations
from pi_relay.queue.manager import Manager
from pi_relay.queue.store import Store, StoreLocked
from pi_relay.quotas import Quotas
from pi_relay.restarts import Restarts
from pi_relay.state import Clock
from pi_relay.status import Restart, sentence
from pi_relay.submission.certificates import CertificateError, Certificates
from pi_relay.submission.server import ListenerError, Server
from pi_relay.supervision import Supervision
from pi_relay.systemd import ServiceManager, Sockets, runs_as_service

STOP_GRACE_SECONDS = 10.0
DAY_SECONDS = 86_400.0

EXIT_OK, EXIT_FAILED, EXIT_BAD_CONFIGURATION = 0, 1, 3


class Relay:
    """The parts of a running relay."""

    def __init__(self, config: Config, clock: Clock, spoilt: str = "") -> None:
        """``spoilt``: what is wrong with the file, where the last good one is served instead."""
        self.config = config
        self._clock = clock
        self._spoilt = spoilt
        self._reloading = asyncio.Lock()
        self._chores: asyncio.Task[None] | None = None
        queue = config.queue
        self.store = Store(
            queue.directory,
            size_max_bytes=queue.size_max_bytes,
            free_space_min_bytes=queue.free_space_min_bytes,
        )
        self.quotas = Quotas(state_directory(), clock_is_wrong=clock.is_wrong, note_time=clock.note)
        self.delivery = Delivery(
            config,
            on_hop_changed=self._hop_changed,
            quotas=self.quotas,
            clock_is_wrong=clock.is_wrong,
            state_directory=state_directory(),
        )
        self.certificates = Certificates(config, state_directory(), clock_is_wrong=clock.is_wrong)
        self.manager = Manager(
            self.store,
            config,
            deliver=self.delivery.deliver,
            hop_state=self.delivery.hop_state,
            capacity=self.delivery.capacity,
            resume=self.delivery.resume,
        )
        service_manager = ServiceManager()
        self.server = Server(
            config,
            begin=self.begin,
            tls_context=self.certificates.context,
            clock_is_wrong=clock.is_wrong,
            quotas=self.quotas,
            sockets=Sockets(service_manager),
        )
        operations = Operations(self, reload=self.reload)
        self._restarts = Restarts(state_directory())
        self.supervision = Supervision(
            service_manager, self._restarts, words=lambda: sentence(operations.observe())
        )
        self.control = ControlServer(runtime_directory() / SOCKET_NAME, operations.handlers())

    def begin(self, declared_size_bytes: int | None, *, known_device: bool = True) -> IncomingMessage:
        return self.store.begin(declared_size_bytes, known_device=known_device)

    def _hop_changed(self, name: str) -> None:
        self.manager.hop_changed(name)
        self.supervision.changed()

    async def start(self) -> None:
        """Open everything, listeners last. Raises StoreLocked, ListenerError or OSError."""
        with self.supervision.starting():
            await self.store.open()
        self.supervision.alone()
        await self.certificates.ensure()
        await self.control.start()
        self.manager.start()
        await self.server.start()
        self._keep_good_file()
        self.supervision.watch(self.store, self.manager, self.delivery, self.server)
        self._chores = asyncio.get_running_loop().create_task(self._do_daily_chores())

    async def _do_daily_chores(self) -> None:
        """Certificates grow old, and the clock may have come right."""
        while True:
            await asyncio.sleep(DAY_SECONDS)
            try:
                await self.certificates.ensure()
            except (CertificateError, OSError) as problem:
                maillog.alert(reason=f"the certificate for devices cannot be renewed: {problem}")

    async def stop(self) -> None:
        """Finish what is under way, STOP_GRACE_SECONDS at most; everything else stays in the queue."""
        if self._chores is not None:
            self._chores.cancel()
        await self.server.stop_listening()
        await asyncio.gather(
            self.server.close(STOP_GRACE_SECONDS / 2),
            self.manager.stop(STOP_GRACE_SECONDS / 2),
        )
        await self.delivery.close()
        await self.quotas.close()
        await self.control.close()
        await self.store.close()

    async def reload(self) -> list[Finding]:
        """Take the file as it is now; its warnings. ConfigInvalid: it has errors; CertificateError,
        ListenerError: this machine cannot serve it. Then the relay goes on as it was, but that a certificate
        that could be loaded is served."""
        async with self._reloading:
            with self.supervision.reloading():
                return await self._reload()

    async def _reload(self) -> list[Finding]:
        path = self.config.path
        config, findings = await asyncio.to_thread(check, path)
        if config is None:
            self._spoilt = in_brief(path, findings)
            log_spoilt(path, findings)
            raise ConfigInvalid(path, findings)
        try:
            await self.certificates.reconfigure(config)
            await self.server.reconfigure(config)
        except (CertificateError, ListenerError) as problem:
            self._spoilt = f"the file cannot be put in force, the last good one is: {problem}"
            maillog.error(self._spoilt)
            raise
        self.config = config
        queue = config.queue
        self.store.reconfigure(
            size_max_bytes=queue.size_max_bytes, free_space_min_bytes=queue.free_space_min_bytes
        )
        await self.delivery.reconfigure(config)
        self.manager.reconfigure(config)
        open_log(config, self._clock)
        self._spoilt = ""
        self._keep_good_file()
        return findings

    def _keep_good_file(self) -> None:
        """For a start at which the file is spoilt."""
        if self._spoilt:
            return
        try:
            last_good.keep(state_directory(), self.config.path)
        except OSError as problem:
            maillog.error(f"cannot keep a copy of {self.config.path}: {problem}")

    def troubles(self) -> list[str]:
        """What is wrong with the whole, in words."""
        return [self._spoilt] if self._spoilt else []

    def last_restart(self) -> Restart | None:
        return self._restarts.last

    def clock_is_wrong(self) -> bool:
        return self._clock.is_wrong()


async def _serve(config: Config, clock: Clock, spoilt: str) -> int:
    """Run until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    relay = Relay(config, clock, spoilt)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        await relay.start()
    except (StoreLocked, ListenerError, CertificateError, OSError) as problem:
        print(f"pi-relay: {problem}", file=sys.stderr)
        await relay.stop()
        relay.supervision.stopped()
        return EXIT_FAILED
    reloads = Reloads(relay)
    loop.add_signal_handler(signal.SIGHUP, reloads.request)
    relay.supervision.ready()
    maillog.notice(f"pi-relay {__version__} is ready; messages in the queue: {len(relay.store.entries)}")
    await stopping.wait()
    relay.supervision.stopping()
    maillog.notice("stopping")
    await relay.stop()
    relay.supervision.stopped()
    return EXIT_OK


class Reloads:
    """SIGHUP: one reload at a time; one asked for meanwhile follows."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._again = False
        self._task: asyncio.Task[None] | None = None

    def request(self) -> None:
        self._again = True
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while self._again:
            self._again = False
            try:
                await self._relay.reload()
            except (ConfigInvalid, CertificateError, ListenerError):
                continue  # all has been said
            else:
                maillog.notice("the configuration was read again")


def in_brief(path: Path, findings: list[Finding]) -> str:
    """For `status`: the first of what is wrong with the file."""
    errors = [finding for finding in findings if finding.severity is Severity.ERROR]
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"the file has errors, the last good one is in force: {in_words(path, errors[0])}{more}"


def log_spoilt(path: Path, findings: list[Finding]) -> None:
    maillog.error("the file has errors; the last good configuration stays in force")
    for finding in findings:
        maillog.error(in_words(path, finding))


def _allow_files() -> None:
    """As many open files as we may have: the soft limit is for users of select(2), which we are not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:  # our unit sets them alike, and lets nobody change them
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_log(config: Config, clock: Clock) -> None:
    """Old log files are deleted only by a clock that can be believed."""
    directory = state_directory() / "log"
    maillog.open_log(directory, config.log, stderr=True, clock_is_right=lambda: not clock.is_wrong())


def run(path: Path) -> int:
    """`pi-relay serve`: the exit code. 3: the file has errors; 1: something else keeps it from starting."""
    config, findings = check(path)
    spoilt = ""
    if config is None and (config := _last_good(path)) is not None:
        spoilt = in_brief(path, findings)
    else:
        for finding in findings:
            print(in_words(path, finding), file=sys.stderr)
    if config is None:
        return EXIT_BAD_CONFIGURATION
    try:
        state_directory().mkdir(mode=0o700, parents=True, exist_ok=True)
        clock = Clock(state_directory())
        open_log(config, clock)
        _allow_files()
    except OSError as problem:
        print(f"pi-relay: {problem}", file=sys.stderr)
        return EXIT_FAILED
    if spoilt:
        log_spoilt(path, findings)
    # A watchdog's SIGABRT, or a crash, leaves in the journal where each thread was.
    faulthandler.enable()
    # What is imported by now lives as long as we do: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    try:
        return asyncio.run(_serve(config, clock, spoilt))
    finally:
        clock.note()
        maillog.close_log()


def _last_good(path: Path) -> Config | None:
    """A service serves rather what was good before than nothing; on a terminal somebody reads the errors."""
    if not runs_as_service():
        return None
    return last_good.load(state_directory(), path)[0]
