"""A connection to Ray: the cluster at an address, or a Ray of this machine's while it is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recbole_adv.errors import ConfigError
from recbole_adv.sweep.options import Options

_OBJECTS = 150 * 1024**2  # bytes; what travels is a plan
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the sweep, not a stage of it
}


@contextmanager
def connected(options: Options) -> Iterator[None]:
    """Ray is there inside: one that the process has already, the cluster's, or one of its own.

    Raises:
        ConfigError: if no cluster answers.
    """
    import ray

    mine, before = not ray.is_initialized(), dict(os.environ)
    os.environ.update({**_QUIET, **before})
    try:
        if mine and options.ray_address is not None:
            _join(options.ray_address)
        elif mine:
            _start(options)
        yield
    finally:
        if mine:
            ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def _join(address: str) -> None:
    import ray

    try:
        ray.init(address=address, logging_level="error", log_to_driver=False)
    except (ConnectionError, ValueError, RuntimeError) as error:
        detail = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"no Ray cluster answers at {address!r} ({detail}); start one by 'ray start --head', or "
            "leave --ray_address out"
        ) from error


def _start(options: Options) -> None:
    """A Ray of this machine's, for loopback alone.

    Ray takes the address of the network in place of a loopback address, and listens on all, unless it
    is told that it is to be no cluster; the variable says so to its processes, the constant to this
    one, which may have read the variable before.
    """
    import ray
    from ray._private import ray_constants

    root = str(Path(__file__).resolve().parents[2])  # so that workers find this very package
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    # A trial runs in a thread, whose own heap of glibc's would be too small for host_memory.kept.
    os.environ.setdefault("MALLOC_ARENA_MAX", "1")
    was = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        ray.init(
            address="local",
            include_dashboard=options.dashboard,
            object_store_memory=_OBJECTS,
            logging_level="error",
            log_to_driver=False,
        )
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = was


def resources(options: Options, use_gpu: bool) -> dict[str, float]:
    """What one trial takes: by default a CPU, and a GPU where there are some and they are wanted."""
    import ray

    gpus = options.gpus_per_trial
    if gpus is None:
        gpus = 1.0 if use_gpu and ray.cluster_resources().get("GPU") else 0.0
    wanted = {"cpu": options.cpus_per_trial, "gpu": gpus}
    for name, amount in wanted.items():
        most = max((_amount(node, name) for node in ray.nodes()), default=0.0)
        if amount > most:
            raise ConfigError(
                f"--{name}s_per_trial is {amount:g}, but no node of the Ray cluster has more than "
                f"{most:g}; write that or less"
            )
    return wanted


def _amount(node: dict[str, Any], name: str) -> float:
    return node["Resources"].get(name.upper(), 0.0) if node["Alive"] else 0.0
