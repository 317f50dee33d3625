"""What a sweep leaves behind, from trials whose scores are known."""

import json
import math

import pandas
import pytest
import yaml

from recbole_adv.sweep import report
from recbole_adv.sweep.ledger import SCORES
from recbole_adv.sweep.plan import Job
from recbole_adv.sweep.space import Choice, Range, Space

SPACE = Space(
    {
        "learning_rate": Range("loguniform", -7.0, -2.0),
        "mlp_hidden_size": Choice(([64], [64, 32])),
        "clip_grad_norm": Choice((None, {"max_norm": 1.0})),
        "n_layers": Range("quniform", 1.0, 3.0, 1.0),
    }
)


def setting(rate, size, n_layers=2):
    return {
        "learning_rate": rate,
        "mlp_hidden_size": size,
        "clip_grad_norm": {"max_norm": 1.0},
        "n_layers": n_layers,
    }


def note(sweep, job, score, status="done", **more):
    sweep.ledger.start(job)
    curve = [score / 2, score] if score else []
    lines = [json.dumps({"epochs": n, "score": s}) + "\n" for n, s in enumerate(curve, start=1)]
    (sweep.plan.folder / job.folder / SCORES).write_text("".join(lines))
    fields = {"status": status, "score": score, "best_epoch": 1, "epochs": 2, "seconds": 1.5}
    return sweep.ledger.finish(job, {**fields, "valid": {"mrr@10": score}, **more})


@pytest.fixture
def sweep(sweep_of):
    """Three trials with a score, one pruned, one failed."""
    sweep = sweep_of(SPACE, tool="ray", algo="random", scheduler="asha", seeds=2, top=2)
    note(sweep, Job(setting(0.01, [64])), 0.5)
    note(sweep, Job(setting(0.02, [64, 32])), 0.4)
    note(sweep, Job(setting(0.002, [64])), 0.3)
    note(sweep, Job(setting(0.001, [128])), 0.9, status="pruned")  # [128]: of an earlier search
    note(sweep, Job(setting(0.1, [64], 3)), None, status="failed", reason="it was | not to be")
    return sweep


def test_the_best_is_by_validation_and_of_trials_that_ended(sweep):
    result = report.write(sweep)
    assert result["best"] == setting(0.01, [64]) and result["score"] == 0.5
    assert (result["done"], result["pruned"], result["failed"]) == (3, 1, 1)
    assert result["repeated"] == []
    best = yaml.safe_load((sweep.plan.folder / "best.yaml").read_text())
    assert best == {"model": "BPR", "dataset": "checkerboard", **setting(0.01, [64]), "seed": 2020}
    table = pandas.read_csv(sweep.plan.folder / "results.csv")
    assert list(table["score"].fillna(0)) == [0.5, 0.4, 0.3, 0.9, 0.0]
    assert list(table["mlp_hidden_size"].map(json.loads)) == [[64], [64, 32], [64], [128], [64]]
    summary = (sweep.plan.folder / "summary.md").read_text()
    assert "5 trials: 3 done, 1 pruned, 1 failed. Searched by ray (random, asha)" in summary
    assert "it was | not to be" in summary


def test_with_repetitions_their_mean_on_the_validation_decides_never_the_test(sweep):
    """0.45 and 0.47 against 0.49 and 0.51: means 0.46 and 0.50, standard errors 0.01."""
    first, second = (Job(setting(*at)) for at in ((0.01, [64]), (0.02, [64, 32])))
    for job, scores, tests in (
        (first, (0.45, 0.47), (0.9, 0.9)),
        (second, (0.49, 0.51), (0.1, 0.3)),
    ):
        for seed, score, test in zip((2021, 2022), scores, tests):
            repeated = Job(job.setting, seed, True)
            note(sweep, repeated, score, test={"mrr@10": test})
    note(sweep, Job(first.setting, 2023, True), None, status="failed", reason="no luck")
    result = report.write(sweep)
    assert result["best"] == second.setting
    best, other = result["repeated"]
    assert best["setting"] == second.setting and best["seeds"] == 2
    assert best["score"] == pytest.approx((0.50, 0.01))
    assert best["test"]["mrr@10"] == pytest.approx((0.2, 0.1))
    assert other["score"] == pytest.approx((0.46, 0.01))
    summary = (sweep.plan.folder / "summary.md").read_text()
    assert "| 2 | 0.5000 ± 0.0100 | 0.2000 ± 0.1000 |" in summary
    seeds = pandas.read_csv(sweep.plan.folder / "seeds.csv")
    assert list(seeds["seed"]) == [2021, 2022, 2021, 2022, 2023]
    assert "test mrr@10" in seeds and "seed" not in pandas.read_csv(
        sweep.plan.folder / "results.csv"
    )


def test_a_lower_score_is_better_where_it_is(sweep):
    from dataclasses import replace

    sweep.plan = sweep.ledger.plan = replace(sweep.plan, bigger=False)
    assert report.write(sweep)["best"] == setting(0.002, [64])


def test_the_standard_error():
    mean, error = report.mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5 and error == pytest.approx(math.sqrt(5 / 3) / 2)  # stdev / sqrt(n)
    assert math.isnan(report.mean_and_error([1.0])[1])


def test_the_plots_show_every_trial_with_a_score(sweep):
    pytest.importorskip("matplotlib")
    report.write(sweep)
    page = (sweep.plan.folder / "plots.html").read_text()
    for title in ("Score against each key", "Parallel coordinates", "Learning curves"):
        assert title in page
    assert 'src="http' not in page  # it needs no network
    assert "learning_rate=0.02, mlp_hidden_size=[64, 32]" in page
    assert "[128]" in page  # a value of an earlier search file has its place, too
    for name in ("scores", "parallel", "curves"):
        head = (sweep.plan.folder / f"{name}.png").read_bytes()[:24]
        width, height = (int.from_bytes(head[at : at + 4], "big") for at in (16, 20))
        assert head.startswith(b"\x89PNG") and width > 400 and height > 300


def test_positions_on_the_axes(sweep):
    """A log-uniform key lies on its logarithms, a choice in the order of the file."""
    from recbole_adv.sweep.plots import _axis, _scaled

    records = [r for r in sweep.ledger.records() if r.score is not None]
    rate = _axis(sweep.plan, "learning_rate", records)
    assert rate.linear == pytest.approx([-2.0, math.log10(0.02), math.log10(0.002), -3.0])
    assert [word for _, word in rate.ticks][0] == "0.001"
    assert _scaled(rate.linear, rate)[0] == pytest.approx(1 / math.log10(20))
    size = _axis(sweep.plan, "mlp_hidden_size", records)
    assert size.at == [0.0, 1.0, 0.0, 2.0]
    assert [word for _, word in size.ticks] == ["[64]", "[64, 32]", "[128]"]
    layers = _axis(sweep.plan, "n_layers", records)
    assert _scaled(layers.linear, layers) == [0.5] * 4  # all the same
