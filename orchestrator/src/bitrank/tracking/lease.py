"""The right to write one spec's run, where no file lock reaches: a tag of the experiment that its holder
renews.

Each holder has a tag of its own, so that none overwrites another's. Whoever wants the lease writes its tag
first and reads the others then: of two at the same time at least one sees the other. A tag that stays the
same for ``SECONDS``, by the clock of whoever watches it, belongs to a holder that is gone; clocks of
different machines are never compared. So does one whose process is no more on this machine. A holder that
could not renew its tag for two thirds of that time looks whether another has come, before it writes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import uuid
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import psutil

from bitrank.errors import UserError

if TYPE_CHECKING:
    from mlflow import MlflowClient

SECONDS = 30.0
HELD_ELSEWHERE = "another bitrank process is running it"
_WAITING, _HOLDING = "waiting", "holding"


class RunHeldElsewhere(UserError):
    """Another process holds the lease."""


class LeaseLost(Exception):
    """The store could not be reached for so long that another took the run for abandoned."""


class Lease:
    """The lease on the runs of ``spec_id``, held inside the block and renewed by a thread. Entering raises
    :class:`RunHeldElsewhere`.

    ``gone`` is the ``holder`` of a lease whose process is known to be dead: it is not waited for.
    ``patience`` is how many seconds a living holder is given to let go.
    """

    def __init__(
        self,
        client: MlflowClient,
        experiment_id: str,
        spec_id: str,
        gone: str | None = None,
        patience: float = 0,
        seconds: float = SECONDS,
    ) -> None:
        self.holder = f"{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._client, self._experiment_id, self._seconds = client, experiment_id, seconds
        self._prefix, self._gone, self._patience = f"lease.{spec_id}.", gone, patience
        self._state, self._count, self._renewed = _WAITING, 0, 0.0
        self._over = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def __enter__(self) -> Lease:
        self._renew()
        self._keeper.start()
        try:
            if not self._take():
                raise RunHeldElsewhere(HELD_ELSEWHERE)
            self._state = _HOLDING
            self._renew()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._release()

    def check(self) -> None:
        """Raise :class:`LeaseLost` when the tag could not be renewed for too long and another has come."""
        if time.monotonic() - self._renewed > self._seconds * 2 / 3:
            self._renew()
            if self._others():
                raise LeaseLost("the store could not be reached, and another took the run over")

    def _take(self) -> bool:
        """Whether nobody else has it. Of several who wait for a holder that is gone, the first by name gets
        it.
        """
        deadline = time.monotonic() + self._patience
        for holder in self._others():
            if holder == self._gone or _is_dead(holder):
                self._delete(holder)
        while others := self._others():
            time.sleep(self._seconds)
            alive = {holder: value for holder, value in self._others().items() if others.get(holder) != value}
            for holder in others.keys() - alive.keys():
                self._delete(holder)
            if not any(value.startswith(_HOLDING) or holder < self.holder for holder, value in alive.items()):
                return True
            if time.monotonic() > deadline:
                return False
        return True

    def _others(self) -> dict[str, str]:
        tags = self._client.get_experiment(self._experiment_id).tags
        held = {
            key.removeprefix(self._prefix): value
            for key, value in tags.items()
            if key.startswith(self._prefix)
        }
        return {holder: value for holder, value in held.items() if holder != self.holder}

    def _renew(self) -> None:
        begun = time.monotonic()
        self._count += 1
        self._client.set_experiment_tag(
            self._experiment_id, self._prefix + self.holder, f"{self._state} {self._count}"
        )
        self._renewed = begun

    def _keep(self) -> None:
        from mlflow.exceptions import MlflowException

        while not self._over.wait(self._seconds / 6):
            try:
                self._renew()
            except MlflowException:
                continue  # check() tells when that has lasted too long

    def _release(self) -> None:
        self._over.set()
        self._keeper.join(self._seconds)  # a renewal under way would write the tag again
        self._delete(self.holder)

    def _delete(self, holder: str) -> None:
        from mlflow.exceptions import MlflowException

        with contextlib.suppress(
            MlflowException
        ):  # another has deleted it, or the store is gone: then it lapses
            self._client.delete_experiment_tag(self._experiment_id, self._prefix + holder)


def is_held(client: MlflowClient, experiment_id: str, spec_id: str, holder: str) -> bool:
    """Whether ``holder`` has not let go of its lease on ``spec_id`` yet."""
    return f"lease.{spec_id}.{holder}" in client.get_experiment(experiment_id).tags


def held_specs(client: MlflowClient, experiment_id: str) -> set[str]:
    """The spec ids whose lease somebody holds, as far as can be told without waiting: a holder that died on
    another machine counts until the next one takes over."""
    tags = client.get_experiment(experiment_id).tags
    holders = [(key.removeprefix("lease."), value) for key, value in tags.items() if key.startswith("lease.")]
    held = [key.partition(".") for key, value in holders if value.startswith(_HOLDING)]
    return {spec_id for spec_id, _, holder in held if not _is_dead(holder)}


def _is_dead(holder: str) -> bool:
    """Whether ``holder`` was a process of this machine, and is no more."""
    machine, pid, _ = holder.split("-")
    return machine == _machine() and not psutil.pid_exists(int(pid))


@cache
def _machine() -> str:
    """Eight hex digits of this machine since it was started, and of the processes that can be seen here."""
    parts = [str(uuid.getnode())]
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
