"""The commands as they are typed: what they write, and what they refuse in one sentence."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from recbole_adv.cli import main
from recbole_adv.robustness import run as robustness_run

PNG = b"\x89PNG\r\n\x1a\n"
PNGS = {"curves.png", "norms.png"}


def files_of(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def test_several_models_in_one_report(run_of, capsys):
    base, other = run_of("BPR"), run_of("LightGCN")
    before = {f: Path(f).read_bytes() for r in (base, other) for f in (f"{r}/model.pth",)}
    command = ["robustness", "--checkpoint", base, other, "--output", "both", "--seeds=2"]
    assert main([*command, "--attacks", "random,pgd", "--epsilon", "0.5", "2", "--steps=2"]) == 0
    shown = capsys.readouterr()
    assert files_of(Path("both")) == {"metrics.csv", "report.json", "report.md"} | PNGS
    assert Path("both/curves.png").read_bytes().startswith(PNG)
    text = Path("both/report.md").read_text()
    assert shown.out.startswith(text.strip()[:40]) and shown.out.strip().endswith("both")
    table = pd.read_csv("both/metrics.csv")
    assert len(table) == 2 * 2 * (1 + 2 * 2)
    assert set(table["attack"]) == {"none", "random", "pgd"}
    noise = table[table.attack == "random"]
    assert noise["delta_max"].tolist() == pytest.approx(noise["epsilon"].tolist())
    assert (table["delta_max"] <= table["epsilon"] + 1e-6).all()
    for column in ("ndcg@5", "averagepopularity@5", "giniindex@5", "itemcoverage@5"):
        assert table[column].between(0, 1000).all()
    report = json.loads(Path("both/report.json").read_text())
    summary, models = report["summary"], report["settings"]["models"]
    assert [model["model"] for model in models.values()] == ["BPR", "LightGCN"]
    for model in models.values():
        assert len(model["sha256"]) == 64
        for histogram in model["row_norms"].values():
            assert sum(histogram["share"]) == pytest.approx(1)
    assert [row["attack"] for row in summary] == ["random", "pgd"] * 2
    assert "clean_price" not in summary[0] and "clean_price" in summary[2]
    assert all(Path(file).read_bytes() == bytes_ for file, bytes_ in before.items())


def test_the_clean_figure_is_that_of_the_run(run_of, capsys):
    run = run_of("BPR")
    assert main(["robustness", "--checkpoint", run, "--attacks=random", "--output=out"]) == 0
    table = pd.read_csv("out/metrics.csv")
    tested = json.loads(Path(run, "result.json").read_text())["test_result"]
    assert set(table[table.attack == "none"]["ndcg@5"]) == {tested["ndcg@5"]}


def test_histories(run_of, capsys):
    run = run_of("SASRec")
    command = ["robustness", "--checkpoint", run, "--history", "random", "gradient", "--output=out"]
    assert main([*command, "--share=0.5", "--seeds=1"]) == 0
    table = pd.read_csv("out/metrics.csv")
    assert table["attack"].tolist() == ["none", "random", "gradient"]
    assert table["replaced"].tolist()[0] == 0 and table["replaced"].tolist()[1] > 0.3


def test_relative_epsilon_and_targets(run_of, capsys):
    run = run_of("BPR")
    flags = ["--attacks=fgsm", "--relative", "--epsilon=0.5", "--seeds=1", "--targets=item_embed"]
    assert main(["robustness", "--checkpoint", run, *flags, "--output=out"]) == 0
    table = pd.read_csv("out/metrics.csv")
    weight = torch.load(f"{run}/model.pth", weights_only=True)
    while "state_dict" not in weight:
        weight = next(iter(weight.values()))
    norm = weight["state_dict"]["item_embedding.weight"][1:].norm(dim=1).mean().item()
    assert table["delta_max"].tolist()[1] == pytest.approx(0.5 * norm, rel=1e-5)


def test_without_matplotlib_the_rest_is_written(run_of, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    command = ["robustness", "--checkpoint", run_of("BPR"), "--attacks=random", "--output=out"]
    assert main([*command, "--epsilon=1", "--seeds=1"]) == 0
    assert files_of(Path("out")) == {"metrics.csv", "report.json", "report.md"}
    assert "matplotlib is not installed" in caplog.text


def test_a_run_that_fails_leaves_nothing(run_of, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError("no more")

    monkeypatch.setattr(robustness_run, "write_report", fail)
    command = ["robustness", "--checkpoint", run_of("BPR"), "--attacks=random", "--output=out"]
    assert main([*command, "--epsilon=1", "--seeds=1"]) == 1
    assert "no more" in capsys.readouterr().err
    assert not list(Path().iterdir())


# --- what is refused ----------------------------------------------------------------------------

ON_BPR = "robustness --checkpoint BPR "
POISON = "poison -m BPR -d checkerboard --data_path=DATA "
LEAK = "leak-probe --checkpoint BPR --attribute "
REFUSED = {
    "attack misspelt": (ON_BPR + "--attacks fgms", "--attacks has no 'fgms'", "did you mean fgsm?"),
    "attack twice": (ON_BPR + "--attacks pgd pgd", "different names", "'pgd pgd'"),
    "epsilon negative": (ON_BPR + "--epsilon=-0.5", "--epsilon must be numbers above 0", "'-0.5'"),
    "epsilon zero": (ON_BPR + "--epsilon 0 1", "numbers above 0", "got '0'"),
    "epsilon a word": (ON_BPR + "--epsilon small", "--epsilon", "got 'small'"),
    "no seeds": (ON_BPR + "--seeds=0", "--seeds must be how many, at least 1", "got '0'"),
    "no steps": (ON_BPR + "--steps=0", "--steps must be a whole number of at least 1", "'0'"),
    "metric unknown": (ON_BPR + "--metric NDCG@7", "--metric must be one of", "ndcg@5", "'NDCG@7'"),
    "target regex": (ON_BPR + "--targets (", "--targets: '(' is no regular expression"),
    "target unknown": (ON_BPR + "--targets nothing", "--targets 'nothing'", "user_embedding"),
    "history of a general model": (ON_BPR + "--history random", "sequential", "BPR", "SASRec"),
    "share without history": (ON_BPR + "--share 0.5", "--share", "without --history"),
    "epsilon with history": (ON_BPR + "--history random --epsilon 1", "--epsilon", "leave it out"),
    "share above one": (
        "robustness --checkpoint SASRec --history random --share 1.5",
        *("--share must be shares above 0 and up to 1", "'1.5'"),
    ),
    "checkpoint missing": ("robustness --checkpoint nowhere", "nowhere", "check the path"),
    "checkpoint without configuration": (
        "robustness --checkpoint weights.pth",
        *("weights.pth", "no configuration"),
    ),
    "directory without checkpoint": (
        "robustness --checkpoint empty",
        *("there is no checkpoint in 'empty'", "path of a .pth file"),
    ),
    "the same run twice": ("robustness --checkpoint BPR BPR", "different runs"),
    "several runs, no output": ("robustness --checkpoint BPR SASRec", "write --output DIR"),
    "runs of different tests": (
        "robustness --checkpoint BPR LOO --output out",
        *("LOO was split and tested by eval_args", "'LS'", "and BPR by"),
    ),
    "output there": (ON_BPR + "--output empty", "'empty' is there already", "another --output"),
    "key misspelt": (ON_BPR + "--topkk=[5]", "'topkk'", "did you mean topk?"),
    "poison misspelt": (POISON + "--attacks bandwaggon", "'bandwaggon'", "did you mean bandwagon?"),
    "no target": (POISON + "--n_targets 0", "--n_targets must be a whole number", "got '0'"),
    "empty targets": (POISON + "--target_items ,", "--target_items must be different items", "[]"),
    "targets twice": (POISON + "--target_items i1 i1", "different items", "['i1', 'i1']"),
    "both kinds of targets": (POISON + "--target_items i1 --n_targets 2", "leave one out"),
    "target not in the data": (
        POISON + "--target_items i1 i999",
        "'checkerboard' has no item 'i999'",
    ),
    "share zero": (POISON + "--share 0", "--share must be shares of fake users above 0", "'0'"),
    "profile too small": (POISON + "--profile_size 2", "hold the 5 targets", "got 2 items"),
    "more targets than items": (POISON + "--n_targets 99", "at most the number of items, 60", "99"),
    "poison metric": (POISON + "--metric AUC", "--metric must be one of", "'AUC'"),
    "poison without model": ("poison -d checkerboard", "no model is given"),
    "attribute unknown": (
        LEAK + "age_gruop",
        "has no column 'age_gruop'",
        "did you mean age_group?",
    ),
    "attribute the user": (LEAK + "user_id", "has no column 'user_id'"),
    "attribute empty": (LEAK + ",", "--attribute must be different columns", "[]"),
    "bins": (LEAK + "age_group --bins=1", "--bins must be a whole number of at least 2", "'1'"),
}


@pytest.fixture
def here(run_of, tmp_path, settings_of):
    """Runs by short names, and files that are none."""
    shutil.copytree(run_of("BPR"), "BPR")
    shutil.copytree(run_of("SASRec"), "SASRec")
    loo = {"order": "TO", "split": {"LS": "valid_and_test"}, "mode": "full"}
    shutil.copytree(run_of("SASRec", eval_args=loo), "LOO")
    Path("empty").mkdir()
    torch.save({"state_dict": {}}, "weights.pth")
    return settings_of("BPR")["data_path"]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, here, capsys):
    command, *words = REFUSED[name]
    before = sorted(map(str, Path().rglob("*")))
    fast = ["--epochs=1"] if command.startswith("poison") else []
    assert main([*command.replace("DATA", here).split(), *fast]) == 2
    shown = capsys.readouterr().err
    *_, last = shown.splitlines()
    assert last.startswith("recbole-adv: ") and "Traceback" not in shown
    for word in words:
        assert word in last
    assert sorted(map(str, Path().rglob("*"))) == before
