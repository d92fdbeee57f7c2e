"""Options shared by several commands, and the specs that they select."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bitrank.cli.arguments import comma_separated, file_path, location, seeds
from bitrank.cli.help import list_names, tasks
from bitrank.cli.settings import OF_MATRIX, parse_field, parsed_settings, with_options
from bitrank.errors import UserError
from bitrank.spec.configs import CONFIGS, DEFAULT_CONFIGS
from bitrank.spec.fields import OneOf, about_of, first, hints_of, limits_of
from bitrank.spec.make_spec import SETTABLE
from bitrank.spec.matrix import matrix
from bitrank.spec.profiles import PROFILES, find_profile
from bitrank.spec.run_spec import FILE_OPTIONS, RunSpec

_WITH_CHOICES = [name for name, hint in hints_of(RunSpec).items() if first(hint, OneOf) is not None]
JOBS = "parallel runs (default: as many runs as cores and memory allow; one at a time where they share a GPU)"
TASK_OPTIONS = ("data", "kind", *FILE_OPTIONS)  # the fields of add_task_options
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
        default=list(DEFAULT_CONFIGS),
        help=f"comma-separated, of {','.join(CONFIGS)} (default: {','.join(DEFAULT_CONFIGS)})",
    )
    chosen = parser.add_argument(
        "--tasks", type=comma_separated, help="comma-separated (default: the profile's), files or names"
    )
    list_names(chosen, tasks)
    parser.add_argument("--seeds", type=seeds, help="comma-separated whole numbers (default: the profile's)")


def add_places(parser: argparse.ArgumentParser, content: str) -> None:
    """Add ``--store`` and ``--results``, the folder for ``content``."""
    parser.add_argument(
        "--store", type=location, default="runs", help="folder or MLflow URI of the runs (default: runs)"
    )
    parser.add_argument(
        "--results",
        type=file_path,
        default=Path("results"),
        help=f"folder for {content} (default: results)",
    )


def add_locations(parser: argparse.ArgumentParser) -> None:
    add_places(parser, "JSON and CSV")
    parser.add_argument("--force", action="store_true", help="repeat complete runs")
    parser.add_argument("--wandb", action="store_true", help=WANDB)


def add_settings(parser: argparse.ArgumentParser) -> None:
    add_field(parser, "--quant-backend", "quant_backend")
    add_field(parser, "--quantizer", "quantizer")
    add_field(parser, "--memory-limit", "memory_limit", metavar="BYTES")
    parser.add_argument(
        "--mps-safe",
        action="store_true",
        default=None,
        help="split batches so that no tensor exceeds 2³² bytes (always on MPS)",
    )
    add_field(parser, "--processes", "processes", metavar="N")
    parser.add_argument(
        "--shard",
        action="store_true",
        default=None,
        help="with --processes: shard the 16-bit base over the processes (FSDP)",
    )
    add_task_options(parser)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"any of {', '.join(SETTABLE)}"
    )


def add_task_options(parser: argparse.ArgumentParser) -> None:
    """Options of a task: its folder and kind, and those of a task that is the user's own file."""
    add_field(parser, "--data", "data", metavar="FOLDER")
    add_field(parser, "--kind", "kind", metavar="KIND")
    add_field(parser, "--text-column", "text_column", metavar="NAME")
    add_field(parser, "--label-column", "label_column", metavar="NAME")
    add_field(parser, "--test-file", "test_file", metavar="FILE")


class _FieldAction(argparse.Action):
    """An option that sets a field of the spec.

    The help text is derived from the field when it is printed: some registries take seconds to import.
    """

    @property
    def help(self) -> str:  # type: ignore[override]
        about = about_of(RunSpec, self.dest)
        limits = limits_of(hints_of(RunSpec)[self.dest]) if self.dest in _WITH_CHOICES else ""
        unit = f", in {about.unit}" if about.unit else ""
        return (about.text + unit + (f"; {limits}" if limits else "")).replace("%", "%%")

    @help.setter
    def help(self, text: str | None) -> None:
        """Ignore the value that argparse sets."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)


def add_field(parser: argparse.ArgumentParser, option: str, field: str, metavar: str | None = None) -> None:
    """Add an option for a field of the spec, with the field's validation and meaning."""

    def read(text: str) -> Any:
        try:
            return parse_field(field, text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser.add_argument(option, dest=field, type=read, metavar=metavar, action=_FieldAction)


def given_settings(arguments: argparse.Namespace, refused: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of the spec that options and ``--set`` give, except those in ``refused``."""
    keys = (
        "quant_backend",
        "quantizer",
        "memory_limit",
        "model",
        "epochs",
        "steps",
        "batch_size",
        "plan",
        "seed",
        "mps_safe",
        "processes",
        "shard",
        *TASK_OPTIONS,
    )
    options = {key: getattr(arguments, key, None) for key in keys}
    return with_options(parsed_settings(arguments.set, refused), options)


def chosen_specs(arguments: argparse.Namespace) -> list[RunSpec]:
    profile = find_profile(arguments.profile)
    tasks = arguments.tasks or list(profile.tasks)
    chosen = arguments.seeds if arguments.seeds is not None else list(profile.seeds)
    return matrix(profile, arguments.configs, tasks, chosen, given_settings(arguments, OF_MATRIX))
