"""Directories of runs as a run writes them, with figures of the test's choice."""

import json

import pandas as pd
import pytest
import yaml

from recbole_adv.evaluation import user_metrics


def write_run(folder, test=None, seed=1, users=None, model="BPR", dataset="made", **settings):
    """A run that has ended if ``test`` is given; users: a metric of the test by user."""
    print_of = settings.pop("print_of", "one")
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model": model, "dataset": dataset, "seed": seed, **settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [
        {"epoch": e, "train_seconds": 0.5, "min/loss": 1.0 / (e + 1), "valid_score": 0.1 * e}
        for e in range(3)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    part = {"rows": 5, "users": 4, "items": 3, "coverage": 0.75, "kl_train": 0.25}
    split = {
        "parts": {"train": {**part, "kl_train": None}, "test": {**part, "cold_rows": 1}},
        "test": "test",
        "fingerprints": {"train": "same", "test": print_of},
        "leaks": [{"part": "test", "in": "train", "rows": 2, "of": 8}],
        "dropped": 0,
        "masked": False,
    }
    (folder / "split.json").write_text(json.dumps(split))
    if test is not None:
        result = {"model": model, "dataset": dataset, "valid_metric": "MRR@10"}
        result |= {"best_valid_score": 0.2, "best_valid_result": {}, "test_result": test}
        (folder / "result.json").write_text(json.dumps(result))
    if users is not None:
        tables = {"": pd.DataFrame({"mrr@10": users.values()}, index=list(users))}
        user_metrics.save(folder, tables)
    return folder


@pytest.fixture
def run(tmp_path):
    """``run(name, {metric: value}, seed=..., **settings)`` writes a run and gives its directory."""
    return lambda name, *arguments, **keys: write_run(tmp_path / name, *arguments, **keys)
