"""Completion for bash and zsh, written from what the program itself says of its verbs and options.

``python -m pi_relay.cli.completion bash`` (or ``zsh``) prints it; the package installs it. Queue ids are
asked of the program when they are wanted, everything else is fixed.
Rules: it must not know what a verb does.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator

from pi_relay.cli import COMMANDS, command_parser, top_parser

_QUEUE_IDS = """\
_pi_relay_queue_ids() {
  pi-relay queue list --json 2>/dev/null | grep -o '"queue_id": *"[^"]*"' | cut -d'"' -f4
}
"""

_BASH = """\
# bash completion for pi-relay

{queue_ids}
_pi_relay() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} words=() verb="" word position
  for ((position = 1; position < COMP_CWORD; position++)); do
    word=${{COMP_WORDS[position]}}
    case $word in
      -c | --config) ((position++)) ;;
      -*) ;;
      *) words+=("$word") ;;
    esac
  done
  case ${{COMP_WORDS[COMP_CWORD - 1]}} in
    -c | --config)
      mapfile -t COMPREPLY < <(compgen -f -- "$current")
      return
      ;;
  esac
  verb=${{words[*]:0:2}}
  case $verb in
{cases}
    *) verb=${{words[0]-}} ;;
  esac
  case $verb in
{cases_with_words}
    *) word="" ;;
  esac
  if [[ $current != -* ]]; then
    case $verb in
      "queue "[!l]*) word+=" $(_pi_relay_queue_ids)" ;;
      backup | restore | "tls export-ca")
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        return
        ;;
    esac
  fi
  mapfile -t COMPREPLY < <(compgen -W "$word" -- "$current")
}}
complete -F _pi_relay pi-relay
"""

_ZSH = """\
#compdef pi-relay

{queue_ids}
_pi_relay() {{
  local -A following=(
{table}
  )
  local -a given
  local word verb position
  for ((position = 2; position < CURRENT; position++)); do
    word=$words[position]
    case $word in
      (-c|--config) ((position++)) ;;
      (-*) ;;
      (*) given+=("$word") ;;
    esac
  done
  verb="${{given[1]-}} ${{given[2]-}}"
  (( ${{+following[$verb]}} )) || verb=${{given[1]-}}
  case "$words[CURRENT-1]:$verb" in
    (-c:*|--config:*|*:(backup|restore|tls export-ca)) _files; return ;;
    (*:"queue "[^l]*) compadd -- ${{(f)"$(_pi_relay_queue_ids)"}} ;;
  esac
  compadd -- ${{=following[$verb]}}
}}
_pi_relay "$@"
"""


def words() -> dict[str, list[str]]:
    """What may follow each verb (and each verb with its action): actions and options; "" is the top."""
    found = {"": [*COMMANDS, *_options(top_parser())]}
    for verb in COMMANDS:
        found.update(_words_of(verb, command_parser(verb)))
    return found


def _words_of(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, list[str]]]:
    actions = {
        action_name: sub_parser
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for action_name, sub_parser in action.choices.items()
    }
    yield name, [*actions, *_options(parser)]
    for action_name, sub_parser in actions.items():
        yield from _words_of(f"{name} {action_name}", sub_parser)


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for action in parser._actions for option in action.option_strings if option[:2] == "--"]


def bash() -> str:
    table = words()
    pairs = " | ".join(f'"{name}"' for name in table if " " in name)
    lines = [f'    "{name}") word="{" ".join(following)}" ;;' for name, following in table.items()]
    return _BASH.format(queue_ids=_QUEUE_IDS, cases=f"    {pairs}) ;;", cases_with_words="\n".join(lines))


def zsh() -> str:
    lines = [f'    "{name or " "}" "{" ".join(following)}"' for name, following in words().items()]
    return _ZSH.format(queue_ids=_QUEUE_IDS, table="\n".join(lines))


if __name__ == "__main__":
    os.environ["LC_ALL"] = "C.UTF-8"
    print({"bash": bash, "zsh": zsh}[sys.argv[1]](), end="")
