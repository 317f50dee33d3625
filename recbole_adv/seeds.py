"""One configuration run with several seeds: a table of the runs, means and standard errors."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from recbole_adv import processes
from recbole_adv.config import Config
from recbole_adv.errors import CheckpointError, ConfigError
from recbole_adv.evaluation.summary import as_markdown, means_and_errors, table_of
from recbole_adv.quick_start import run_recbole_adv
from recbole_adv.run_directory import (
    SEEDS_FILE,
    RunDirectory,
    check_unused,
    interrupt_explained,
)
from recbole_adv.trainer.report import finite


def seeds_of(text: str, first: int) -> list[int]:
    """``5`` as five seeds from ``first`` on, ``1,2,3`` as these.   first: the configuration's."""
    try:
        numbers = [int(part) for part in str(text).split(",")]
    except ValueError:
        numbers = []
    if "," not in str(text) and numbers:
        numbers = list(range(first, first + numbers[0]))
    if len(numbers) < 2 or len(set(numbers)) < len(numbers) or min(numbers) < 0:
        raise ConfigError(
            f"--seeds must be how many seeds to run, at least 2, or different seeds such as 1,2,3, "
            f"got {text!r}; write --seeds=5"
        )
    return numbers


def run_seeds(
    seeds: str,
    model: str | type | None = None,
    dataset: str | None = None,
    config_file_list: Sequence[str] | None = None,
    config_dict: dict[str, Any] | None = None,
    saved: bool = True,
    command_line: Sequence[str] | None = (),
) -> dict[str, Any]:
    """Run a configuration once for each seed; arguments as for ``run_recbole_adv``.

    The directory of the run holds ``config.yaml``, a directory ``seed-<seed>`` for each,
    ``seeds.csv``, a line each, and ``result.json``: each metric of the best validation and of the
    test as ``mean`` and ``standard_error``.

    seeds: as for :func:`seeds_of`.   Returns what is in ``result.json``, and ``run_dir``.
    """
    processes.check_alone("--seeds")
    config = Config(model, dataset, config_file_list, config_dict, command_line)
    numbers = seeds_of(seeds, config["seed"])
    if "checkpoint_dir" in config.external_config_dict:
        raise ConfigError(
            "runs with several seeds have a directory each, so that checkpoint_dir "
            f"{config['checkpoint_dir']!r} cannot be used; leave it out, or write run_dir"
        )
    folder = Path(config["run_dir"])
    if (folder / SEEDS_FILE).exists():
        raise ConfigError(
            f"{str(folder)!r} holds runs with several seeds; write --resume={folder} to go on with "
            "them, or another run_dir"
        )
    check_unused(folder)
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        RunDirectory(config).write_config()
        _write(folder / SEEDS_FILE, json.dumps({"seeds": numbers}))
    except OSError as error:
        raise CheckpointError(
            f"run_dir {str(folder)!r} cannot be written ({error.strerror}); write another one"
        ) from error
    with interrupt_explained(folder):
        try:
            return _run_all(folder, numbers, saved)
        except BaseException:
            _remove_unused(folder, new)
            raise


def resume_seeds(folder: str | Path, saved: bool = True) -> dict[str, Any]:
    """Go on with a directory of :func:`run_seeds`: runs that ended are not run again."""
    processes.check_alone("--seeds")
    file = Path(folder) / SEEDS_FILE
    try:
        numbers = [int(seed) for seed in json.loads(file.read_text(encoding="utf-8"))["seeds"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file} is no list of seeds; run them again") from error
    with interrupt_explained(Path(folder)):
        return _run_all(Path(folder).absolute(), numbers, saved)


def _run_all(folder: Path, seeds: Sequence[int], saved: bool) -> dict[str, Any]:
    runs = {seed: _run_one(folder, seed, saved) for seed in seeds}
    first = next(iter(runs.values()))
    scores = [{"score": run["best_valid_score"]} for run in runs.values()]
    summary = {
        key: means_and_errors([run[key] or {} for run in runs.values()])
        for key in ("best_valid_result", "test_result")
    }
    result = {
        "model": first["model"],
        "dataset": first["dataset"],
        "seeds": list(seeds),
        "valid_score_bigger": first["valid_score_bigger"],
        "best_valid_score": means_and_errors(scores)["score"],
        **summary,
    }
    _write(folder / "seeds.csv", table_of(runs).to_csv(index=False))
    _write(folder / "result.json", json.dumps(finite(result), indent=2) + "\n")
    _write(folder / "seeds.md", as_markdown(summary["test_result"], len(runs)) + "\n")
    return {**result, "run_dir": str(folder)}


def _remove_unused(folder: Path, new: Sequence[Path]) -> None:
    """Leave nothing behind where the first run failed before its first epoch had ended."""
    if any(folder.glob("seed-*")):
        return
    for name in ("config.yaml", SEEDS_FILE):
        (folder / name).unlink(missing_ok=True)
    for path in new:
        with suppress(OSError):
            path.rmdir()


def _run_one(folder: Path, seed: int, saved: bool) -> dict[str, Any]:
    """The result of one seed: the one that is there, or of a run that starts or goes on."""
    own = folder / f"seed-{seed}"
    if not (own / "result.json").is_file():
        there = any((own / name).is_file() for name in ("last.pth", "model.pth"))
        if not there:  # epochs of which no checkpoint was kept are trained again
            (own / "metrics.jsonl").unlink(missing_ok=True)
        run_recbole_adv(
            config_file_list=[] if there else [str(folder / "config.yaml")],
            config_dict={} if there else {"seed": seed, "run_dir": str(own)},
            saved=saved,
            resume=str(own) if there else None,
        )
    return json.loads((own / "result.json").read_text(encoding="utf-8"))


def _write(file: Path, text: str) -> None:
    aside = file.with_name(f"{file.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, file)
