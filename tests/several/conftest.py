"""Two processes that run ``checks.py``."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CHECKS = Path(__file__).with_name("checks.py")


def free_port() -> int:
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def environment(rank: int, port: int) -> dict[str, str]:
    """What torchrun would set."""
    place = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}
    place |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
    return {**os.environ, **{name: str(value) for name, value in place.items()}}


def start(arguments, folder: Path) -> list[subprocess.Popen]:
    """Two processes of ``python <arguments>`` that train together; their words go to files."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            env=environment(rank, port),
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=open(folder / f"{rank}.err", "w"),
        )
        for rank in range(2)
    ]


@pytest.fixture(name="start")
def start_fixture():
    """``start(arguments, folder)``: two processes of ``python <arguments>``."""
    return start


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """What both processes found, by check: ``pair["gradients"]`` is a list of two."""
    folder = tmp_path_factory.mktemp("pair")
    names = ["collectives", "gradients", "buffers", "rows_read", "evaluations", "equal"]
    names += ["same_everywhere", "techniques", "rolled_back", "closed_form"]
    names += ["resumed"]
    running = start([CHECKS, folder, *names], folder)
    try:
        codes = [process.wait(timeout=480) for process in running]
    finally:
        for process in running:
            process.kill()
    words = [(folder / f"{rank}.err").read_text()[-3000:] for rank in range(2)]
    assert codes == [0, 0], "\n".join(words)
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return {"folder": folder, **{name: [one[name] for one in found] for name in names}}
