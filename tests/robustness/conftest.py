"""Trained runs on the checkerboard, each made once, and what attacks see of a tiny run."""

from __future__ import annotations

import pytest

from recbole_adv.quick_start import run_recbole_adv
from recbole_adv.robustness.trained import Trained


@pytest.fixture(scope="session")
def _runs(tmp_path_factory):
    return tmp_path_factory.mktemp("runs"), {}


@pytest.fixture
def run_of(_runs, settings_of):
    """``run_of(model, **settings)``: the directory of a run of two epochs, made at the first call."""
    folder, made = _runs

    def run(model, **settings):
        key = f"{model}-{sorted(settings.items())}"
        if key not in made:
            own = {"run_dir": str(folder / f"{model}-{len(made)}"), "topk": [5]}
            own |= {"metrics": ["NDCG", "Recall"], "valid_metric": "NDCG@5", **settings}
            result = run_recbole_adv(
                model, "checkerboard", config_dict=settings_of(model, **own), command_line=()
            )
            made[key] = result["run_dir"]
        return made[key]

    return run


@pytest.fixture
def as_trained():
    """``as_trained(tiny_run)``: a model as it is, as an attack gets a checkpoint's."""

    def made(run):
        run.trainer.prepare_evaluation(run.train, run.valid, {}, [run.test])
        train = run.trainer._before_fit(run.train)
        run.trainer._weights_loaded = True
        parts = run.dataset.prepared.parts
        return Trained(
            "tiny", run.config, run.model, run.trainer, train, run.valid, run.test, dict(parts)
        )

    return made
