"""Lease on the run of one spec, for stores on a server: an experiment tag that its holder renews.

Each process writes its own tag, so that none overwrites another's. A process first writes its tag and then
reads the others: of two simultaneous processes at least one sees the other. A holder is considered dead if
its tag does not change for ``SECONDS``, by the clock of the process that reads it (clocks of different
machines are never compared), or if its process on this machine no longer exists. A holder that could not
renew its tag for two thirds of that time checks for other holders before it continues to write.
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
    """Another process has the lease."""


class LeaseLost(Exception):
    """Another process took over the run, because the lease could not be renewed in time."""


class Lease:
    """The lease on the runs of ``spec_id``; a thread renews it inside the block.

    Entering raises :class:`RunHeldElsewhere` if another process has the lease. ``gone`` is the ``holder`` of
    a lease whose process is known to be dead, so its expiry is not awaited. ``patience`` is the time in
    seconds to wait for a live holder to release the lease.
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
        self._released = threading.Event()
        self._renewer = threading.Thread(target=self._renew_until_released, daemon=True)

    def __enter__(self) -> Lease:
        self._renew()
        self._renewer.start()
        try:
            if not self._acquire():
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
        """Raise :class:`LeaseLost` if the tag was not renewed in time and another process has the lease."""
        if time.monotonic() - self._renewed > self._seconds * 2 / 3:
            self._renew()
            if self._others():
                raise LeaseLost("the store could not be reached, and another process took over the run")

    def _acquire(self) -> bool:
        """Wait for the lease; returns whether this process has it.

        If several processes wait for a dead holder, the first by name acquires the lease.
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
        values = {
            key.removeprefix(self._prefix): value
            for key, value in tags.items()
            if key.startswith(self._prefix)
        }
        return {holder: value for holder, value in values.items() if holder != self.holder}

    def _renew(self) -> None:
        started = time.monotonic()
        self._count += 1
        self._client.set_experiment_tag(
            self._experiment_id, self._prefix + self.holder, f"{self._state} {self._count}"
        )
        self._renewed = started

    def _renew_until_released(self) -> None:
        from mlflow.exceptions import MlflowException

        while not self._released.wait(self._seconds / 6):
            try:
                self._renew()
            except MlflowException:
                continue  # check() raises if renewals fail for too long

    def _release(self) -> None:
        self._released.set()
        self._renewer.join(self._seconds)  # an unfinished renewal would write the tag again
        self._delete(self.holder)

    def _delete(self, holder: str) -> None:
        from mlflow.exceptions import MlflowException

        # Another process deleted the tag, or the store is unreachable: then the lease expires.
        with contextlib.suppress(MlflowException):
            self._client.delete_experiment_tag(self._experiment_id, self._prefix + holder)


def is_held(client: MlflowClient, experiment_id: str, spec_id: str, holder: str) -> bool:
    """Whether ``holder`` has not yet released its lease on ``spec_id``."""
    return f"lease.{spec_id}.{holder}" in client.get_experiment(experiment_id).tags


def held_specs(client: MlflowClient, experiment_id: str) -> set[str]:
    """Spec ids that are leased, without waiting: dead holders on other machines are included."""
    tags = client.get_experiment(experiment_id).tags
    holders = [(key.removeprefix("lease."), value) for key, value in tags.items() if key.startswith("lease.")]
    leased = [key.partition(".") for key, value in holders if value.startswith(_HOLDING)]
    return {spec_id for spec_id, _, holder in leased if not _is_dead(holder)}


def _is_dead(holder: str) -> bool:
    """Whether ``holder`` was a process of this machine and no longer exists."""
    machine, pid, _ = holder.split("-")
    return machine == _machine() and not psutil.pid_exists(int(pid))


@cache
def _machine() -> str:
    """Eight hex digits that identify this machine, its boot, and its process namespace."""
    parts = [str(uuid.getnode())]
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        with contextlib.suppress(OSError):
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text())
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:8]
