"""The search by Ray Tune, with as many trials at once as there is room for."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Any

from recbole_adv.sweep.data_cache import clear_cache
from recbole_adv.sweep.ledger import read_schedule
from recbole_adv.sweep.plan import Job
from recbole_adv.sweep.ray_cluster import connected, resources
from recbole_adv.sweep.ray_search import known_records, scheduler_of, searcher_of
from recbole_adv.sweep.ray_trial import NAME, description, name_of, note_taker, train
from recbole_adv.sweep.state import Sweep


def search(sweep: Sweep) -> None:
    """Search; trials that the ledger knows are told to searcher and scheduler and not run again."""
    plan, options = sweep.plan, sweep.options
    if options.search == "tpe":
        records = known_records(sweep)
        sweep.expect(options.max_evals)
        for record in records:
            sweep.known(Job(record.setting, id=record.id))
        left = options.max_evals - len(records)
        if left > 0:
            _tune(sweep, {}, searcher_of(sweep), left)
        return
    space = plan.space
    drawn = space.grid() if options.search == "grid" else space.draw(options.max_evals, plan.seed)
    _run_left(sweep, [(codes, plan.job(codes)) for codes in drawn], search=True)


def run(sweep: Sweep, jobs: Sequence[Job]) -> None:
    """Run these jobs, without a search."""
    pairs = [(sweep.plan.space.encode(job.setting), job) for job in jobs]
    _run_left(sweep, [(codes, job) for codes, job in pairs if codes is not None], search=False)


def _run_left(sweep: Sweep, pairs: list[tuple[dict[str, Any], Job]], search: bool) -> None:
    sweep.expect(len(pairs))
    left = [(codes, job) for codes, job in pairs if sweep.known(job) is None]
    if not left:
        return
    from ray import tune

    trials = [description(_codes_now(sweep, codes, job), job) for codes, job in left]
    _tune(sweep, {NAME: tune.grid_search(trials)}, None, 1, with_scheduler=search)


def _codes_now(sweep: Sweep, codes: dict[str, Any], job: Job) -> dict[str, Any]:
    """The setting of a member of a population whose training goes on: the one it had reached."""
    schedule = read_schedule(sweep.plan.folder / job.folder)
    if sweep.options.scheduler != "pbt" or not schedule or job.seed is not None:
        return codes
    return sweep.plan.space.encode(schedule[-1][1]) or codes


def _tune(
    sweep: Sweep,
    param_space: dict[str, Any],
    searcher: Any,
    samples: int,
    with_scheduler: bool = True,
) -> None:
    """Let Ray Tune run; what it prints is of no use, the sweep says what ended."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        with connected(sweep.options):
            taken = resources(sweep.options, sweep.plan.fixed.get("use_gpu", True))
            tuner = _tuner(sweep, param_space, searcher, samples, taken, with_scheduler)
            tuner.fit()
            _clear_nodes(sweep)
    shutil.rmtree(sweep.plan.folder / "ray", ignore_errors=True)


def _clear_nodes(sweep: Sweep) -> None:
    """Remove the prepared data that other machines keep."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here, clear = ray.get_runtime_context().get_node_id(), ray.remote(num_cpus=0)(clear_cache)
    tasks = [
        clear.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=True)
        ).remote(sweep.plan.cache)
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] != here
    ]
    if tasks:
        ray.wait(tasks, num_returns=len(tasks), timeout=30)


def _tuner(sweep, param_space, searcher, samples, taken, with_scheduler) -> Any:
    from ray import tune

    plan, options = sweep.plan, sweep.options
    if taken["gpu"] == 0:
        plan = replace(plan, fixed={**plan.fixed, "use_gpu": False})
    keep_states = with_scheduler and options.scheduler == "pbt"
    trainable = tune.with_parameters(train, plan=plan, keep_states=keep_states)
    api = _api(tune)

    def name(trial: Any) -> str:
        return name_of(plan, trial.config)

    return tune.Tuner(
        tune.with_resources(trainable, taken),
        param_space=param_space,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler_of(sweep) if with_scheduler else None,
            num_samples=samples,
            max_concurrent_trials=options.concurrency,
            reuse_actors=True,
            trial_name_creator=name,
            trial_dirname_creator=name,
        ),
        run_config=api.RunConfig(
            name="search" if with_scheduler else "seeds",
            storage_path=str(plan.folder / "ray"),
            failure_config=api.FailureConfig(max_failures=plan.retries),
            checkpoint_config=api.CheckpointConfig(num_to_keep=4),
            callbacks=[note_taker(sweep)],
            verbose=0,
        ),
    )


def _api(tune: Any) -> Any:
    """Where Ray keeps the configuration of a run: ``ray.tune``, before Ray 2.43 ``ray.train``."""
    if hasattr(tune, "RunConfig"):
        return tune
    from ray import train as older

    return older
