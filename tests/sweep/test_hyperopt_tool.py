"""Sweeps by RecBole's HyperTuning, in real processes."""

import json
from pathlib import Path
from statistics import median

import pandas
import pytest
import yaml

from recbole_adv import run_recbole_adv
from recbole_adv.cli import main
from recbole_adv.errors import ConfigError, DataError, TrainingError
from recbole_adv.sweep import run_sweep
from recbole_adv.sweep.hyperopt_tool import _algorithm, _patience
from recbole_adv.sweep.space import Choice, Range, Space

pytest.importorskip("hyperopt")


def test_failures_are_recorded_and_end_nothing(noted, capsys):
    """One sweep: a trial that works, one that works when tried again, and four that cannot."""
    ways = ["fine", "once", "raise", "mistake", "diverge", "die"]
    result = run_sweep(
        noted.model,
        "checkerboard",
        config_dict=noted.settings,
        params_dict={"choice": {"how": ways}},
        sweep_dir="here",
    )
    table = pandas.read_csv("here/results.csv").set_index("how")
    assert (result["done"], result["failed"], len(table)) == (2, 4, 6)
    reasons = table["reason"]
    assert reasons["raise"] == "RuntimeError: no luck"
    assert reasons["mistake"] == "this key must not be so"
    assert reasons["diverge"].startswith("the loss of player 'min' is nan at its step")
    assert reasons["die"] == "its process was ended by SIGKILL (is there enough memory?)"
    attempts = {how: len([n for n in noted.lines(how) if n.endswith("built")]) for how in ways}
    assert attempts == {"fine": 1, "once": 2, "raise": 2, "mistake": 1, "diverge": 1, "die": 2}
    # A second attempt goes on from the checkpoint of the first epoch.
    assert [line.split()[-2:] for line in noted.lines("once")][1:] == [
        ["epoch", "0"],
        ["0.01", "built"],
        ["epoch", "1"],
    ]
    assert "RuntimeError: no luck" in Path("here/summary.md").read_text()
    assert "Traceback" in next(Path("here").glob("trials/*/error.txt")).read_text()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 6 and said[0].startswith("[1/6] done: mrr@10 0.")
    done = table.query("status == 'done'")["id"]
    assert not [file for name in done for file in Path(f"here/trials/{name}").glob("*.pth")]


def test_a_second_attempt_without_a_checkpoint_begins_anew(noted):
    """In the directory of the first one, of which nothing stays."""
    result = run_sweep(
        noted.model,
        "checkerboard",
        config_dict={**noted.settings, "checkpoint_interval": 0},
        params_dict={"choice": {"how": ["once"]}},
        sweep_dir="here",
    )
    assert result["done"] == 1
    built = [line.split()[-2:] for line in noted.lines("once")]
    assert built == [["0.01", "built"], ["epoch", "0"]] * 2 + [["epoch", "1"]]
    (file,) = Path("here").glob("trials/*/metrics.jsonl")
    assert [json.loads(line)["epoch"] for line in file.read_text().splitlines()] == [0, 1]


def test_a_sweep_from_the_command_line(noted, capsys):
    """Lists and dicts as values, seeds, and everything that is written."""
    Path("fixed.yaml").write_text(yaml.safe_dump({**noted.settings, "epochs": 3}))
    Path("search.yaml").write_text(
        "choice:\n  clip_grad_norm: [null, {max_norm: 1.0e-9}]\n  learner_betas: [[0.9, 0.99]]\n"
    )
    command = ["sweep", "-m", noted.model, "-d", "checkerboard", "--config_files=fixed.yaml"]
    command += ["--params_file=search.yaml", "--seeds=2", "--top=1", "--learning_rate=0.05"]
    assert main(command) == 0
    printed = json.loads(capsys.readouterr().out)
    folder = Path("sweeps/Noted-checkerboard")
    assert printed["sweep_dir"] == str(folder.absolute())
    assert printed["best"] == {"clip_grad_norm": None, "learner_betas": [0.9, 0.99]}

    best = yaml.safe_load((folder / "best.yaml").read_text())
    assert best["model"] == noted.model and best["learning_rate"] == 0.05 and best["seed"] == 2020
    again = run_recbole_adv(config_file_list=[str(folder / "best.yaml")])
    assert again["best_valid_score"] == printed["score"]

    table = pandas.read_csv(folder / "results.csv")
    assert list(table["clip_grad_norm"].fillna("")) == ["", '{"max_norm": 1e-09}']
    assert not [name for name in table if name.startswith("test")]
    seeds = pandas.read_csv(folder / "seeds.csv")
    assert list(seeds["seed"]) == [2021, 2022] and seeds["test recall@10"].notna().all()
    (repeated,) = printed["repeated"]
    mean, error = repeated["score"]
    a, b = seeds["score"]
    assert mean == pytest.approx((a + b) / 2) and error == pytest.approx(abs(a - b) / 2)
    assert f"{mean:.4f} ± {error:.4f}" in (folder / "summary.md").read_text()
    assert (folder / "plots.html").stat().st_size > 1e6
    assert len(list(folder.glob("seeds/*/model.pth"))) == 2

    built = len(noted.lines("fine"))
    assert main(command) == 0  # nothing is left to do
    assert len(noted.lines("fine")) == built
    assert json.loads(capsys.readouterr().out)["repeated"] == printed["repeated"]
    assert main([*command[:-1], "--learning_rate=0.1"]) == 2
    said = capsys.readouterr().err
    assert "holds a sweep with learning_rate: 0.05, got 0.1; write the same, or another" in said


def proposals(sweep, count, score):
    """What a search proposes, whose trials get these scores."""
    from hyperopt import Trials, fmin

    seen, grid = [], sweep.plan.space.grid() if sweep.options.search == "grid" else []

    def objective(codes):
        seen.append(sweep.plan.space.decode(codes))
        return -score(seen[-1])

    fmin(
        objective,
        sweep.plan.space.hyperopt(),
        algo=_algorithm(sweep, grid),
        max_evals=count,
        trials=Trials(),
        show_progressbar=False,
    )
    return seen


def test_an_exhaustive_search_sees_every_combination(sweep_of):
    """400 of them; RecBole's own draws at random and gives up after 1000 repetitions."""
    space = Space({"a": Choice(tuple(range(40))), "b": Range("quniform", 1.0, 10.0, 1.0)})
    sweep = sweep_of(space, algo="exhaustive")
    seen = proposals(sweep, 400, lambda setting: 0.0)
    assert seen == [{"a": a, "b": b} for a in range(40) for b in range(1, 11)]


@pytest.mark.parametrize("algo", ["random", "bayes"])
def test_a_search_proposes_the_same_when_it_is_started_again(algo, sweep_of):
    space = Space({"x": Range("uniform", 0.0, 1.0), "y": Choice(("a", "b", "c"))})
    sweep = sweep_of(space, algo=algo, max_evals=60)
    first, again = (proposals(sweep, 60, lambda s: -((s["x"] - 0.3) ** 2)) for _ in range(2))
    assert first == again
    assert len({setting["x"] for setting in first}) == 60
    # TPE comes nearer to the optimum; random search stays, in the median, 0.31 away.
    late = median(abs(setting["x"] - 0.3) for setting in first[30:])
    assert (late < 0.22) == (algo == "bayes")


def test_early_stopping_counts_trials_without_a_better_score():
    class Trials:
        def __init__(self, *losses):
            self.trials = [{"result": {"loss": x} if x is not None else {}} for x in losses]

    stop = _patience(2)
    assert not stop(Trials(0.5))[0] and not stop(Trials(0.5, 0.6))[0]
    assert not stop(Trials(0.5, 0.6, 0.4))[0] and not stop(Trials(None, None, None))[0]
    assert stop(Trials(0.5, 0.5, 0.6))[0] and stop(Trials(0.5, None, 0.6))[0]
    assert _patience(None) is None


def test_a_sweep_that_cannot_begin(noted, small):
    grid = {"choice": {"learning_rate": [0.1]}}
    with pytest.raises(
        ConfigError, match="a sweep needs scores of the validation, got eval_step 0"
    ):
        run_sweep("BPR", "checkerboard", config_dict=small(eval_step=0), params_dict=grid)
    no_valid = small(eval_args={"split": {"RS": [0.9, 0.0, 0.1]}})
    with pytest.raises(
        DataError, match="a sweep needs validation data, and 'checkerboard' has none"
    ):
        run_sweep("BPR", "checkerboard", config_dict=no_valid, params_dict=grid)
    with pytest.raises(
        TrainingError, match="no trial of 1 has a score; the first failed: this key"
    ):
        run_sweep(
            noted.model,
            "checkerboard",
            config_dict=noted.settings,
            params_dict={"choice": {"how": ["mistake"]}},
            sweep_dir="bad",
        )
    assert "this key must not be so" in Path("bad/summary.md").read_text()


def test_two_sweeps_do_not_share_a_directory(sweep_of):
    ledger = sweep_of(Space({"learning_rate": Choice((0.1,))})).ledger
    with ledger.opened():
        with pytest.raises(ConfigError, match="another sweep runs in"), ledger.opened():
            pass
    with ledger.opened():
        pass
