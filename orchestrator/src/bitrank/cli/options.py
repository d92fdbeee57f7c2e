"""Options that several commands share, and the specs that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bitrank.cli.help import list_names, overrides, tasks
from bitrank.spec.configs import CONFIGS
from bitrank.spec.parse import parse_bytes, parse_setting
from bitrank.spec.profiles import PROFILES, find_profile
from bitrank.spec.run_spec import SETTABLE, RunSpec, matrix

WANDB = "log to Weights & Biases too; key in WANDB_API_KEY, or WANDB_MODE=offline"


def add_command(commands: Any, name: str, about: str, shown: str, act: Any) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=about,
        epilog=shown,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(act=act)
    return parser


def add_selection(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--profile", default="laptop", help=f"{'; '.join(f'{p.name}: {p.about}' for p in PROFILES.values())}"
    )
    parser.add_argument(
        "--configs",
        type=comma_separated,
        default=list(CONFIGS),
        help=f"comma-separated (default: {','.join(CONFIGS)})",
    )
    chosen = parser.add_argument(
        "--tasks", type=comma_separated, help="comma-separated (default: the profile's), files or names"
    )
    list_names(chosen, tasks)
    parser.add_argument(
        "--seeds", type=_numbers, help="comma-separated whole numbers (default: the profile's)"
    )


def add_places(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--store", default="runs", help="folder or MLflow URI that keeps the runs (default: runs)"
    )
    parser.add_argument(
        "--results", type=Path, default=Path("results"), help="folder for JSON and CSV (default: results)"
    )
    parser.add_argument("--force", action="store_true", help="run again what is complete")
    parser.add_argument("--wandb", action="store_true", help=WANDB)


def add_settings(parser: argparse.ArgumentParser) -> None:
    backend = parser.add_argument(
        "--quant-backend", metavar="NAME", help="replace the low-bit formats of every plan"
    )
    list_names(backend, overrides)
    parser.add_argument(
        "--memory-limit",
        metavar="BYTES",
        help="keep each run's process under this, such as 1.5GiB, by smaller passes",
    )
    parser.add_argument(
        "--mps-safe",
        action="store_true",
        default=None,
        help="no tensor over 2³² bytes, by smaller passes (always so on MPS)",
    )
    parser.add_argument(
        "--processes", type=int, metavar="N", help="train each run in N processes, one GPU each (default: 1)"
    )
    parser.add_argument(
        "--shard",
        action="store_true",
        default=None,
        help="with --processes: a 16-bit base in slices, one a process (FSDP)",
    )
    parser.add_argument("--data", help="local folder with the hub task's data")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"any of {', '.join(SETTABLE)}"
    )


def comma_separated(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in comma_separated(text)]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected whole numbers like 0,1,2, got {text!r}") from None


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    keys = (
        "quant_backend",
        "data",
        "model",
        "epochs",
        "steps",
        "batch_size",
        "plan",
        "mps_safe",
        "processes",
        "shard",
    )
    given = {part: getattr(arguments, part) for part in keys if getattr(arguments, part, None) is not None}
    if arguments.memory_limit is not None:
        given["memory_limit"] = parse_bytes(arguments.memory_limit)
    return {**given, **dict(parse_setting(text) for text in arguments.set)}


def chosen_specs(arguments: argparse.Namespace) -> list[RunSpec]:
    profile = find_profile(arguments.profile)
    tasks = arguments.tasks or list(profile.tasks)
    seeds = arguments.seeds if arguments.seeds is not None else list(profile.seeds)
    return matrix(profile, arguments.configs, tasks, seeds, given_settings(arguments))
