"""Tokens of services from a file ``.env`` in the working folder, for users who keep them out of the shell."""

from __future__ import annotations

import os
from pathlib import Path

from dotenv import dotenv_values

from bitrank.errors import UserError

# Only secrets and names of services: a file that comes with somebody's checkout changes nothing else.
NAMES = (
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "MLFLOW_TRACKING_USERNAME",
    "WANDB_API_KEY",
    "WANDB_ENTITY",
    "WANDB_MODE",
    "WANDB_PROJECT",
)


def read_env_file(folder: Path) -> None:
    """Set the variables of :data:`NAMES` that ``folder/.env`` has and the environment does not.

    Processes that are started later inherit them. Raises
    :class:`UserError` for a file that cannot be read.
    """
    path = folder / ".env"
    try:
        found = dotenv_values(path, interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}; mend it or move it away") from None
    for name in NAMES:
        if value := found.get(name):
            os.environ.setdefault(name, value)
