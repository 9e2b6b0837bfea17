"""How is an atlas made on many machines? Ray hands each job to a worker, and this process writes what comes back.

Workers are Ray tasks of one CPU or one graphics card each, and call what the local engine calls (`job.run`). The
network is put into Ray's object store once; each worker process loads it once, for all of its jobs.

This process alone writes: the workers then need no access to the atlas, no two processes ever write to one array,
and the digest that says "this is whole" is made by whoever wrote it. docs/scale.md says how many workers that is
enough for.

Ray's own retries are not used: they would go on for ever where its memory monitor ends a worker, and such a job is
to be halved. What Ray sends between its processes are pickles: a cluster is to be trusted as its machines are.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib.util
import logging
import os
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from oip_torch.atlas.job import OUT_OF_MEMORY, Engine, Job, Made, Outcome, run
from oip_torch.base.checks import shown
from oip_torch.base.errors import InputError, OipError
from oip_torch.base.messages import one_line
from oip_torch.base.platform import free_bytes, matmul_precision
from oip_torch.base.temporary import temporary_folder
from oip_torch.network.model import FeatureModel
from oip_torch.search.plan import MemoryLimitError

__all__ = ["LostWorkerError", "ray_engine", "session"]

_TRIES = 3  # of a job whose worker dies each time
_WAKE_SECONDS = 0.5
_CONNECT_SECONDS = 5.0
_FOLDER_NAME = 32  # characters at most
_LONGEST_FOLDER = 40  # characters: Ray's sockets lie 60 deeper, and may have 107 in all
_QUIET = {  # Ray reads them when it is imported or started
    "RAY_USAGE_STATS_ENABLED": "0",  # it would report to its makers
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # a worker's death fills a screen; we say it in a line
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else it warns of a change to come
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # under `uv run` each worker would install an environment of its own
}

logger = logging.getLogger("oip_torch")


class LostWorkerError(OipError):
    """What came of a job whose worker died each time that it was tried."""


def ray_engine(address: str | None = None) -> Engine:
    """The engine that has its work done by Ray's workers.

    Args:
        address: of a cluster that is there, "auto" or "HOST:PORT". None: the one that the caller has called `ray.init`
            for; or else one is started on this machine, with as many workers as torch has threads here, or with each
            card, and stopped in the end.

    Raises:
        InputError: Ray is not installed; nothing can be reached at the address.
    """
    if importlib.util.find_spec("ray") is None:
        raise InputError(
            'engine "ray" needs Ray, which is not installed: run `pip install "oip_torch[ray]"`, or use engine "local"'
        )
    if address is not None:
        _check(address)
        with session(address):  # what cannot be reached is told before anything is written
            pass
    return functools.partial(_on_ray, address)


def _on_ray(
    address: str | None, model: FeatureModel, jobs: Iterator[Job], watch: Callable[[int], None]
) -> Iterator[Outcome]:
    """The engine itself. Progress is told of by whoever takes the outcomes: a job lasts some seconds."""
    with session(address) as ray:
        on_cards = model.device.type == "cuda"
        kind = "GPU" if on_cards else "CPU"
        work = ray.remote(_work).options(num_cpus=1, num_gpus=int(on_cards), max_retries=0)
        if not on_cards and (cards := int(ray.cluster_resources().get("GPU", 0))):
            logger.warning("note: the cluster's GPUs (%d) stay idle, since the network is on the CPU", cards)
        parcel = [_put(ray, model)]  # in a list Ray hands the reference over, and not what it is of
        again: list[Job] = []
        deaths: Counter[Job] = Counter()
        pending: dict[Any, Job] = {}
        try:
            while True:
                workers, of_a_node = _workers(ray, kind)
                # Some more than there are workers, so that none waits while the result of its last one is written.
                while len(pending) < workers + workers // 4 + 1:
                    job = again.pop() if again else next(jobs, None)
                    if job is None:
                        break
                    pending[work.remote(parcel, job, of_a_node)] = job
                if not pending:
                    return
                ready, _ = ray.wait(list(pending), timeout=_WAKE_SECONDS)  # one at a time: results are large
                for ref in ready:
                    job = pending.pop(ref)
                    found = _result(ray, ref)
                    del ref
                    if isinstance(found, LostWorkerError):
                        deaths[job] += 1
                        logger.warning("note: a Ray worker died over %s (%d of %d)", _name(job), deaths[job], _TRIES)
                        if deaths[job] < _TRIES:
                            again.append(job)
                            continue
                    yield job, found
        finally:
            for ref in pending:
                with contextlib.suppress(Exception):  # the cluster may have gone, too
                    ray.cancel(ref, force=True)


def _result(ray: Any, ref: Any) -> Made | OipError:
    """What came of a job: an error in its place where it did not fit, or where its worker died."""
    lost = ray.exceptions
    try:
        found: Made | str = ray.get(ref)
    except lost.OutOfMemoryError as error:  # its monitor ends what takes the last of a machine's memory
        return MemoryLimitError(one_line(error))
    except lost.RayTaskError as error:
        cause = getattr(error, "cause", error)
        if isinstance(cause, OipError):
            raise cause from None
        raise OipError(
            f"a Ray worker failed: {type(cause).__name__}: {one_line(cause)}; expected oip_torch, and what the "
            "network is made of, in the same versions on every machine"
        ) from error
    except (
        lost.WorkerCrashedError, lost.NodeDiedError, lost.LocalRayletDiedError, lost.ObjectLostError,
    ) as error:  # fmt: skip
        return LostWorkerError(one_line(error))
    except lost.RayError as error:
        raise OipError(f"Ray could not go on: {one_line(error)}; what was made stays") from error
    return MemoryLimitError(found) if isinstance(found, str) else found


def _name(job: Job) -> str:
    return f"{job.layer!r}, maps {job.maps[0]} to {job.maps[-1]}, starts {job.starts[0]} to {job.starts[-1]}"


# In the workers


def _work(parcel: list[Any], job: Job, of_a_node: int) -> Made | str:
    """A task: the images of a job, or why it does not fit. `of_a_node`: how many workers share a machine at most."""
    model = _held(parcel[0])
    memory = None if model.device.type == "cuda" else free_bytes(model.device) // (2 * of_a_node)
    try:
        with matmul_precision(tf32=False):
            return run(job, model, memory=memory)
    except OUT_OF_MEMORY as error:
        return one_line(error)


@functools.lru_cache(maxsize=1)
def _held(ref: Any) -> FeatureModel:
    """The network, which a worker process loads once."""
    import ray

    model: FeatureModel = ray.get(ref)
    if ray.get_gpu_ids():
        return model.to("cuda")  # the only one that Ray lets it see
    torch.set_num_threads(1)
    return model


def _put(ray: Any, model: FeatureModel) -> Any:
    """The network into Ray's object store.

    torch pickles a graph as Python code, and traces that anew: nodes then have other names, which is what we know
    layers by. So the graph goes as it is.
    """
    here = copy.deepcopy(model).cpu()
    kind = type(here.graph_module)
    ray.util.register_serializer(kind, serializer=_taken_apart, deserializer=_put_together)
    try:
        return ray.put(here)
    finally:
        ray.util.deregister_serializer(kind)


def _taken_apart(module: fx.GraphModule) -> tuple[nn.Module, fx.Graph]:
    root = nn.Module()
    root._modules, root._parameters, root._buffers = module._modules, module._parameters, module._buffers
    return root, copy.deepcopy(module.graph)  # the copy belongs to no module


def _put_together(parts: tuple[nn.Module, fx.Graph]) -> fx.GraphModule:
    return fx.GraphModule(*parts).eval()


# The cluster


def _check(address: str) -> None:
    """That it is an address, and where it names a host and a port, that somebody answers there."""
    host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
    if address == "auto":
        return
    if not host or not port.isdigit() or "/" in address:
        raise InputError(f"address is {shown(address)}: expected auto, or HOST:PORT as `ray start --head` prints it")
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"no Ray cluster answers at {address} ({one_line(error)}): expected what `ray start --head` has printed"
        ) from None


@contextlib.contextmanager
def session(address: str | None) -> Iterator[Any]:
    """The module `ray`, connected. In the end a cluster that was started here is stopped, and no other one."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    os.environ["RAY_USAGE_STATS_ENABLED"] = _QUIET["RAY_USAGE_STATS_ENABLED"]
    import ray

    if ray.is_initialized():
        if address is not None:
            raise InputError(f"Ray is connected already: expected no address, or ray.shutdown() before {address!r}")
        yield ray
        return
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    folder = None
    with contextlib.ExitStack() as stack:
        if address is None:
            folder = str(stack.enter_context(_folder()))
            where: dict[str, Any] = {"address": "local", "num_cpus": torch.get_num_threads(), "_temp_dir": folder}
            where["include_dashboard"] = False
        else:
            where = {"address": address}
        stack.callback(ray.shutdown)  # of a cluster that was there, it only takes leave
        try:
            ray.init(**where, **quiet)
        except Exception as error:  # ConnectionError, RuntimeError of other versions, ValueError, and what gRPC has
            what = "cannot be started here" if address is None else f"cannot be reached at {address!r}"
            # Ray itself sends a token to no address but auto, and then says no more than that it cannot connect.
            token = address not in (None, "auto") and os.environ.get("RAY_AUTH_MODE") != "token"
            hint = (
                "; if it expects a token (InvalidAuthToken above), RAY_AUTH_MODE=token has to be set" if token else ""
            )
            raise InputError(
                f"a Ray cluster {what}: {one_line(error)}; expected one of this version of Ray ({ray.__version__}) and "
                f"of Python{hint}"
            ) from error
        try:
            yield ray
        except BaseException:
            if folder is not None:  # now, since Ray takes seconds to stop, which an interrupted command has not
                shutil.rmtree(folder, ignore_errors=True)
            raise


def _folder() -> contextlib.AbstractContextManager[Path]:
    """For what Ray writes while it runs; in /tmp where the usual place has a long name."""
    short = len(os.environ.get("TMPDIR") or "/tmp") + _FOLDER_NAME <= _LONGEST_FOLDER
    return temporary_folder("ray", None if short else Path("/tmp"))


def _workers(ray: Any, kind: str) -> tuple[int, int]:
    """How many workers the cluster has room for now, and how many a machine of it."""
    rooms = [int(node["Resources"].get(kind, 0)) for node in ray.nodes() if node["Alive"]]
    if not any(rooms):
        raise InputError(
            f"the Ray cluster has no {kind}, and the network is on {'a card' if kind == 'GPU' else 'the CPU'}: "
            f"expected a cluster with one, or the network on another device"
        )
    return sum(rooms), max(rooms)
