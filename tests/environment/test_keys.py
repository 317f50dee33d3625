"""Nonsense in the keys of environments is refused before data are loaded."""

from __future__ import annotations

import pytest

from recbole_adv import Config
from recbole_adv.errors import ConfigError


@pytest.mark.parametrize(
    "model, keys, sentence",
    [
        ("GroupDRO", {"environment_source": "least_loss"}, "environment_source must be one of"),
        ("GroupDRO", {"environment_source": "column"}, "got environment_column None"),
        (
            "GroupDRO",
            {"environment_column": "age"},
            "is of environment_source column, got 'item_pop",
        ),
        ("GroupDRO", {"environment_features": ["age"]}, "is of environment_source kmeans, got"),
        ("GroupDRO", {"environment_interval": 2}, "is of environment_source loss or gradient, got"),
        ("GroupDRO", {"environment_file": "x"}, "is of environment_source inferred, got"),
        ("GroupDRO", {"environment_source": "inferred"}, "got environment_file None"),
        (
            "GroupDRO",
            {"environment_source": "inferred", "environment_file": "no/such"},
            "there is no file 'no/such', which environment_file names",
        ),
        (
            "IRM",
            {"environment_source": "kmeans", "environment_features": []},
            "a list of different names of columns, got",
        ),
        (
            "IRM",
            {"environment_source": "kmeans", "environment_features": ["age", "age"]},
            "a list of different names of columns, got",
        ),
        (
            "VREx",
            {"environment_source": "column", "environment_column": "age"}
            | {"environment_balanced": True},
            "environment_balanced cannot be had of environment_source 'column'",
        ),
        ("BPR", {"environment_features": ["age"]}, "which BPR has not, got"),
        (
            "InvPref",
            {"environment_balanced": True, "official_ties": True},
            "official_ties puts every row where its loss is least",
        ),
    ],
)
def test_refused(model, keys, sentence, settings_of):
    with pytest.raises(ConfigError, match=sentence):
        Config(model, "checkerboard", config_dict=settings_of(model, **keys))


def test_invpref_may_be_balanced(tiny):
    keys = {"cluster_interval": 1, "train_neg_sample_args": None, "environment_balanced": True}
    run = tiny("InvPref", n_environments=3, epochs=2, **keys)
    run.fit(saved=False)
    counts = run.model.environments.counts()
    assert int(counts.max() - counts.min()) <= 1
