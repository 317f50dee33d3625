"""Statistics of the parts, against numbers worked by hand."""

import math

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_adv.data.split_report import as_table, fingerprint_of, popularity_kl, statistics


class Part:
    """Four users and four items, and the padding."""

    uid_field, iid_field, user_num, item_num = "user_id", "item_id", 5, 5

    def __init__(self, *pairs):
        columns = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).t()
        self.inter_feat = Interaction(dict(zip(("user_id", "item_id"), columns)))

    def __len__(self):
        return len(self.inter_feat)


TRAIN = Part((1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 3))


def test_kl_by_hand():
    # p = (1/2, 1/2, 0, 0); q = (4, 2, 1, 1) / 8 after one is added to each.
    kl = 0.5 * math.log(0.5 / 0.5) + 0.5 * math.log(0.5 / 0.25)
    assert popularity_kl(np.array([1, 1, 0, 0]), np.array([3, 1, 0, 0])) == pytest.approx(kl)
    assert popularity_kl(np.array([2, 2, 2, 2]), np.zeros(4)) == pytest.approx(0)
    assert popularity_kl(np.array([7, 0, 0, 0]), np.zeros(4)) == pytest.approx(math.log(4))


def test_kl_of_a_sample_from_uniform_is_about_half_the_items_over_the_rows():
    rng = np.random.default_rng(0)
    samples = rng.multinomial(5000, np.full(200, 1 / 200), size=100)
    mean = np.mean([popularity_kl(sample, np.zeros(200)) for sample in samples])
    assert mean == pytest.approx(199 / 10_000, rel=0.05)


def test_statistics_by_hand():
    test = Part((1, 3), (2, 3), (4, 1), (4, 4), (3, 4))
    found = statistics({"train": TRAIN, "valid": Part(), "test": test})
    assert set(found) == {"train", "test"}  # valid is empty
    assert found["train"]["kl_train"] is None
    assert found["test"] == {
        "rows": 5,
        "users": 4,
        "of_users": 4,
        "items": 3,
        "of_items": 4,
        "coverage": 0.75,
        # p = (1, 0, 2, 2) / 5; training counts (3, 2, 1, 0), so q = (4, 3, 2, 1) / 10
        "kl_train": pytest.approx(
            0.2 * math.log(0.2 / 0.4) + 0.4 * math.log(0.4 / 0.2) + 0.4 * math.log(0.4 / 0.1)
        ),
        "kl_uniform": pytest.approx(0.2 * math.log(0.8) + 0.8 * math.log(1.6)),
        "cold_rows": 3,  # (4, 1), (4, 4), (3, 4): user 4 and item 4 are new
    }
    lines = as_table(found).splitlines()
    assert [line.split()[0] for line in lines] == ["rows", "train", "test"]
    assert lines[2].split() == ["test", "5", "4", "3", "0.750", "0.693", "0.331", "3"]


def test_the_fingerprint_is_that_of_the_pairs():
    def of(names, *pairs):
        part = Part(*pairs)
        part.field2id_token = {"user_id": np.array(names[0]), "item_id": np.array(names[1])}
        return fingerprint_of(part)

    names = [["[PAD]", "a", "b"], ["[PAD]", "p", "q"]]
    one = of(names, (1, 1), (2, 2))
    assert one == of(names, (2, 2), (1, 1))  # in another order
    other_numbers = [["[PAD]", "b", "a"], ["[PAD]", "q", "p"]]
    assert one == of(other_numbers, (2, 2), (1, 1))
    assert one != of(names, (1, 2), (2, 1))  # the same users, the same items
    assert one != of(names, (1, 1)) and one != of(names, (1, 1), (2, 2), (2, 2))
