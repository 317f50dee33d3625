"""Leaks counted, dropped and masked, on parts that can be checked by eye."""

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_adv.data.leak_check import (
    among,
    drop_rows,
    find_leaks,
    known_pairs,
    later_rows,
    mask_pairs,
    pairs_of,
)
from recbole_adv.errors import ConfigError, DataError


class Part:
    """As much of RecBole's Dataset as is read; users and items below 10."""

    uid_field, iid_field, time_field = "user_id", "item_id", "timestamp"
    user_num = item_num = 10

    def __init__(self, *rows, history=None, files=None):
        self.config = {"benchmark_filename": files}
        columns = torch.tensor(rows).reshape(-1, 3).t()
        fields = dict(zip(("user_id", "item_id", "timestamp"), columns))
        if history is not None:
            self.item_list_length_field, self.item_id_list_field = "item_length", "item_id_list"
            fields["item_id_list"] = torch.tensor(history)
            fields["item_length"] = (fields["item_id_list"] > 0).sum(1)
        self.inter_feat = Interaction(fields)

    def __len__(self):
        return len(self.inter_feat)

    def copy(self, rows):
        part = Part()
        part.inter_feat = rows
        return part

    def id2token(self, field, i):
        return f"u{i}"


PARTS = {
    "train": Part((1, 1, 0), (1, 2, 1), (2, 3, 2), (2, 3, 8), (9, 9, 3)),
    "valid": Part((1, 3, 4), (2, 3, 5), (2, 4, 5)),
    "test": Part((1, 2, 6), (1, 3, 6), (2, 5, 7), (9, 9, 7), (9, 9, 9)),
    "test_2": Part((2, 5, 6), (1, 1, 7)),
}


def test_every_repeated_pair_is_counted():
    leaked, counts = find_leaks(PARTS)
    assert {name: mask.tolist() for name, mask in leaked.items()} == {
        "valid": [False, True, False],
        "test": [True, True, False, True, True],
        "test_2": [False, True],  # that it shares (2, 5) with the other test is no leak
    }
    assert [tuple(count.values()) for count in counts] == [
        ("valid", "train", 1, 3),
        ("test", "train", 3, 5),
        ("test", "valid", 1, 5),
        ("test_2", "train", 1, 2),
        ("test_2", "valid", 0, 2),
    ]


def test_dropping_leaves_no_leak():
    kept = drop_rows(PARTS, find_leaks(PARTS)[0])
    assert pairs_of(kept["test"]).tolist() == [25]
    assert pairs_of(kept["valid"]).tolist() == [13, 24]
    assert kept["train"] is PARTS["train"]
    assert not any(count["rows"] for count in find_leaks(kept)[1])
    assert len(PARTS["test"]) == 5  # the parts that were given are as they were


def test_dropping_everything_is_refused():
    parts = {"train": PARTS["train"], "test": Part((1, 1, 9), (1, 2, 9))}
    with pytest.raises(DataError, match="no row of test: all 2 are .* drop_leaks: False"):
        drop_rows(parts, find_leaks(parts)[0])


def test_the_first_item_of_a_sequence_is_known_too():
    train = Part((1, 2, 1), (1, 4, 2), (2, 3, 1), history=[[7, 0], [7, 2], [5, 0]])
    assert known_pairs(train).tolist() == [12, 14, 17, 23, 25]
    assert known_pairs(PARTS["train"]).tolist() == [11, 12, 23, 99]


def test_every_item_of_a_sequence_that_a_file_holds_is_known_too():
    """Of user 1 there is one row, whose sequence nobody else holds; 0 fills up."""
    files = ["train", "valid", "test"]
    train = Part((1, 2, 1), (2, 3, 1), history=[[7, 5, 7, 4], [5, 0, 0, 0]], files=files)
    assert known_pairs(train).tolist() == [12, 14, 15, 17, 23, 25]
    test = Part((1, 5, 9), (1, 6, 9), (2, 4, 9))
    leaked, _ = find_leaks({"train": train, "test": test})
    assert leaked["test"].tolist() == [True, False, False]


def test_among_equals_the_plain_search():
    rng = np.random.default_rng(0)
    known, pairs = np.unique(rng.integers(0, 500, 200)), rng.integers(0, 600, 1000)
    assert among(pairs, known).tolist() == np.isin(pairs, known).tolist()
    assert not among(pairs, np.array([], dtype=np.int64)).any()


def test_later_rows_by_hand():
    """The earliest test row is at 6; training has rows at 0, 1, 2, 3 and, of user 2, at 8."""
    assert later_rows(PARTS["train"], PARTS["test"]) == {"rows": 1, "of_own_user": 1}
    test = Part((1, 5, 2), (2, 5, 9))
    assert later_rows(PARTS["train"], test) == {"rows": 2, "of_own_user": 0}
    without = Part((1, 5, 2))
    without.time_field = None
    assert later_rows(without, test) is None
    assert later_rows(PARTS["train"], Part()) is None


class Loader:
    """As much of RecBole's FullSortEvalDataLoader as is written to."""

    uid_field = "user_id"

    def __init__(self, history):
        self._dataset = PARTS["test"]
        self.uid2history_item = np.array([None] * 10)
        for user, items in history.items():
            self.uid2history_item[user] = torch.tensor(items, dtype=torch.int64)


def test_masking_adds_to_the_history():
    loader = Loader({1: [1], 2: [3, 4], 9: []})
    mask_pairs(loader, np.array([13, 12, 99, 99]), [2, 5])
    assert loader.uid2history_item[1].tolist() == [1, 2, 3]
    assert loader.uid2history_item[2].tolist() == [3, 4]
    assert loader.uid2history_item[9].tolist() == [9]


def test_masking_must_leave_a_full_list():
    """Of 9 items user 1 has 6 in his history; with two more masked, one is left for two ranks."""
    loader = Loader({1: [1, 4, 5, 6, 7, 8]})
    mask_pairs(loader, np.array([12]), [2])
    with pytest.raises(ConfigError, match="leaves 1 items to rank for user 'u1', .* topk 2"):
        mask_pairs(loader, np.array([13]), [2])
