"""The search by Ray Tune, with as many trials at once as there is room for."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import replace
from typing import Any

from recbole_adv.sweep.data_cache import clear_cache
from recbole_adv.sweep.ledger import read_schedule
from recbole_adv.sweep.plan import Job
from recbole_adv.sweep.ray_cluster import connected, resources
from recbole_adv.sweep.ray_search import known_records, scheduler_of, searcher_of
from recbole_adv.sweep.ray_trial import NAME, description, name_of, note_taker, train
from recbole_adv.sweep.state import Sweep


class RayTool:
    """Searches and runs jobs; it is connected to Ray from the first trial to the end of the block."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._connection = ExitStack()
        self._taken: dict[str, float] = {}

    def __enter__(self) -> RayTool:
        return self

    def __exit__(self, *error) -> None:
        with _silence(), self._connection:
            if self._taken:
                _clear_nodes(self.sweep)
        shutil.rmtree(self.sweep.plan.folder / "ray", ignore_errors=True)

    def search(self) -> None:
        """Search; trials that the ledger knows are told to searcher and scheduler, not run again."""
        plan, options = self.sweep.plan, self.sweep.options
        if options.search == "tpe":
            self._search_by_model()
            return
        space = plan.space
        drawn = (
            space.grid() if options.search == "grid" else space.draw(options.max_evals, plan.seed)
        )
        self._run_left([(codes, plan.job(codes)) for codes in drawn], search=True)

    def _search_by_model(self) -> None:
        sweep, known = self.sweep, known_records(self.sweep)
        sweep.expect(sweep.options.max_evals)
        for record in known:
            sweep.known(Job(record.setting, id=record.id))
        left = sweep.options.max_evals - len(known)
        if left > 0:
            self._tune({}, searcher_of(sweep), left)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run these jobs, without a search."""
        pairs = [(self.sweep.plan.space.encode(job.setting), job) for job in jobs]
        self._run_left([(codes, job) for codes, job in pairs if codes is not None], search=False)

    def _run_left(self, pairs: list[tuple[dict[str, Any], Job]], search: bool) -> None:
        from ray import tune

        self.sweep.expect(len(pairs))
        left = [(codes, job) for codes, job in pairs if self.sweep.known(job) is None]
        if left:
            trials = [description(self._codes_now(codes, job), job) for codes, job in left]
            self._tune({NAME: tune.grid_search(trials)}, None, 1, with_scheduler=search)

    def _codes_now(self, codes: dict[str, Any], job: Job) -> dict[str, Any]:
        """The setting of a member of a population that goes on: the one it had reached."""
        schedule = read_schedule(self.sweep.plan.folder / job.folder)
        if self.sweep.options.scheduler != "pbt" or not schedule or job.seed is not None:
            return codes
        return self.sweep.plan.space.encode(schedule[-1][1]) or codes

    def _tune(
        self, param_space: dict, searcher: Any, samples: int, with_scheduler: bool = True
    ) -> None:
        """Let Ray Tune run."""
        with _silence():
            if not self._taken:
                options, use_gpu = self.sweep.options, self.sweep.plan.fixed.get("use_gpu", True)
                self._connection.enter_context(connected(options))
                self._taken = resources(options, use_gpu)
            tuner = _tuner(self.sweep, param_space, searcher, samples, self._taken, with_scheduler)
            tuner.fit()


@contextmanager
def _silence() -> Iterator[None]:
    """What Ray prints is of no use; the sweep says what ended."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


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
