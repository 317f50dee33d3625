"""A clean command line, a temporary working directory, and tiny runs on the packaged data sets."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

DATA = Path(__file__).resolve().parent.parent / "dataset"

# Small, deterministic and quiet; a test overrides what it is about.
SMALL = {
    "data_path": str(DATA),
    "show_progress": False,
    "state": "error",
    "epochs": 2,
    "train_batch_size": 256,
    "eval_batch_size": 4096,
    "learning_rate": 0.01,
    "embedding_size": 8,
    "use_gpu": False,
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
}
SEQUENTIAL = {
    "MAX_ITEM_LIST_LENGTH": 5,
    "hidden_size": 16,
    "inner_size": 16,
    "n_layers": 1,
    "train_neg_sample_args": None,
}
OF_MODEL = {
    "SASRec": SEQUENTIAL,
    "GRU4Rec": {
        "MAX_ITEM_LIST_LENGTH": 5,
        "hidden_size": 16,
        "num_layers": 1,
        "train_neg_sample_args": None,
    },
    "DeepFM": {
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
        "metrics": ["Recall", "MRR"],
        "valid_metric": "MRR@10",
        "eval_args": {"mode": "full"},
        "mlp_hidden_size": [16],
        "load_col": {
            "inter": ["user_id", "item_id"],
            "user": ["user_id", "age_group"],
            "item": ["item_id", "shape"],
        },
    },
    "NeuMF": {"mlp_hidden_size": [16]},
    "CKE": {
        "load_col": {
            "inter": ["user_id", "item_id", "timestamp"],
            "kg": ["head_id", "relation_id", "tail_id"],
            "link": ["item_id", "entity_id"],
        },
        "kg_embedding_size": 8,
    },
}


@pytest.fixture(autouse=True)
def clean_process(monkeypatch, tmp_path):
    """RecBole's Config reads sys.argv and its loggers and trainers write into the directory."""
    monkeypatch.setattr("sys.argv", ["test"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    torch.set_num_threads(1)
    torch.autograd.set_detect_anomaly(False)
    # A run's log level is the whole process's.
    logging.disable(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)


class Tiny:
    """Everything of one tiny run, built as ``run_recbole_adv`` builds it."""

    def __init__(self, model, dataset="checkerboard", **settings):
        from recbole_adv import Config
        from recbole_adv.quick_start import _data_and_model
        from recbole_adv.trainer import trainer_class

        self.config = Config(model, dataset, config_dict=tiny_settings(model, **settings))
        built = _data_and_model(self.config)
        self.dataset, self.train, self.valid, self.test, self.model = built
        self.trainer = trainer_class(self.config.model_class)(self.config, self.model)

    def fit(self, **arguments):
        """Train; returns the trainer."""
        self.trainer.fit(self.train, self.valid, **{"verbose": False, **arguments})
        return self.trainer

    def batch(self):
        """The first training batch, with its row index."""
        self.trainer._before_fit(self.train)
        return next(iter(self.train))


def tiny_settings(model, **settings):
    """The settings of a tiny run of a model, or of one over a backbone."""
    name = settings.get("backbone", model if isinstance(model, str) else model.__name__)
    return {**SMALL, **OF_MODEL.get(name, {}), **settings}


@pytest.fixture
def tiny():
    """``tiny(model, dataset, **settings)`` builds a :class:`Tiny`."""
    return Tiny


@pytest.fixture
def settings_of():
    """``settings_of(model, **settings)``: the settings alone."""
    return tiny_settings
