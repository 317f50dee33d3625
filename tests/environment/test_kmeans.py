"""k-means of features of rows, users and items, on blobs that are told apart by eye."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recbole_adv.environment.kmeans import feature_matrix
from recbole_adv.environment.source import environments_of
from recbole_adv.errors import ConfigError


class Rows(dict):
    """An Interaction with as much as is needed of one."""

    columns = property(lambda self: list(self))

    def __len__(self):
        return len(next(iter(self.values())))


class Data:
    """A dataset: users 1..6 with a place on the line, items 1..4 with a kind and a vector."""

    uid_field, iid_field, time_field = "user_id", "item_id", "timestamp"
    alias = {"user_id": np.array(["user_id", "uid"]), "item_id": np.array(["item_id", "iid"])}

    def __init__(self, preloaded=None):
        kinds = {"user_id": "token", "item_id": "token", "timestamp": "float", "place": "float"}
        kinds |= {"kind": "token", "genres": "token_seq", "vector": "float_seq"}
        self.field2type = {k: type("Kind", (), {"value": v}) for k, v in kinds.items()}
        self.inter_feat = Rows(
            user_id=torch.tensor([1, 2, 3, 4, 5, 6, 1, 4]),
            item_id=torch.tensor([1, 1, 2, 2, 3, 3, 4, 4]),
            timestamp=torch.tensor([0.0, 1, 0, 1, 100, 101, 100, 99]),
        )
        self.user_feat = Rows(
            user_id=torch.arange(7), place=torch.tensor([0.0, 1, 2, 1, 50, 51, 52])
        )
        self.item_feat = Rows(
            item_id=torch.arange(5),
            kind=torch.tensor([0, 1, 1, 2, 2]),
            genres=torch.tensor([[0, 0], [1, 2], [1, 0], [2, 0], [0, 0]]),
            vector=torch.tensor([[0.0, 0], [3, 3], [3, 4], [-3, -3], [-4, -3]]),
        )
        self._preloaded_weight = preloaded or {}

    def num(self, field):
        return {"user_id": 7, "item_id": 5, "kind": 3, "genres": 3}[field]


def parts(environment):
    """The rows of each environment, whatever its number."""
    return {
        tuple(np.flatnonzero(environment.numpy() == e).tolist()) for e in set(environment.tolist())
    }


@pytest.mark.parametrize(
    "features, expected",
    [
        (["timestamp"], {(0, 1, 2, 3), (4, 5, 6, 7)}),
        (["place"], {(0, 1, 2, 6), (3, 4, 5, 7)}),  # users 1 2 3 and 4 5 6
        (["kind"], {(0, 1, 2, 3), (4, 5, 6, 7)}),  # items 1 2 and 3 4
        (["vector"], {(0, 1, 2, 3), (4, 5, 6, 7)}),
        (["vector", "timestamp"], {(0, 1, 2, 3), (4, 5, 6, 7)}),
    ],
)
def test_of_rows_users_and_items(features, expected):
    found = environments_of(Data(), source="kmeans", n_environments=2, features=features, seed=1)
    assert parts(found) == expected


def test_of_embeddings_that_are_loaded_by_preload_weight():
    items = np.array([[0.0, 0], [1, 0], [9, 9], [1, 0], [9, 9]])
    users = np.array([[0.0], [1], [1], [1], [7], [7], [7]])
    data = Data({"iid": items, "uid": users})
    found = environments_of(data, source="kmeans", n_environments=2, features=["iid"])
    assert parts(found) == {(0, 1, 4, 5), (2, 3, 6, 7)}  # items 1 3 and 2 4
    found = environments_of(data, source="kmeans", n_environments=2, features=["uid"])
    assert parts(found) == {(0, 1, 2, 6), (3, 4, 5, 7)}
    with pytest.raises(ConfigError, match="'eid', which is none of .*vector, iid, uid"):
        environments_of(data, source="kmeans", n_environments=2, features=["eid"])


def test_features_by_hand():
    """Each feature's columns are standardised and share a variance of 1."""
    matrix = feature_matrix(Data(), ["timestamp", "genres"])
    time = Data().inter_feat["timestamp"].numpy()
    assert matrix[:, 0] == pytest.approx((time - time.mean()) / time.std(), abs=1e-6)
    # Item 1 has genres 1 and 2 in equal shares, 2 has 1, 3 has 2, and 4 none: no one-hot of padding.
    shares = np.repeat([[0.5, 0.5], [1, 0], [0, 1], [0, 0]], 2, axis=0)
    expected = (shares - shares.mean(0)) / shares.std(0) / np.sqrt(2)
    assert matrix[:, 1:] == pytest.approx(expected, abs=1e-6)
    assert matrix.shape == (8, 3)


def test_without_names_counts_and_time_are_the_features():
    matrix = feature_matrix(Data(), None)
    assert matrix.shape == (8, 2)  # every item has two rows: that column tells nothing
    counts = np.log([2, 1, 1, 2, 1, 1, 2, 2])
    assert matrix[:, 0] == pytest.approx((counts - counts.mean()) / counts.std(), abs=1e-6)


def test_balanced_clusters_are_equal():
    """Two rows of eight lie apart; balanced, two more of the nearest are with them."""
    data = Data()
    data.inter_feat["timestamp"] = torch.tensor([0.0, 1, 2, 3, 4, 5, 100, 101])
    asked = {"source": "kmeans", "n_environments": 2, "features": ["timestamp"]}
    assert parts(environments_of(data, **asked)) == {(0, 1, 2, 3, 4, 5), (6, 7)}
    assert parts(environments_of(data, **asked, balanced=True)) == {(0, 1, 2, 3), (4, 5, 6, 7)}


def test_the_seed_decides():
    data = Data()
    data.inter_feat["timestamp"] = torch.rand(8, generator=torch.Generator().manual_seed(0))
    asked = {"source": "kmeans", "n_environments": 3, "features": ["timestamp"]}
    first, second = (environments_of(data, seed=4, **asked) for _ in range(2))
    assert torch.equal(first, second)


def test_what_cannot_be_clustered():
    with pytest.raises(ConfigError, match="3 environments of 2 different rows"):
        environments_of(Data(), source="kmeans", n_environments=3, features=["kind"])
    with pytest.raises(ConfigError, match="got 'plcae'; did you mean place"):
        environments_of(Data(), source="kmeans", n_environments=2, features=["plcae"])
