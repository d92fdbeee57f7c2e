"""A Ray cluster: its machines, what a run needs of one, and runs as tasks on them. Imported only when it is
asked for.

Ray places runs and tells of lost workers. It never repeats a task by itself: a run under way is continued,
not begun again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from bitrank.errors import UserError
from bitrank.execution.local import RUN_BYTES
from bitrank.execution.ray.worker import work
from bitrank.spec.run_spec import RunSpec

Resources = Mapping[str, float]
_OBJECTS = 128 * 2**20  # bytes; what runs tell is small
_FOREIGN = "failed to import"  # how Ray begins to say that a worker lacks the module of its task


class Cluster:
    """The cluster at ``address``, or, if there is none, one on this machine's loopback interface that ends
    with this process.

    Raises :class:`UserError` when it does not answer.
    """

    def __init__(self, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is None:
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = (
                "0"  # read at import: every server of a local Ray on 127.0.0.1
            )
        import ray

        self._ray = ray
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if address is None:
                print(
                    "no --ray-address and no RAY_ADDRESS: starting Ray on this machine alone", file=sys.stderr
                )
                ray.init(address="local", include_dashboard=False, object_store_memory=_OBJECTS, **quiet)
            else:
                ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            where = f"the Ray cluster at {address}" if address else "Ray on this machine"
            raise UserError(
                f"{where} does not answer: {str(error).splitlines()[0][:300]}{_hint(address)}"
            ) from error
        self.machines: list[Resources] = [
            node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")
        ]
        self._work = ray.remote(max_retries=0, num_returns="streaming")(work)

    def start(self, order: dict[str, Any], need: Resources) -> Any:
        """Hand a run out; it waits for a machine with room. The handle is for :meth:`hear` and
        :meth:`cancel`.
        """
        return self._work.options(num_cpus=need["CPU"], num_gpus=need["GPU"], memory=need["memory"]).remote(
            order
        )

    def wait(self, handles: Sequence[Any], seconds: float) -> None:
        """Until one of the runs has something to tell, ``seconds`` at most."""
        self._ray.wait(list(handles), num_returns=1, timeout=seconds, fetch_local=False)

    def messages(self, handle: Any) -> list[dict[str, Any]]:
        """What a run has told since (see :func:`bitrank.execution.ray.worker.work`). ``lost`` as the last
        says why its worker will tell no more, and ``dead`` whether it is sure that it does no more either."""
        received: list[dict[str, Any]] = []
        while self._ray.wait([handle], timeout=0)[0]:
            try:
                received.append(self._ray.get(next(handle)))
            except StopIteration:
                return [*received, {"lost": "it was told to stop", "dead": True}]
            except self._ray.exceptions.RayError as error:
                return [*received, self._loss(error)]
            if "ended" in received[-1]:
                break
        return received

    def _loss(self, error: Exception) -> dict[str, Any]:
        kinds = self._ray.exceptions
        if not isinstance(error, kinds.RayTaskError):
            dead = isinstance(error, kinds.WorkerCrashedError | kinds.OutOfMemoryError)
            return {"lost": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}", "dead": dead}
        cause: Any = getattr(error, "cause", None) or error  # what broke in the worker's own code
        hint = "; install the same checkout of bitrank on every machine" if _FOREIGN in str(error) else ""
        return {"lost": f"{type(cause).__name__}: {_last_line(cause)}{hint}", "dead": True}

    def cancel(self, handle: Any, force: bool = False) -> None:
        """Ask a run to stop and to close its record; with ``force`` its worker is killed."""
        self._ray.cancel(handle, force=force)

    def leave(self) -> None:
        self._ray.shutdown()


def _hint(address: str | None) -> str:
    """Ray says the same of a cluster that is not there and of one that wants a token; `ray start` of today
    makes one by default.
    """
    if address is None or os.environ.get("RAY_AUTH_MODE"):
        return ""
    return "; if it was started with a token (ray start says so), copy that to this machine and set RAY_AUTH_MODE=token"


def needed(spec: RunSpec, machines: Sequence[Resources]) -> Resources:
    """What a run takes of a machine: ``CPU`` cores, ``GPU`` devices, ``memory`` in bytes.

    A run that does not say how many threads it has takes as many cores as the smallest machine has; one that
    may use a GPU takes one for each of its processes where there are any. Raises :class:`UserError` when no
    machine has that much.
    """
    cores = min((machine["CPU"] for machine in machines), default=0)
    wants_gpu = spec.device == "cuda" or (
        spec.device == "auto" and any(machine.get("GPU") for machine in machines)
    )
    need = {
        "CPU": float(spec.threads * spec.processes if spec.threads else cores),
        "GPU": float(spec.processes if wants_gpu else 0),
        "memory": float((spec.memory_limit or RUN_BYTES) * spec.processes),
    }
    if not capacity(need, machines):
        raise UserError(
            f"{spec.run_name} needs {_format_resources(need)} of one machine, and the cluster's are: "
            f"{'; '.join(map(_format_resources, machines)) or 'none'}. "
            "Add a machine, or ask for less with --set threads=1, --processes, --memory-limit or --set device=cpu"
        )
    return need


def capacity(need: Resources, machines: Sequence[Resources]) -> int:
    """How many runs that each need ``need`` the machines carry at once."""
    return sum(
        int(min(machine.get(kind, 0) / amount for kind, amount in need.items() if amount))
        for machine in machines
    )


def _format_resources(resources: Resources) -> str:
    return f"{resources.get('CPU', 0):.0f} cores, {resources.get('GPU', 0):.0f} GPUs, {resources.get('memory', 0) / 2**30:.1f} GiB"


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[-1][:300]
