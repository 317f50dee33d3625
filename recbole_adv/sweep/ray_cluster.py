"""A connection to Ray: the cluster at an address, else one on this machine for as long as it is used."""

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
}


@contextmanager
def connected(options: Options) -> Iterator[None]:
    """Ray is there inside. The local one listens on loopback alone and has no dashboard.

    Raises:
        ConfigError: if no cluster answers, or none of its nodes has what one trial needs.
    """
    import ray

    mine, before = not ray.is_initialized(), dict(os.environ)
    os.environ.update({**_QUIET, **before})
    try:
        if mine:
            _connect(options)
        yield
    finally:
        if mine:
            ray.shutdown()
        os.environ.clear()
        os.environ.update(before)


def _connect(options: Options) -> None:
    import ray

    quiet = {"logging_level": "error", "log_to_driver": False}
    if options.ray_address is not None:
        try:
            ray.init(address=options.ray_address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            detail = " ".join(str(error).split())[:120]
            raise ConfigError(
                f"no Ray cluster answers at {options.ray_address!r} ({detail}); start one by 'ray "
                "start --head', or leave --ray_address out"
            ) from error
        return
    root = str(Path(__file__).resolve().parents[2])  # so that workers find this very package
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    ray.init(
        address="local",
        include_dashboard=options.dashboard,
        object_store_memory=_OBJECTS,
        _node_ip_address="127.0.0.1",
        **quiet,
    )


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
