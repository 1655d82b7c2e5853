"""The command line: finds the verb, imports its module alone, turns what happened into an exit code.

A verb's module has ``configure(parser)`` and ``run(options) -> int``. Rules: nothing heavy is imported here,
for `pi-relay status` must be quick on a small machine; prose goes to stdout, errors and hints to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from pi_relay import __version__
from pi_relay.cli.output import FAILED, NOT_FOUND, USAGE, CliError, complain, prepare_streams
from pi_relay.cli.texts import language, t

DEFAULT_CONFIG = "/etc/pi-relay/pi-relay.toml"

# Verb -> what it does, in the order of --help; the module is named like the verb.
COMMANDS = {
    "serve": "run the relay in the foreground",
    "check": "name every error and warning of the configuration file",
    "status": "healthy or not, and why; queue, smart hosts, devices, disk, memory, clock",
    "queue": "list, show, retry, hold, release, delete or export what waits",
    "trace": "the life of messages: by queue id, Message-ID, address or device",
    "send-test": "send a test message through the running relay and wait for its fate",
    "password": "make the hash of a device's password",
    "backup": "configuration, secrets, keys and certificates, and the queue if wanted, into one file",
    "restore": "put back what pi-relay backup has written, and check it",
    "dkim": "make the key that signs mail of a domain, print its DNS record, and check it",
    "sendmail": "sendmail(1) for the programs of this machine: a message on stdin goes into the queue",
    "devices": "who has submitted, known or not, and what would mend refusals; add a device",
    "tls": "the certificate that devices see: show it, renew it, export its CA",
    "reload": "let the running relay read its configuration file again",
    "demo": "see a scan go through a relay to a stand-in smart host, and leave nothing behind",
    "sink": "a stand-in smart host that keeps what it takes in a Maildir",
}
NOT_YET = (
    "providers",
    "doctor",
    "setup",
    "auth",
    "web",
)
INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code."""
    prepare_streams()
    try:
        return _run(sys.argv[1:] if argv is None else list(argv))
    except SystemExit as exit_:  # argparse: --help, --version, wrong usage
        return exit_.code if isinstance(exit_.code, int) else FAILED
    except CliError as error:
        complain(error.message, error.hint)
        return error.exit_code
    except BrokenPipeError:
        # The reader has seen enough. What is still buffered must not complain at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        complain(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _run(argv: list[str]) -> int:
    options = top_parser().parse_args(argv)
    if options.command is None:
        top_parser().print_help(sys.stderr)
        return USAGE
    if options.command in NOT_YET:
        complain(t("{command}: not available in this version", command=options.command))
        return USAGE
    if options.command not in COMMANDS:
        complain(t("there is no command {command!r}", command=options.command), t("pi-relay -h lists them"))
        return USAGE
    parser = command_parser(options.command)
    parser.parse_args(options.arguments, namespace=options)
    result: int = _module(options.command).run(options)
    sys.stdout.flush()
    return result


def top_parser() -> argparse.ArgumentParser:
    width = max(map(len, COMMANDS)) + 2
    commands = "\n".join(f"  {name:{width}}{t(summary)}" for name, summary in COMMANDS.items())
    parser = Parser(
        prog="pi-relay",
        usage="pi-relay [-c FILE] COMMAND ...",
        description=t("The mail relay that a small office plugs in and forgets."),
        epilog=f"{t('commands:')}\n{commands}\n\n{t('pi-relay COMMAND --help says more, with an example.')}",
    )
    default = os.environ.get("PI_RELAY_CONFIG") or DEFAULT_CONFIG
    parser.add_argument("-c", "--config", metavar="FILE", default=default, help=_config_help())
    parser.add_argument(
        "--version",
        action="version",
        version=f"pi-relay {__version__}",
        help=t("show program's version number and exit"),
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def command_parser(command: str) -> argparse.ArgumentParser:
    """The parser of one verb; the man page is made from it too."""
    parser = Parser(prog=f"pi-relay {command}")
    parser.add_argument("-c", "--config", metavar="FILE", default=argparse.SUPPRESS, help=_config_help())
    _module(command).configure(parser)
    return parser


def _module(command: str):  # type: ignore[no-untyped-def]  # a module, known by its two functions
    return importlib.import_module(f"pi_relay.cli.{command.replace('-', '_')}")


def _config_help() -> str:
    return t("the configuration file (default: {default}, or $PI_RELAY_CONFIG)", default=DEFAULT_CONFIG)


class Parser(argparse.ArgumentParser):
    """argparse with our manners: no abbreviations, examples as written, errors with a hint, two languages."""

    def __init__(self, **settings: object) -> None:
        if language() != "en":
            # argparse asks gettext through this name; our catalogue has its few sentences.
            vars(argparse)["_"] = t
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        complain(message, t("{program} --help says how", program=self.prog), program=self.prog)
        self.exit(USAGE)


__all__ = ["COMMANDS", "NOT_FOUND", "NOT_YET", "command_parser", "main", "top_parser"]
