"""Ray's searcher and schedulers, told what an earlier start of the sweep has found out."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from recbole_adv.sweep.ledger import Record
from recbole_adv.sweep.plan import Plan, setting_id
from recbole_adv.sweep.ray_trial import CODES, NAME
from recbole_adv.sweep.space import Choice, Space
from recbole_adv.sweep.state import Sweep

_TRIES = 200


def known_records(sweep: Sweep) -> list[Record]:
    """The trials of this space that need no run."""
    return [
        record
        for record in sweep.ledger.records()
        if record.status in ("done", "pruned")
        and (record.status == "done" or sweep.options.scheduler == "asha")
        and sweep.plan.space.encode(record.setting) is not None
    ]


def searcher_of(sweep: Sweep) -> Any:
    """TPE by Ray's ``HyperOptSearch``; it proposes no setting twice, unfinished ones first."""
    from ray.tune.search import Searcher
    from ray.tune.search.hyperopt import HyperOptSearch

    plan, known = sweep.plan, known_records(sweep)
    ids = {record.id for record in known}
    begun = [record for record in sweep.ledger.records() if record.id not in ids]
    first = [plan.space.encode(record.setting) for record in (*known, *begun)]

    proposed: set[str] = set()

    class DistinctSearch(HyperOptSearch):
        def suggest(self, trial_id):
            for _ in range(_TRIES):
                codes = super().suggest(trial_id)
                name = setting_id(plan.space.decode(codes))
                if name not in proposed:
                    proposed.add(name)
                    return codes
                self.on_trial_complete(trial_id, error=True)
            return _another(plan, proposed) or Searcher.FINISHED

    searcher = DistinctSearch(
        plan.space.hyperopt(),
        metric="best_valid_score",
        mode="max" if plan.bigger else "min",
        points_to_evaluate=[codes for codes in first if codes] or None,
        n_initial_points=sweep.options.startup,
        random_state_seed=plan.seed,
    )
    for record in known:
        searcher.suggest(record.id)
        searcher.on_trial_complete(record.id, {"best_valid_score": record.score})
    return searcher


def _another(plan: Plan, proposed: set[str]) -> dict[str, Any] | None:
    """A random setting that was not proposed yet, when TPE proposes the same ones over and over."""
    for codes in plan.space.draw(len(proposed) + 1, plan.seed):
        name = setting_id(plan.space.decode(codes))
        if name not in proposed:
            proposed.add(name)
            return codes
    return None


def scheduler_of(sweep: Sweep) -> Any:
    """The scheduler that the options name; None is Ray's own, which lets every trial end."""
    if sweep.options.scheduler == "asha":
        return _asha(sweep)
    return _pbt(sweep) if sweep.options.scheduler == "pbt" else None


def _asha(sweep: Sweep) -> Any:
    """Asynchronous successive halving on the score of each epoch (Li et al., MLSys 2020)."""
    from ray.tune.schedulers import ASHAScheduler

    plan, options = sweep.plan, sweep.options
    grace = options.grace_epochs or default_grace(sweep)
    scheduler = ASHAScheduler(
        time_attr="epochs",
        metric="valid_score",
        mode="max" if plan.bigger else "min",
        max_t=max(plan.epochs, grace) + 1,  # so that no trial counts as pruned in its last epoch
        grace_period=grace,
        reduction_factor=options.reduction_factor,
    )
    for record in known_records(sweep):
        trial = SimpleNamespace(trial_id=record.id)
        scheduler.on_trial_add(None, trial)
        for epochs, score in record.curve:
            scheduler.on_trial_result(None, trial, {"epochs": epochs, "valid_score": score})
    return scheduler


def default_grace(sweep: Sweep) -> int:
    """Epochs in which no trial is pruned: those before the selection of models begins, at least."""
    return max(sweep.plan.selection_start + 1, sweep.plan.epochs // 30)


def _pbt(sweep: Sweep) -> Any:
    """Population based training (Jaderberg et al., 2017).

    Synchronous: members wait for each other, so that the same seed gives the same result. Ray draws
    from the global generators, of which other threads of Ray draw, too, as often as their timing has
    it; each round therefore begins with a seed of its own.
    """
    from ray.tune.schedulers import PopulationBasedTraining

    class SeededTraining(PopulationBasedTraining):
        def on_trial_result(self, tune_controller, trial, result):
            with _seeded(f"{plan.seed} {result.get('epochs')}"):
                return super().on_trial_result(tune_controller, trial, result)

    plan, options = sweep.plan, sweep.options
    space = plan.space

    def inside(config: dict[str, Any]) -> dict[str, Any]:
        codes = config[NAME][CODES]
        codes.update({name: space.dimensions[name].inside(codes[name]) for name in codes})
        return config

    return SeededTraining(
        time_attr="epochs",
        metric="valid_score",
        mode="max" if plan.bigger else "min",
        perturbation_interval=options.perturbation_epochs or max(1, plan.epochs // 10),
        hyperparam_mutations={NAME: {CODES: _mutations(space)}},
        custom_explore_fn=inside,
        synch=True,
    )


@contextmanager
def _seeded(seed: str) -> Iterator[None]:
    """Python's and numpy's global generators from a seed on, inside."""
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(random.getrandbits(32))
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def _mutations(space: Space) -> dict[str, Any]:
    """What a mutation draws from: the indices of a choice, else a function."""
    from ray import tune

    found: dict[str, Any] = {}
    for name, each in space.dimensions.items():
        if isinstance(each, Choice):
            found[name] = each.codes()
        elif each.kind == "loguniform":
            found[name] = tune.loguniform(math.exp(each.low), math.exp(each.high))
        else:
            found[name] = tune.uniform(*each.bounds())
    return found
