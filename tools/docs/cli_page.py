"""``reference/cli.md``: every command with its options, generated from the parser."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from cells import table
from find import find


def cli_page() -> str:
    """The page as Markdown."""
    parser = find_parser()
    commands, summaries = _commands(parser)
    links = [(f"[`bitrank {name}`](#bitrank-{name})", summaries[name]) for name in commands]
    lines = [
        "# Command line",
        "",
        "This page is generated from the argument parser (`make reference` renews it).",
        "`bitrank COMMAND --help` prints the same text.",
        "",
        parser.description or "",
        "",
        *table(("command", "purpose"), links),
        "Exit codes: 0 when everything requested is done, 1 when something failed, 2 for bad input (one",
        "message: expected, got, what to do), 128 + *n* when signal *n* stopped the command.",
        "",
    ]
    for name, command in commands.items():
        lines += _section(name, command)
    return "\n".join(lines)


def find_parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    build: Callable[[], argparse.ArgumentParser] = find("bitrank.cli.main:_parser")
    return build()


def _commands(parser: argparse.ArgumentParser) -> tuple[dict[str, argparse.ArgumentParser], dict[str, str]]:
    """Sub-parsers and one-line summaries by command name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
            return dict(action.choices), summaries
    raise LookupError("the parser has no commands; expected sub-parsers")


def _section(name: str, parser: argparse.ArgumentParser) -> list[str]:
    find("bitrank.cli.help:complete")(parser)
    positional = [a for a in parser._actions if not a.option_strings]
    optional = [a for a in parser._actions if a.option_strings and a.dest != "help"]
    lines = [f"## bitrank {name}", "", _sentence(parser.description or ""), ""]
    if positional:
        rows = [(f"`{a.metavar or a.dest}`", _help(parser, a)) for a in positional]
        lines += table(("argument", "meaning"), rows)
    if optional:
        rows = [(f"`{_option(a)}`", _help(parser, a)) for a in optional]
        lines += table(("option", "meaning"), rows)
    if parser.epilog:
        lines += ["```text", parser.epilog.strip(), "```", ""]
    return lines


def _option(action: argparse.Action) -> str:
    names = ", ".join(action.option_strings)
    if action.nargs == 0:
        return names
    choices = f"{{{','.join(str(choice) for choice in action.choices)}}}" if action.choices else ""
    return f"{names} {action.metavar or choices or action.dest.upper()}"


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """The help text with placeholders such as ``%(default)s`` filled in, as argparse prints it."""
    text = parser._get_formatter()._expand_help(action) if action.help else ""
    required = action.option_strings and action.required
    return text + (" **Required.**" if required else "")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
