"""Errors caused by user input: they end with one clear line and exit code 2, never with a traceback.

The attribute ``exit_code`` of an exception class is the exit code of a process that it ends. Each package
has such classes of its own, and none imports another's.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterable

FAILED, BAD_INPUT, DIVERGED = 1, 2, 3  # exit codes of a run's process


# All between :// and @ is a secret: a token has no colon. Where a colon comes first, a password may contain
# an unescaped / or @, so the match extends to the last @ of the word.
_USER = re.compile(r"(\w://)(?:[^\s/?#@:]*:\S*|[^\s/?#]*)@")
# A value extends to the next & or space; closing quotes and punctuation of the sentence around it are kept.
_QUERY = re.compile(
    r"([?&#][\w.-]*(?:token|key|password|secret)=)[^&\s]+?(?=['\"]?[;,.:)\]}]*(?:[&\s]|$))", re.IGNORECASE
)


def masked(text: str) -> str:
    """``text`` with ``***`` for the user part of every URI, and for tokens, keys and passwords of its query.

    ``bitrank_analysis`` has its own copy: packages import no sibling.
    """
    return _QUERY.sub(r"\1***", _USER.sub(r"\1***@", text))


def masked_uri(uri: str) -> str:
    """:func:`masked` for a text that is one URI as a whole: spaces in it are part of the secret too."""
    return masked(re.sub(r"\s", "%20", uri))


_DISK_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file is larger than the limit of this process or file system",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EIO: "the disk reports an input/output error",
}
_FULL = tuple(_DISK_ERRORS[code] for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
# Messages about a disk in errors of libraries' own classes.
_DISK_TEXTS = {
    "database or disk is full": "the disk is full",
    "No space left on device": "the disk is full",
    "File too large": "the file is larger than the limit of this process or file system",
    "attempt to write a readonly database": "the disk is read-only",
    "Read-only file system": "the disk is read-only",
    "disk I/O error": "the disk reports an input/output error",
}
_WITH_DISK_TEXTS = {"sqlite3", "sqlalchemy", "mlflow", "safetensors", "pyarrow"}


def disk_problem(error: BaseException) -> str | None:
    """The problem of a disk that caused ``error``, in one clause; None if the cause is another."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _DISK_ERRORS:
            place = f" ({os.fsdecode(seen.filename)})" if isinstance(seen.filename, str | bytes) else ""
            return _DISK_ERRORS[seen.errno] + place
        if type(seen).__module__.partition(".")[0] in _WITH_DISK_TEXTS:
            for text, meaning in _DISK_TEXTS.items():
                if text in str(seen):
                    return meaning
        seen = seen.__cause__ or seen.__context__
    return None


def is_full_disk(error: BaseException) -> bool:
    """Whether the cause of ``error`` is a disk, a quota or a file size limit without space for more."""
    problem = disk_problem(error)
    return problem is not None and problem.startswith(_FULL)


class UserError(ValueError):
    """A request that cannot be fulfilled; the message contains expected, got, and what to do."""

    exit_code = BAD_INPUT


def exit_code_of(error: BaseException) -> int:
    """The exit code of a process that ``error`` ends."""
    return int(getattr(error, "exit_code", FAILED))


def is_user_error(error: BaseException) -> bool:
    """Whether ``error`` is caused by user input."""
    return isinstance(error, ValueError) and exit_code_of(error) == BAD_INPUT


def shortened(value: object, most: int = 60) -> str:
    """``value`` for a message: its ``repr``, cut when it is long."""
    try:
        text = repr(value)
    except ValueError:  # Python does not print whole numbers of more than 4,300 digits
        text = "a number of more than 4,300 digits"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def first_line(error: Exception) -> str:
    """The first line of the message of ``error``, after the name of a class that says more than a message."""
    line = (str(error).strip().splitlines() or [""])[0]
    is_plain = line and isinstance(error, OSError | ValueError)
    return line if is_plain else f"{type(error).__name__}: {line}".removesuffix(": ")


def unknown(kind: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
    """The error for a name that is not among ``known``, with the nearest that are."""
    names = list(known)
    near = difflib.get_close_matches(name[:200], names, n=3, cutoff=0.4)
    listed = (
        f"nearest: {', '.join(near)}; all: {', '.join(names)}"
        if near
        else f"expected one of {', '.join(names)}"
    )
    return UserError(f"unknown {kind} {shortened(name)}; {listed}{hint}")
