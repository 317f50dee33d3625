"""Which runs are one method, how methods are called, and which can be compared."""

import json

import pytest

from recbole_adv.report.methods import arenas_of, methods_of
from recbole_adv.report.runs import read_runs


def methods(*folders):
    return methods_of(read_runs(folders)[0])


def test_runs_that_differ_by_seed_and_by_what_changes_no_result_are_one_method(run):
    found, notes = methods(
        run("a", {"mrr@10": 0.1}, seed=1, state="info"),
        run("b", {"mrr@10": 0.1}, seed=2, save_user_metrics=True, data_path="elsewhere"),
        run("c", {"mrr@10": 0.1}, seed=1, learning_rate=0.1),
    )
    assert [[r.seed for r in method.runs] for method in found] == [[1, 2], [1]] and not notes


def test_a_run_that_is_there_twice_counts_once_and_the_tested_one_first(run):
    found, notes = methods(run("a"), run("b", {"mrr@10": 0.1}), run("c", {"mrr@10": 0.3}))
    (method,) = found
    assert method.values("mrr@10") == {1: 0.1} and len(method.runs) == 1
    assert len(notes) == 2 and all("is left out" in note for note in notes)


def test_labels(run):
    def labels(*settings):
        folders = [run(f"r{k}", **each) for k, each in enumerate(settings)]
        return [method.label for method in methods(*folders)[0]]

    assert labels({}, {"model": "EIIL"}) == ["BPR", "EIIL"]
    attack = {"techniques": ["embedding_attack"], "embedding_attack_preset": "fgm"}
    assert labels({}, attack) == ["BPR", "BPR + embedding_attack, preset=fgm"]
    assert labels({"epochs": 3}, {"epochs": 5}) == ["BPR, epochs=3", "BPR, epochs=5"]
    long = {"numerical_features": ["a_long_name", "another_long_name", "and_one_more_long_name"]}
    assert labels({}, long, {"model": "FM"}) == ["BPR (1)", "BPR (2)", "FM"]
    assert labels({"model": "my/file.py:Mine"}) == ["Mine"]


@pytest.mark.parametrize(
    "other",
    [
        {"dataset": "another"},
        {"print_of": "two"},  # other test pairs
        {"eval_args": {"mode": "uni100"}},
        {"eval_args": {"mode": {"valid": "full", "test": "pop50"}}},
        {"test_pool": "pool.inter"},
        {"mask_leaks": True},
    ],
    ids=str,
)
def test_other_tests_are_not_compared(other, run):
    found, _ = methods(run("a", {"mrr@10": 0.1}), run("b", {"mrr@10": 0.2}, **other))
    assert len(arenas_of(found)) == 2


def test_what_says_the_default_is_the_same_test(run):
    given = {"eval_args": {"mode": {"valid": "uni100", "test": "full"}}, "mask_leaks": False}
    found, _ = methods(run("a", {"mrr@10": 0.1}), run("b", {"mrr@10": 0.2}, **given))
    assert len(arenas_of(found)) == 1


def test_methods_without_a_common_metric_are_not_compared(run):
    found, _ = methods(run("a", {"mrr@10": 0.1}), run("b", {"recall@5": 0.2}, topk=[5]))
    assert len(arenas_of(found)) == 2


def test_a_split_for_each_seed_is_compared_seed_by_seed(run):
    folders = [
        run(f"{epochs}-{seed}", {"mrr@10": 0.1}, seed=seed, epochs=epochs, print_of=f"of {seed}")
        for epochs in (1, 2)
        for seed in (1, 2)
    ]
    (arena,) = arenas_of(methods(*folders)[0])
    assert len(arena.methods) == 2
    other = run("other", {"mrr@10": 0.1}, seed=3, epochs=3, print_of="of 3")
    assert len(arenas_of(methods(*folders, other)[0])) == 2  # nobody else was tested on that


def test_runs_of_an_older_version_are_told_apart_by_their_parts(run):
    folders = [run("a", {"mrr@10": 0.1}), run("b", {"mrr@10": 0.1}, epochs=9)]
    for folder, rows in zip(folders, (5, 6)):
        split = {"parts": {"test": {"rows": rows}}}
        (folder / "split.json").write_text(json.dumps(split))
    assert len(arenas_of(methods(*folders)[0])) == 2
