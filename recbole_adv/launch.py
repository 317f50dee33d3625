"""Starts several processes that train one model, and watches them: RecBole's ``nproc`` and its kin.

Each is told its place by the variables that ``torchrun`` sets, and then runs what a process of torchrun
runs.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException

from recbole_adv import errors, processes
from recbole_adv.errors import ConfigError, ProcessError, RecBoleAdvError
from recbole_adv.quick_start import check_writes, configured, run_recbole_adv
from recbole_adv.run_directory import interrupt_explained

_PORT = 5678  # RecBole's
_LOOK_EVERY = 0.5  # seconds between two looks at what the processes say


def run_processes(
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: Mapping[str, Any] | None = None,
    saved: bool = True,
    resume: str | None = None,
    command_line: Sequence[str] | None = (),
    nproc: int = 2,
    world_size: int = -1,
    ip: str = "localhost",
    port: int | str | None = None,
    group_offset: int = 0,
) -> dict[str, Any] | None:
    """``run_recbole_adv`` by several processes; arguments as there, the last five as RecBole's ``run``.

    Args:
        nproc: processes on this machine.
        world_size: processes on all machines; -1 for ``nproc``.
        ip, port: where the first process listens; None takes a free port where all are on one machine,
            else RecBole's 5678.
        group_offset: the number of the first process of this machine.

    Returns:
        What ``run_recbole_adv`` returns; None where the first process is on another machine.

    Raises:
        RecBoleAdvError: as ``run_recbole_adv``; ProcessError for a process that was killed.
    """
    world_size = nproc if world_size == -1 else world_size
    _check_numbers(nproc, world_size, group_offset)
    config, _ = configured(model, dataset, config_file_list, config_dict, resume, command_line)
    check_writes(config, world_size)
    if config["device"].type == "cuda":
        processes.check_gpus(nproc)
    port = _port(ip, port, listens=group_offset == 0, alone=nproc == world_size)
    if resume is None:  # the directory is named after the moment
        config_dict = {**(config_dict or {}), "run_dir": config["run_dir"]}
    arguments = (
        model,
        dataset,
        config_file_list,
        config_dict,
        saved,
        resume,
        command_line if command_line is None else list(command_line),
    )
    place = {"WORLD_SIZE": world_size, "MASTER_ADDR": ip, "MASTER_PORT": port}
    said = mp.get_context("spawn").SimpleQueue()
    context = mp.spawn(
        _one_process, (nproc, group_offset, place, said, arguments), nprocs=nproc, join=False
    )
    with interrupt_explained(Path(config["run_dir"])):
        return _watched(context, said, group_offset, world_size)


def _check_numbers(nproc: int, world_size: int, group_offset: int) -> None:
    place = processes.place()
    if place is not None:
        raise ConfigError(
            f"torchrun has started {place.n_processes} processes already, got nproc {nproc}; leave "
            "--nproc and --world_size out"
        )
    if nproc < 1:
        raise ConfigError(f"nproc must be at least 1, got {nproc}; write --nproc=2")
    if world_size < nproc:
        raise ConfigError(
            f"world_size counts the processes of all machines, so it must be at least nproc {nproc}, "
            f"got {world_size}; write --world_size={nproc}, or leave it out"
        )
    if not 0 <= group_offset <= world_size - nproc:
        raise ConfigError(
            f"group_offset must lie in 0..{world_size - nproc}, world_size less nproc, got "
            f"{group_offset}; it is 0 on the machine that ip names"
        )


def _port(ip: str, port: int | str | None, listens: bool, alone: bool) -> int:
    """The port at which the first process will listen, which must be free."""
    wanted = (0 if alone else _PORT) if port is None else port
    if not str(wanted).isdigit() or int(wanted) > 65535:
        raise ConfigError(f"port must be a number below 65536, got {port!r}; write --port={_PORT}")
    if not listens:
        return int(wanted)
    try:
        with socket.create_server((ip, int(wanted))) as server:
            return server.getsockname()[1]
    except OSError as error:
        raise ConfigError(
            f"the first process cannot listen at {ip}:{wanted} ({error.strerror or error}); write "
            "another --port, or the address of this machine as --ip"
        ) from error


def _one_process(local_rank: int, nproc: int, group_offset: int, place, said, arguments) -> None:
    """What a process does: a run of its own, of which the first tells the result."""
    rank = local_rank + group_offset
    place = {**place, "RANK": rank, "LOCAL_RANK": local_rank, "LOCAL_WORLD_SIZE": nproc}
    os.environ.update({name: str(value) for name, value in place.items()})
    if "OMP_NUM_THREADS" not in os.environ:  # else each would take all cores for itself
        torch.set_num_threads(max(1, torch.get_num_threads() // nproc))
    model, dataset, files, settings, saved, resume, command_line = arguments
    try:
        result = run_recbole_adv(model, dataset, files, settings, saved, resume, command_line)
    except RecBoleAdvError as error:
        said.put((rank, type(error).__name__, str(error)))
        raise SystemExit(2) from error
    except Exception as error:
        said.put((rank, "RuntimeError", f"{type(error).__name__}: {error}"))
        raise
    if rank == 0:
        said.put((rank, "", result))


def _watched(context: ProcessContext, said, group_offset: int, world_size: int):
    """The result of the first process.   Raises what went wrong, once, when all have ended."""
    heard: list[tuple[int, str, Any]] = []
    try:
        over = False
        while not over:
            over = context.join(timeout=_LOOK_EVERY)
            heard += _read(said)
    except Exception as error:  # all others have been ended
        heard += _read(said)
        raise _explained(error, heard, context, group_offset, world_size) from error
    finally:
        for process in context.processes:
            if process.is_alive():
                process.terminate()
    heard += _read(said)
    return next((result for _, kind, result in heard if not kind), None)


def _read(said) -> list[tuple[int, str, Any]]:
    heard = []
    while not said.empty():
        heard.append(said.get())
    return heard


def _explained(error: Exception, heard, context, group_offset: int, world_size: int) -> Exception:
    """The cause, among all that was heard: who lost another process was not the first to end."""
    for rank, kind, sentence in heard:
        if kind in ("", "ProcessError"):
            continue
        known = getattr(errors, kind, None)
        return known(sentence) if known else RuntimeError(f"process {rank}: {sentence}")
    exits = [process.exitcode for process in context.processes]
    killed = [i for i, code in enumerate(exits) if (code or 0) < 0 and code != -signal.SIGTERM]
    if isinstance(error, ProcessExitedException) and (error.exit_code or 0) < 0:
        killed = [error.error_index]
    if killed:
        name = signal.Signals(-exits[killed[0]]).name
        return ProcessError(
            f"process {killed[0] + group_offset} of {world_size} (counted from 0) was killed by "
            f"{name}, which ended the run; --resume=<run directory> goes on from the last epoch that "
            "ended (out of memory, the system kills too)"
        )
    lost = next((sentence for _, kind, sentence in heard if kind == "ProcessError"), str(error))
    return ProcessError(lost)
