"""What a run says about itself, and where."""

import json
from pathlib import Path

import pytest
import torch
from recbole.model.general_recommender import BPR
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from recbole_adv import run_recbole_adv
from recbole_adv.trainer.report import finite

EIIL = {
    "epochs": 3,
    "train_batch_size": 256,
    "max_start_epoch": 1,
    "max_interval": 2,
    "penalty_start": 1,
    "penalty_weight": 3.0,
    "monitor_interval": 1,
    "max_learner": "sgd",  # a small step along the gradient itself must gain
}


def lines_of(run_dir):
    return [json.loads(line) for line in Path(run_dir, "metrics.jsonl").read_text().splitlines()]


def scalars_of(run_dir):
    """TensorBoard's scalars by name: the values of the epochs."""
    events = EventAccumulator(str(Path(run_dir, "tensorboard")))
    events.Reload()
    return {tag: [e.value for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_metrics_of_a_game(settings_of):
    done = run_recbole_adv("EIIL", "checkerboard", config_dict=settings_of("EIIL", **EIIL))
    first, second, third = lines = lines_of(done["run_dir"])
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    n = first["min/steps"]
    assert n > 2
    assert [line["min/steps"] for line in lines] == [n] * 3
    assert [line["min/turns"] for line in lines] == [n, 2 * n, 3 * n]
    # The interval counts batches over the whole run.
    taken = [0, (2 * n) // 2 - n // 2, (3 * n) // 2 - n // 2]
    assert [line["max/turns"] for line in lines] == taken
    assert second["max/steps"] == taken[1]
    assert "max/objective" not in first and "max/gain" not in first
    assert second["max/gain"] > 0 and third["max/gain"] > 0  # ascent on the batch it was made of
    assert second["max/gradient_norm"] > 0 and first["min/gradient_norm"] > 0
    assert [line["penalty_weight"] for line in lines] == [0, 3, 3]
    assert sum(third["environment_mass"]) == pytest.approx(1, abs=1e-5)
    assert "min/loss2" not in first  # no penalty, no part
    for line in (second, third):
        assert line["min/loss"] == pytest.approx(line["min/loss1"] + line["min/loss2"])
    assert {"recall@10", "mrr@10", "ndcg@10", "hit@10", "precision@10"} == set(first["valid"])
    assert third["valid_score"] == third["valid"]["mrr@10"]
    best = max(line["valid_score"] for line in lines)
    assert done["best_valid_score"] == best
    assert all(line["train_seconds"] > 0 and line["valid_seconds"] > 0 for line in lines)
    shown = scalars_of(done["run_dir"])
    assert shown["max/gain"] == pytest.approx([second["max/gain"], third["max/gain"]])
    assert shown["Valid_score"] == pytest.approx([line["valid_score"] for line in lines])
    assert shown["Loss/Train0"][0] == pytest.approx(second["min/loss1"] * n)
    assert json.loads(Path(done["run_dir"], "result.json").read_text())["best_valid_score"] == best


def test_a_run_writes_nothing_outside_of_its_directory(settings_of, tmp_path):
    given = settings_of("EIIL", **EIIL, run_dir=str(tmp_path / "elsewhere" / "run"))
    before = set(tmp_path.rglob("*"))
    done = run_recbole_adv("EIIL", "checkerboard", config_dict=given)
    assert Path.cwd() == tmp_path
    new = {path.relative_to(tmp_path) for path in set(tmp_path.rglob("*")) - before}
    assert {path.parts[0] for path in new} == {"elsewhere"}
    assert {path.name for path in Path(done["run_dir"]).iterdir()} == {
        "config.yaml",
        "environments.inter",
        "last.pth",
        "metrics.jsonl",
        "model.pth",
        "result.json",
        "run.log",
        "split.json",
        "tensorboard",
    }
    assert all("tensorboard" in p.parts for p in new if p.name.startswith("events.out"))


def test_the_default_directory_is_the_only_thing_in_the_working_directory(settings_of):
    done = run_recbole_adv("BPR", "checkerboard", config_dict=settings_of("BPR", epochs=1))
    assert [path.name for path in Path.cwd().iterdir()] == ["runs"]
    assert Path(done["run_dir"]).parent == Path.cwd() / "runs"


class TwoParts(BPR):
    """Keeps what RecBole would add up."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.scale = nn.Parameter(torch.ones(()))
        self.seen = []

    def calculate_loss(self, interaction):
        loss = super().calculate_loss(interaction)
        parts = loss, 0.1 * self.scale.square()
        self.seen.append([part.item() for part in parts])
        return parts


def test_the_reported_loss_is_recboles_sum_over_the_batches(tiny):
    run = tiny(TwoParts, epochs=1, eval_step=0, train_batch_size=100)
    run.fit(saved=False)
    n, sums = len(run.model.seen), [0.0, 0.0]
    for parts in run.model.seen:
        sums = [total + part for total, part in zip(sums, parts)]
    assert run.trainer.train_loss_dict == {0: sum(sums)}  # in the same order: exactly equal
    figures = run.trainer.report.figures()
    assert (figures["min/loss1"], figures["min/loss2"]) == (sums[0] / n, sums[1] / n)
    assert figures["min/loss"] == sum(sums) / n or figures["min/loss"] == sums[0] / n + sums[1] / n


def test_nan_and_inf_are_null(tiny):
    """GroupDRO's running risk of an environment that was not seen yet is nan."""
    assert finite({"a": float("nan"), 1: [float("inf"), 2.0]}) == {"a": None, "1": [None, 2.0]}
    assert (
        json.dumps(finite({"x": torch.tensor(1.5), "y": (1, None)})) == '{"x": 1.5, "y": [1, null]}'
    )
    run = tiny("GroupDRO", n_environments=2, epochs=1, eval_step=0)
    Path(run.config["run_dir"]).mkdir(parents=True, exist_ok=True)
    run.model.environments.environment.zero_()  # nobody is in environment 1
    run.fit(saved=False)
    (line,) = lines_of(run.config["run_dir"])
    assert line["environment_risk"][0] > 0 and line["environment_risk"][1] is None
    assert line["environment_sizes"] == [len(run.train._dataset), 0]
