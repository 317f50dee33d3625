"""Environments that one run writes and another reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recbole_adv import run_recbole_adv
from recbole_adv.environment.environment_file import read_environments, write_environments
from recbole_adv.errors import ConfigError, DataError


@pytest.fixture
def train(tiny):
    """checkerboard's training rows."""
    return tiny("BPR").train._dataset


def test_what_is_written_is_read(train, tmp_path):
    """Whatever the order of the rows, and under the names that the environments have."""
    environment = torch.arange(len(train.inter_feat)) % 3
    file = write_environments(tmp_path, train, environment)
    assert torch.equal(read_environments(str(file), train, None), environment)
    assert torch.equal(read_environments(str(tmp_path), train, 3), environment)
    head, *lines = file.read_text().splitlines()
    assert head == "user_id:token\titem_id:token\tenvironment:token"
    file.write_text("\n".join([head, *reversed(lines)]) + "\n")
    assert torch.equal(read_environments(str(file), train, 3), environment)
    named = [line[:-1] + "xyz"[int(line[-1])] for line in lines]
    file.write_text("\n".join([head, *named]) + "\n")
    assert torch.equal(read_environments(str(file), train, 3), environment)


def test_rows_of_one_user_and_item_keep_their_order(train, tmp_path):
    rows = train.inter_feat
    for field in (train.uid_field, train.iid_field):
        rows[field][:4] = rows[field][0]  # four rows of one pair
    environment = torch.zeros(len(rows), dtype=torch.int64)
    environment[1] = environment[3] = 1
    file = write_environments(tmp_path, train, environment)
    assert torch.equal(read_environments(str(file), train, 2), environment)


def test_ten_numbers_are_in_the_order_of_their_values(train, tmp_path):
    environment = torch.arange(len(train.inter_feat)) % 12
    file = write_environments(tmp_path, train, environment)
    assert torch.equal(read_environments(str(file), train, 12), environment)


def test_a_file_that_does_not_fit(train, tmp_path):
    n_rows = len(train.inter_feat)
    file = write_environments(tmp_path, train, torch.arange(n_rows) % 2)
    with pytest.raises(ConfigError, match="environments 0, 1, got n_environments 5; write .*: 2"):
        read_environments(str(file), train, 5)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-3]) + "\n")
    with pytest.raises(DataError, match=f"has {n_rows - 3} of the {n_rows} training rows"):
        read_environments(str(file), train, 2)
    file.write_text("\n".join([lines[0], *(line[:-1] + "1" for line in lines[1:])]) + "\n")
    with pytest.raises(ConfigError, match="into one environment, '1'"):
        read_environments(str(file), train, None)
    file.write_text("user_id:token\titem_id:token\n1\t1\n")
    with pytest.raises(DataError, match="must have the columns user_id, item_id, environment"):
        read_environments(str(file), train, None)


@pytest.mark.parametrize(
    "model, keys",
    [
        ("EIIL", {}),
        ("EIIL", {"inference": "one_shot", "max_start_epoch": 1, "one_shot_epochs": 1}),
        ("InvPref", {"cluster_interval": 1, "train_neg_sample_args": None}),
        ("VREx", {"environment_source": "loss"}),
    ],
)
def test_what_a_run_infers_another_trains_on(model, keys, settings_of, tiny):
    keys = {"n_environments": 2, "epochs": 3, **keys}
    first = run_recbole_adv(model, "checkerboard", config_dict=settings_of(model, **keys))
    file = Path(first["run_dir"]) / "environments.inter"
    assert len(file.read_text().splitlines()) == 1 + 960
    run = tiny(
        "GroupDRO",
        environment_source="inferred",
        environment_file=first["run_dir"],
        n_environments=None,
    )
    found = run.model.environments.environment
    tokens = [line.split("\t") for line in file.read_text().splitlines()[1:]]
    dataset, rows = run.dataset, run.train._dataset.inter_feat
    names = zip(
        dataset.id2token("user_id", rows["user_id"].numpy()),
        dataset.id2token("item_id", rows["item_id"].numpy()),
    )
    expected = {(u, i): int(e) for u, i, e in tokens}
    assert [expected[pair] for pair in names] == found.tolist()
    run.fit(saved=False)
