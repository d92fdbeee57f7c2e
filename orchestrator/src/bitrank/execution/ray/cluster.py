"""A Ray cluster: its machines, the resources that a run needs, and runs as Ray tasks.

Imported only for ``--executor ray``. Ray places runs and reports lost workers. Its own retries are disabled:
an interrupted run is continued and not restarted.
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
_OBJECT_STORE_BYTES = 128 * 2**20  # enough, because messages of runs are small
_IMPORT_FAILURE = "failed to import"  # part of Ray's message if a worker lacks the module of its task


class Cluster:
    """The cluster at ``address``; without an address a local one, which ends with this process.

    A local cluster uses only the loopback interface. Raises :class:`UserError` if it does not answer.
    """

    def __init__(self, address: str | None) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if address is None:
            # Ray reads this at import; "0" binds every server of a local Ray to 127.0.0.1.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        import ray

        self._ray = ray
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        try:
            if address is None:
                print(
                    "no --ray-address and no RAY_ADDRESS: starting Ray on this machine alone", file=sys.stderr
                )
                ray.init(
                    address="local", include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES, **quiet
                )
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
        """Submit a run, which waits for a machine with free resources; returns its handle."""
        return self._work.options(num_cpus=need["CPU"], num_gpus=need["GPU"], memory=need["memory"]).remote(
            order
        )

    def wait(self, handles: Sequence[Any], seconds: float) -> None:
        """Wait until one of the runs has a message, at most ``seconds``."""
        self._ray.wait(list(handles), num_returns=1, timeout=seconds, fetch_local=False)

    def messages(self, handle: Any) -> list[dict[str, Any]]:
        """Messages of a run since the last call (see :func:`bitrank.execution.ray.worker.work`).

        A last message with ``lost`` gives the reason why the worker is lost, and ``dead`` whether its process
        has certainly ended.
        """
        received: list[dict[str, Any]] = []
        while self._ray.wait([handle], timeout=0)[0]:
            try:
                received.append(self._ray.get(next(handle)))
            except StopIteration:
                return [*received, {"lost": "it was stopped", "dead": True}]
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
        cause: Any = getattr(error, "cause", None) or error  # the exception in the worker's own code
        foreign = _IMPORT_FAILURE in str(error)
        hint = "; install the same checkout of bitrank on every machine" if foreign else ""
        return {"lost": f"{type(cause).__name__}: {_last_line(cause)}{hint}", "dead": True}

    def cancel(self, handle: Any, force: bool = False) -> None:
        """Request a run to stop and to close its record; ``force`` kills its worker."""
        self._ray.cancel(handle, force=force)

    def leave(self) -> None:
        self._ray.shutdown()


def _hint(address: str | None) -> str:
    """Advice on tokens: Ray reports a missing cluster and a missing token by the same error."""
    if address is None or os.environ.get("RAY_AUTH_MODE"):
        return ""
    return (
        "; if it was started with a token (ray start prints it), copy the token to this machine and set "
        "RAY_AUTH_MODE=token"
    )


def needed(spec: RunSpec, machines: Sequence[Resources]) -> Resources:
    """Resources that a run needs on one machine: ``CPU`` cores, ``GPU`` devices, ``memory`` in bytes.

    A run without ``threads`` needs as many cores as the smallest machine has. A run that may use a GPU needs
    one per process if the cluster has GPUs. Raises :class:`UserError` if no machine has enough resources.
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
            "Add a machine, or reduce the need with --set threads=1, --processes, --memory-limit or "
            "--set device=cpu"
        )
    return need


def capacity(need: Resources, machines: Sequence[Resources]) -> int:
    """The number of parallel runs with resources ``need`` on ``machines``."""
    return sum(
        int(min(machine.get(kind, 0) / amount for kind, amount in need.items() if amount))
        for machine in machines
    )


def _format_resources(resources: Resources) -> str:
    memory = resources.get("memory", 0) / 2**30
    return f"{resources.get('CPU', 0):.0f} cores, {resources.get('GPU', 0):.0f} GPUs, {memory:.1f} GiB"


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[-1][:300]
