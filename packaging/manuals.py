"""Prints a manual page or the bash completion, made from the command line and the table of keys that the program has.

Usage: manuals.py command | configuration | completion
"""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from marketprism import __version__
from marketprism.cli import _parser
from marketprism.config.keys import EFFECTIVE
from marketprism.config.kinds import Kind

ABOUT = "market data of Binance, OKX and Deribit to NATS JetStream"
CONFIG = "/etc/marketprism/unified_data_collection.yaml"
FILES = {
    CONFIG: "What is collected, from whom, and where it goes: unified_data_collection.yaml(5).",
    "/etc/marketprism/nats-server.conf": "The NATS server of this machine, marketprism-nats.service.",
    "/var/lib/marketprism": "What is kept: the NATS server's store, the hot and the cold store.",
    "/var/log/marketprism": "Log files, beside the journal.",
}
ENVIRONMENT = {
    "MARKETPRISM_CONFIG": f"The configuration, instead of {CONFIG}.",
    "MARKETPRISM_NATS_URL": "The NATS server, instead of nats.servers.",
    "MARKETPRISM_NATS_USER, MARKETPRISM_NATS_PASSWORD": "Login to NATS by name and password.",
    "MARKETPRISM_NATS_TOKEN": "Login to NATS by token.",
    "MARKETPRISM_BIND_HOST": "Address of /health and /metrics, instead of monitoring.bind_host.",
    "MARKETPRISM_LOG_DIR": "Where log files go.",
    "MARKETPRISM_RUNTIME_DIR": "Where workers leave their state and counters.",
    "MARKETPRISM_STATE_DIR": "Where the hot and the cold store are, unless the configuration says.",
    "MARKETPRISM_CLICKHOUSE_USER, MARKETPRISM_CLICKHOUSE_PASSWORD": "Login to ClickHouse servers.",
}
EXIT = {
    "0": "Done, or stopped on request.",
    "1": "Failed; one line tells why.",
    "2": "The command line is wrong.",
    "75": "A worker or store stopped itself near its hard memory limit.",
    "78": "The configuration is wrong, or a store's engine is not installed.",
}
SEE_ALSO = (
    "marketprism(1), marketprism.target(7), unified_data_collection.yaml(5), journalctl(1), systemctl(1)"
)


def main(argv: list[str]) -> int:
    """Exit status."""
    made = {"command": command, "configuration": configuration, "completion": completion}
    if len(argv) != 1 or argv[0] not in made:
        print(f"manuals.py: expected one of {', '.join(made)}, got: {' '.join(argv)}", file=sys.stderr)
        return 2
    print("\n".join(made[argv[0]]()))
    return 0


def command() -> Iterator[str]:
    """marketprism(1)."""
    yield from _head("marketprism", 1, ABOUT)
    yield ".SH SYNOPSIS\n.B marketprism\n.I VERB\n.RI [ option ...]"
    yield f".SH DESCRIPTION\n{_plain(_parser().description or '')}"
    yield ".PP\nUnder systemd nobody needs to call it: see\n.BR marketprism.target (7)."
    yield ".SH VERBS"
    for name, verb in _verbs().items():
        yield f".SS {_plain(_usage(name, verb))}\n{_plain(verb.description or '')}"
        for action in _told(verb):
            yield f".TP\n.B {_plain(_spelled(action))}\n{_plain(_help(action))}"
    yield from _list("FILES", FILES)
    yield from _list("ENVIRONMENT", ENVIRONMENT)
    yield from _list("EXIT STATUS", EXIT)
    yield f".SH SEE ALSO\n{SEE_ALSO}"


def configuration() -> Iterator[str]:
    """unified_data_collection.yaml(5)."""
    yield from _head("unified_data_collection.yaml", 5, "configuration of MarketPrism")
    yield f".SH DESCRIPTION\n{CONFIG} is the one configuration, in YAML."
    yield "A file of the earlier MarketPrism loads unchanged.\n.PP\nAfter a change:\n.PP\n.EX"
    yield "marketprism check\\-config\nsystemctl daemon\\-reload\nsystemctl reload marketprism.target\n.EE"
    yield ".SH KEYS\nEvery key may be left out."
    for key in EFFECTIVE:
        values = key.kind.expect if isinstance(key.kind, Kind) else "by exchange"
        yield f".TP\n.B {_plain(key.path)}\n{_plain(_sentence(key.effect))}\nExpected: {_plain(values)}."
    yield f".SH SEE ALSO\n{SEE_ALSO}"


def completion() -> Iterator[str]:
    """The function that bash calls for `marketprism <TAB>`."""
    yield "# bash completion for marketprism; made from its command line"
    yield "_marketprism() {"
    yield "    local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD - 1]}"
    yield "    local verb=${COMP_WORDS[1]}"
    yield "    ((COMP_CWORD > 1)) || verb="
    yield "    case $verb/$before in"
    yield from (line for name, verb in _verbs().items() for line in _values(name, verb))
    yield f"        /*) {_offer('', list(_verbs()))} ;;"
    for name, verb in _verbs().items():
        words = [option for action in verb._actions for option in action.option_strings]
        words += [word for action in _told(verb) if not action.option_strings for word in _choices(action)]
        files = (
            "-f" if any(action.type is Path and not action.option_strings for action in verb._actions) else ""
        )
        yield f"        {name}/*) {_offer(files, words)} ;;"
    yield "    esac"
    yield "}"
    yield "complete -F _marketprism marketprism"


def _values(name: str, verb: argparse.ArgumentParser) -> Iterator[str]:
    """What may follow each option that takes a value: one of its choices, or a file."""
    for action in verb._actions:
        if action.option_strings and action.nargs != 0:
            options = "|".join(f"{name}/{option}" for option in action.option_strings)
            yield f"        {options}) {_offer('' if action.choices else '-f', _choices(action))} ;;"


def _offer(files: str, words: list[str]) -> str:
    return f"""mapfile -t COMPREPLY < <(compgen {files} -W '{" ".join(words)}' -- "$word")"""


def _head(name: str, section: int, about: str) -> Iterator[str]:
    yield f'.TH {name.upper()} {section} "" "MarketPrism {__version__}" MarketPrism'
    yield f".SH NAME\n{_plain(name)} \\- {about}"


def _list(title: str, entries: dict[str, str]) -> Iterator[str]:
    yield f".SH {title}"
    for name, text in entries.items():
        yield f".TP\n.B {_plain(name)}\n{_plain(text)}"


def _verbs() -> dict[str, argparse.ArgumentParser]:
    (verbs,) = (a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(verbs.choices)


def _usage(name: str, verb: argparse.ArgumentParser) -> str:
    return " ".join([name, *(_name(action) for action in _told(verb) if not action.option_strings)])


def _told(verb: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in verb._actions if not isinstance(action, argparse._HelpAction)]


def _spelled(action: argparse.Action) -> str:
    if not action.option_strings:
        return _name(action)
    value = "" if action.nargs == 0 else f" {_name(action)}"
    return ", ".join(action.option_strings) + value


def _name(action: argparse.Action) -> str:
    metavar = action.metavar if isinstance(action.metavar, str) else None
    return metavar or action.dest.upper()


def _help(action: argparse.Action) -> str:
    text = _sentence(action.help or "")
    return f"{text} One of: {', '.join(_choices(action))}.".strip() if action.choices else text


def _choices(action: argparse.Action) -> list[str]:
    return [str(choice) for choice in action.choices or ()]


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}." if text and not text.endswith(".") else text


def _plain(text: str) -> str:
    """As roff: a minus is no hyphen, a line begins with no dot, code marks are dropped."""
    text = (
        re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text)
        .replace("`", "")
        .replace("\\", "\\e")
        .replace("-", "\\-")
    )
    return re.sub(r"^([.'])", r"\\&\1", text, flags=re.MULTILINE)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
