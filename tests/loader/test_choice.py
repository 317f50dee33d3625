"""When the tensor loader stands in, when it does not, and what is said then."""

import logging

import pytest
import torch
from recbole.data.dataloader import TrainDataLoader
from recbole.data.interaction import Interaction
from recbole.sampler import Sampler

from recbole_adv.errors import ConfigError
from recbole_adv.loader import training_loader
from recbole_adv.loader.choice import why_not
from recbole_adv.loader.tensor_loader import TensorLoader

CPU = torch.device("cpu")


class OwnLoader(TrainDataLoader):
    """A user's own."""


class OwnSampler(Sampler):
    """A user's own."""


def test_recboles_loader_is_left_alone(tiny):
    run = tiny("BPR", train_loader="recbole")
    assert run.trainer._before_fit(run.train) is run.train


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda x: setattr(x, "__class__", OwnLoader), "its class is OwnLoader"),
        (lambda x: setattr(x._sampler, "__class__", OwnSampler), "its sampler is OwnSampler"),
        (lambda x: x.__dict__.update(collate_fn=lambda i: i), "its collate_fn is not RecBole's"),
    ],
)
def test_a_users_own_is_read_as_it_is(change, reason, tiny, caplog):
    run = tiny("BPR", train_loader="tensor")
    change(run.train)
    with caplog.at_level(logging.INFO):
        assert training_loader(run.train, run.config, CPU) is run.train
    said = [r.getMessage() for r in caplog.records if "train_loader" in r.getMessage()]
    assert said == [f"train_loader: RecBole's loader is read, not tensors, because {reason}"]


def test_a_dataset_that_makes_its_rows_itself(tiny):
    run = tiny("BPR", train_loader="tensor")

    class Doubling(type(run.train._dataset)):
        def join(self, df):
            return super().join(Interaction({k: 2 * v for k, v in df.interaction.items()}))

    run.train._dataset.__class__ = Doubling
    assert why_not(run.train) == "Doubling makes its rows itself"


@pytest.mark.parametrize("transform", ["mask_itemseq", "inverse_itemseq"])
def test_transforms_are_left_to_recbole(transform, tiny):
    extra = {"transform": transform, "mask_ratio": 0.5}
    run = tiny("SASRec", train_loader="tensor", epochs=1, **extra)
    assert why_not(run.train) == f"transform is {transform}"
    run.fit(saved=False)  # and RecBole's loader reads the histories
    assert run.trainer.train_loss_dict[0] > 0


def test_a_fallback_trains_as_recboles_loader_does(tiny):
    """On sequences that are gathered when they are read: the same losses."""
    extra = {"transform": "inverse_itemseq", "epochs": 2, "hidden_dropout_prob": 0.0}
    losses = [tiny("SASRec", train_loader=kind, **extra).fit(saved=False).train_loss_dict
              for kind in ("recbole", "tensor")]  # fmt: skip
    assert losses[0] == losses[1]


def test_knowledge_graphs_keep_recboles_modes(tiny):
    run = tiny("CKE", train_loader="tensor")
    loader = run.trainer._before_fit(run.train)
    assert type(loader) is type(run.train) and loader is not run.train
    assert isinstance(loader.general_dataloader, TensorLoader)
    assert isinstance(loader.kg_dataloader, TensorLoader)
    assert isinstance(run.train.general_dataloader, TrainDataLoader)


def test_loaders_built_by_recbole_itself(tiny):
    """A user's script that calls RecBole's ``data_preparation`` has RecBole's samplers."""
    run = tiny("BPR", train_loader="recbole")
    assert type(run.train._sampler) is Sampler
    run.config["train_loader"] = "tensor"
    assert isinstance(training_loader(run.train, run.config, CPU), TensorLoader)


def test_saved_loaders(tiny, tmp_path):
    """RecBole's ``save_dataloaders`` pickles samplers and sequences of ours."""
    settings = {"train_loader": "tensor", "checkpoint_dir": str(tmp_path), "epochs": 1}
    for model in ("BPR", "SASRec"):
        first = tiny(model, **settings, save_dataloaders=True)
        (file,) = tmp_path.glob(f"*{model}*dataloader.pth")
        second = tiny(model, **settings, dataloaders_save_path=str(file))
        rows = [run.train._dataset.inter_feat for run in (first, second)]
        assert all(torch.equal(rows[0][name], rows[1][name]) for name in rows[0].columns)
        second.fit(saved=False)


def test_the_key_is_checked(tiny):
    with pytest.raises(ConfigError, match="train_loader must be one of recbole, tensor"):
        tiny("BPR", train_loader="fast")
    with pytest.raises(ConfigError, match="train_loader_memory must be a number >= 0"):
        tiny("BPR", train_loader_memory=-1)
