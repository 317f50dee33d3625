"""Ray's searcher and schedulers in the hands of a sweep; no trial is run."""

import random
from types import SimpleNamespace

import numpy as np
import pytest

from recbole_adv.sweep.ledger import SCORES, Record
from recbole_adv.sweep.plan import Job
from recbole_adv.sweep.ray_search import default_grace, scheduler_of, searcher_of
from recbole_adv.sweep.space import Choice, Range, Space

pytest.importorskip("ray")
RATES = Space({"learning_rate": Choice((0.1, 0.01, 0.001)), "reg": Range("uniform", 0.0, 1.0)})


def begun(sweep, *trials):
    """Put trials of an earlier start on disk: (setting, status, score, curve)."""
    for setting, status, score, curve in trials:
        job = Job(setting)
        sweep.ledger.start(job)
        sweep.ledger.finish(job, {"status": status, "score": score})
        lines = [f'{{"epochs": {n}, "score": {s}}}\n' for n, s in enumerate(curve, start=1)]
        (sweep.plan.folder / job.folder / SCORES).write_text("".join(lines))
    return sweep


def test_the_searcher_knows_what_an_earlier_start_found(sweep_of):
    done = {"learning_rate": 0.01, "reg": 0.25}
    cut = {"learning_rate": 0.1, "reg": 0.75}
    stranger = {"learning_rate": 0.5, "reg": 0.5}  # of an earlier search file
    sweep = begun(
        sweep_of(RATES, tool="ray", algo="bayes", max_evals=30),
        (done, "done", 0.4, [0.3, 0.4]),
        (cut, "running", None, [0.1]),
        (stranger, "done", 0.9, [0.9]),
    )
    searcher = searcher_of(sweep)
    losses = [loss for loss in searcher._hpopt_trials.losses() if loss is not None]
    assert losses == [-0.4]  # told, and higher is better
    proposed = [RATES.decode(searcher.suggest(f"t{n}")) for n in range(8)]
    assert proposed[0] == cut  # goes on first
    assert done not in proposed and len({p["reg"] for p in proposed}) == 8


def test_the_searcher_proposes_no_setting_twice_and_ends(sweep_of):
    rates = Choice(tuple(range(25)))  # more than are drawn at random
    sweep = sweep_of(Space({"learning_rate": rates}), tool="ray", algo="bayes", max_evals=30)
    searcher, proposed = searcher_of(sweep), []
    for number in range(25):
        proposed.append(searcher.suggest(f"t{number}")["learning_rate"])
        searcher.on_trial_complete(f"t{number}", {"best_valid_score": proposed[-1] / 100})
    assert sorted(proposed) == list(range(25))
    assert searcher.suggest("t25") == "FINISHED"


def test_asha_judges_by_the_trials_of_an_earlier_start(sweep_of):
    """Successive halving by hand: at epoch 2 the better half of 0.5, 0.4 goes on: the cut is 0.45."""
    flags = {"tool": "ray", "scheduler": "asha", "grace_epochs": 2, "reduction_factor": 2.0}
    earlier = (
        ({"learning_rate": 0.1, "reg": 0.0}, "done", 0.6, [0.3, 0.5, 0.6]),
        ({"learning_rate": 0.1, "reg": 0.5}, "pruned", 0.4, [0.2, 0.4]),
        ({"learning_rate": 0.1, "reg": 0.7}, "failed", None, [0.9, 0.9]),  # will run again
    )
    for score, decision in ((0.44, "STOP"), (0.46, "CONTINUE")):
        scheduler = scheduler_of(begun(sweep_of(RATES, **flags), *earlier))
        trial = SimpleNamespace(trial_id="new")
        scheduler.on_trial_add(None, trial)
        first = scheduler.on_trial_result(None, trial, {"epochs": 1, "valid_score": 0.0})
        assert first == "CONTINUE"  # in the grace period
        assert (
            scheduler.on_trial_result(None, trial, {"epochs": 2, "valid_score": score}) == decision
        )


def test_no_trial_is_pruned_before_the_selection_begins(sweep_of):
    from dataclasses import replace

    sweep = sweep_of(RATES, tool="ray", scheduler="asha")
    assert default_grace(sweep) == 1
    sweep.plan = replace(sweep.plan, selection_start=5)
    assert default_grace(sweep) == 6
    sweep.plan = replace(sweep.plan, epochs=300)
    assert default_grace(sweep) == 10


def test_pbt_keeps_numbers_within_their_bounds(sweep_of):
    from ray.tune.schedulers.pbt import _explore

    space = Space({"x": Range("uniform", 0.0, 0.5), "n": Range("quniform", 1.0, 3.0, 1.0)})
    scheduler = scheduler_of(sweep_of(space, tool="ray", scheduler="pbt", algo="random"))
    random.seed(0)
    seen = []
    for _ in range(50):
        config = {"trial": {"codes": {"x": 0.49, "n": 3.0}, "id": "a"}}
        mutations, explore = scheduler._hyperparam_mutations, scheduler._custom_explore_fn
        new, _ = _explore(config, mutations, 0.25, (0.8, 1.2), explore)
        seen.append(space.decode(new["trial"]["codes"]))
    assert all(0 <= setting["x"] <= 0.5 and setting["n"] in (1, 2, 3) for setting in seen)
    assert {setting["n"] for setting in seen} == {1, 2, 3} and min(s["x"] for s in seen) < 0.4
    assert max(setting["x"] for setting in seen) == 0.5  # 0.49 * 1.2, cut off


def test_each_round_of_pbt_draws_from_its_own_seed(sweep_of, monkeypatch):
    """Whatever else has drawn from the global generators, and without a trace in them."""
    from ray.tune.schedulers import PopulationBasedTraining

    def drawn(self, tune_controller, trial, result):
        return random.random(), np.random.rand(), random.choice(range(1000))

    monkeypatch.setattr(PopulationBasedTraining, "on_trial_result", drawn)
    rounds = []
    for _ in range(2):
        scheduler = scheduler_of(sweep_of(RATES, tool="ray", scheduler="pbt", algo="random"))
        rounds.append([scheduler.on_trial_result(None, None, {"epochs": e}) for e in (3, 6)])
        random.seed(2 * random.random())
    assert rounds[0] == rounds[1] and rounds[0][0] != rounds[0][1]
    random.seed(1)
    np.random.seed(1)
    scheduler.on_trial_result(None, None, {"epochs": 3})
    after = random.random(), np.random.rand()
    random.seed(1)
    np.random.seed(1)
    assert after == (random.random(), np.random.rand())


def test_a_record_is_read_as_it_was_written(sweep_of):
    sweep = begun(sweep_of(RATES), ({"learning_rate": 0.1, "reg": 0.0}, "done", 0.6, [0.3, 0.6]))
    (record,) = sweep.ledger.records()
    assert record == Record(
        id=record.id,
        setting={"learning_rate": 0.1, "reg": 0.0},
        status="done",
        score=0.6,
        started=record.started,
        curve=[(1, 0.3), (2, 0.6)],
    )
