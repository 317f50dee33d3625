"""Flags of the command that do not fit: one sentence each."""

import pytest

from recbole_adv.errors import ConfigError
from recbole_adv.sweep.options import Options

WRONG = {
    "--tool cannot be 'hyperpt'; did you mean hyperopt?": {"tool": "hyperpt"},
    "--algo cannot be 'anneal'; write one of exhaustive": {"algo": "anneal"},
    "--scheduler is for Ray; write --tool=ray": {"scheduler": "asha"},
    "--ray_address is for Ray; write --tool=ray": {"ray_address": "auto"},
    "--early_stop is for HyperTuning": {"tool": "ray", "early_stop": 3},
    "--seeds must be at least 0, got -1": {"seeds": -1},
    "--max_evals must be at least 1, got 0": {"max_evals": 0},
    "--gpus_per_trial must be at least 0, got nan": {"tool": "ray", "gpus_per_trial": float("nan")},
    "--reduction_factor must be above 1, got 1.0": {"tool": "ray", "reduction_factor": 1.0},
    "--scheduler=pbt changes the settings itself, got --algo=bayes": {
        "tool": "ray",
        "algo": "bayes",
        "scheduler": "pbt",
    },
}


@pytest.mark.parametrize("sentence", WRONG)
def test_wrong_flags(sentence):
    with pytest.raises(ConfigError) as error:
        Options(**WRONG[sentence])
    assert str(error.value).startswith(sentence)


def test_both_tools_know_both_names_of_an_algorithm():
    assert Options(algo="grid").search == Options(tool="ray", algo="exhaustive").search == "grid"
    assert Options(algo="hyperopt").search == Options(tool="ray", algo="bayes").search == "tpe"
