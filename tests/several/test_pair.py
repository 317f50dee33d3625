"""Two processes on one machine: what they hold, read and score, against each other and against one process."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from recbole_adv import checkpoint, run_recbole_adv
from recbole_adv.errors import CheckpointError
from recbole_adv.options import technique_names

_spec = importlib.util.spec_from_file_location("checks", Path(__file__).with_name("checks.py"))
checks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(checks)

REFUSED = {
    "NCLTrainer": "NCL is trained by a loop of its own.*got 2 processes",
    "TraditionalTrainer": "Pop is not trained by gradient descent.*got 2 processes",
    "ema of buffers": "ema_buffers: average .* got 2 processes; write copy",
}


def test_collectives(pair):
    for rank, found in enumerate(pair["collectives"]):
        assert found["from_first"] == {"who": 0}
        assert found["mean"].tolist() == [0.5, 0.5]
        assert found["gathered"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert found["joined"].tolist() == [1, 1]
        assert found["nothing"] is None
        assert found["seed"] == 7 + rank * 10_000_019


def test_gradients_are_means_and_none_stays_none(pair):
    for both, one, none, sparse, sparse_of_one, mixed in pair["gradients"]:
        assert torch.equal(both, torch.full((4, 2), 2.0))  # of 1 and 3
        assert torch.equal(one, torch.full((4, 2), 4.0))  # of none and 8
        assert none is None
        assert sparse.is_sparse and sparse_of_one.is_sparse
        # Rows 0 and 3 of the first process, row 0 twice of the second.
        assert sparse.to_dense().tolist() == [[4, 4], [0, 0], [0, 0], [2, 2]]
        assert sparse_of_one.to_dense().tolist() == [[0, 0], [1, 1], [2, 2], [0, 0]]
        assert mixed.tolist() == [[0.5, 0.5], [3.5, 3.5], [0.5, 0.5], [0.5, 0.5]]


def test_buffers_and_moves(pair):
    for found in pair["buffers"]:
        assert found["0.running_mean"].tolist() == [0.5]
        assert found["1.counter"].tolist() == [5]
        assert found["moved"].tolist() == [[1.0]]
        assert found["seen"][:3].tolist() == [8.0, 5.0, 8.0] and found["seen"][3].isnan()


@pytest.mark.parametrize("loader", ["recbole", "tensor"])
def test_each_row_is_read_once_in_an_epoch(loader, pair):
    first, second = (found[loader] for found in pair["rows_read"])
    for epoch in range(2):
        rows = torch.cat([first["rows"][epoch], second["rows"][epoch]])
        assert torch.equal(rows.sort().values, torch.arange(960))
    assert not torch.equal(first["rows"][0], first["rows"][1])
    assert first["sizes"] == [64] * 7 + [36] and second["sizes"] == [63] * 7 + [35]
    assert first["length"] == second["length"] == 8
    assert not torch.equal(first["negatives"][:63], second["negatives"])


@pytest.mark.parametrize("case", checks.EQUAL)
def test_two_processes_train_what_one_does(case, pair):
    """On the same global batches, the last of which cannot be shared evenly."""
    model, settings = checks.EQUAL[case]
    one = checks.trained(model, epochs=2, **{**checks.STATIC, **checks.UNEVEN, **settings})
    for found in (found[case] for found in pair["equal"]):
        for name, value in one.model.state_dict().items():
            torch.testing.assert_close(found["weights"][name], value, rtol=1e-5, atol=1e-6)
        assert found["loss"] == pytest.approx(one.train_loss_dict, rel=1e-5)


@pytest.mark.parametrize("case", checks.RUNS)
def test_the_model_is_the_same_on_both(case, pair):
    first, second = (found[case] for found in pair["same_everywhere"])
    if case in REFUSED:
        assert re.search(REFUSED[case], first) and first == second
    else:
        assert len(first) == 64 and first == second


def test_a_scale_falls_on_both_where_one_overflows(pair):
    first, second = pair["same_everywhere"]
    assert first["overflow"] == second["overflow"]
    assert first["scale"] == second["scale"] < 65536


@pytest.mark.parametrize("technique", technique_names())
def test_the_model_is_the_same_on_both_with_a_technique(technique, pair):
    first, second = (found[technique] for found in pair["techniques"])
    assert len(first) == 2 * 64 and first == second


def test_a_loss_that_is_nan_on_one_takes_both_back(pair):
    first, second = pair["rolled_back"]
    assert first == second
    assert first["counted"]["rollback"] == 1 and first["factor"] == 0.5


def test_a_move_in_closed_form_is_that_of_one_process(pair):
    alone = checks.closed_form()
    assert alone["weight"].max() - alone["weight"].min() > 0.01
    for found in pair["closed_form"]:
        for name, value in alone.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=0)


def test_evaluations_give_what_one_process_gives(pair):
    alone = checks.evaluations()
    for case in checks.EVALUATIONS:
        first, second = (found[case] for found in pair["evaluations"])
        assert first == second
        if not case.startswith("sampled"):  # whose candidates are drawn
            assert first == alone[case], case


def test_a_run_of_two_processes_goes_on_exactly(pair):
    whole, halves = (pair["folder"] / name for name in ("whole", "halves"))
    states = [checkpoint.load(folder / "last.pth") for folder in (whole, halves)]
    for state in states:
        del state["config"]
    same(*states)
    first, second = states[0]["recbole_adv"]["processes"]
    assert not torch.equal(first["random"]["torch"], second["random"]["torch"])
    assert not torch.equal(first["streams"]["max"]["cpu"], second["streams"]["max"]["cpu"])
    for results in pair["resumed"]:
        without = [{k: v for k, v in run.items() if k != "run_dir"} for run in results]
        assert without[0] == without[1]
    assert pair["resumed"][0] == pair["resumed"][1]


def test_one_of_them_writes(pair):
    folder = pair["folder"] / "whole"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1, 2, 3]
    events = [f for f in (folder / "tensorboard").iterdir() if f.is_file()]
    assert len(events) == 1
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "environments.inter", "last.pth", "metrics.jsonl", "model.pth"),
        *("result.json", "run.log", "split.json", "tensorboard"),
    }


def test_another_number_of_processes_cannot_go_on(pair):
    with pytest.raises(CheckpointError, match="written by a run of 2 processes, got 1; .*nproc=2"):
        run_recbole_adv(resume=str(pair["folder"] / "whole"), config_dict={"epochs": 5})


def same(a, b):
    """Two trees of data are equal bit for bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        [same(a[key], b[key]) for key in a]
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        [same(x, y) for x, y in zip(a, b)]
    elif hasattr(a, "tobytes"):
        assert a.tobytes() == b.tobytes()
    else:
        assert a == b or (a != a and b != b)
