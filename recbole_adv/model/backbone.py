"""Objectives that need no model of their own: they wrap any RecBole model."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import InputType
from torch import Tensor

from recbole_adv.environment import EnvironmentAssignment, environments_of
from recbole_adv.environment.revised import FIGURES, RevisedAssignment
from recbole_adv.errors import ConfigError
from recbole_adv.game.penalty import PenaltySchedule, Progress
from recbole_adv.model.row_reader import RowReader, Rows
from recbole_adv.objective.parts import total

_DELEGATED = ("calculate_kg_loss", "update_attentive_A", "device")


class BackboneRecommender(AbstractRecommender):
    """A recommender that scores as its ``backbone`` does and is trained by another objective.

    ``--model EIIL --backbone LightGCN``: the class takes ``type`` and ``input_type`` from the
    backbone's class, which is created from the same configuration; prediction is the backbone's. A
    subclass writes ``calculate_loss`` from :meth:`rows`.

    Attributes:
        backbone: the RecBole model.
        progress: how far training is; the trainer keeps it up to date.

    Raises:
        ConfigError: for a backbone whose rows cannot be read.
    """

    backbone_class: ClassVar[type | None] = None
    needs_row_index = True
    penalty: PenaltySchedule | None = None
    _over: ClassVar[dict[tuple[type, type], type]] = {}

    @classmethod
    def over(cls, backbone_class: type) -> type:
        """This class with the ``type`` and ``input_type`` of ``backbone_class``, made once."""
        key = (cls, backbone_class)
        if key not in cls._over:
            if issubclass(backbone_class, BackboneRecommender):
                raise ConfigError(
                    f"backbone must be a model that scores by itself, got {backbone_class.__name__}; "
                    "write BPR or LightGCN"
                )
            own = {"backbone_class": backbone_class, "type": backbone_class.type}
            if hasattr(backbone_class, "input_type"):
                own["input_type"] = backbone_class.input_type
            own |= {"written_class": cls, "__module__": cls.__module__, "__doc__": cls.__doc__}
            cls._over[key] = type(cls.__name__, (cls,), own)
        return cls._over[key]

    def __new__(cls, config=None, dataset=None):
        # RecBole's get_model gives the class as it was written; Config knows the backbone. A copy
        # is made of the right class already, and without arguments.
        if cls.backbone_class is None and config is not None:
            cls = config.model_class
        return super().__new__(cls)

    def __init__(self, config, dataset):
        super().__init__()
        if self.backbone_class.calculate_loss is AbstractRecommender.calculate_loss:
            raise ConfigError(
                f"backbone {self.backbone_class.__name__} has no calculate_loss of its own; choose "
                "a backbone such as BPR, LightGCN, NeuMF, SASRec, DeepFM or CKE"
            )
        self.backbone = self.backbone_class(config, dataset)
        self.USER_ID, self.ITEM_ID = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
        self.INTER_IDX = config["INTER_IDX_FIELD"]
        self._reader = RowReader(self.backbone, _times(config))
        self.progress = Progress()

    def rows(self, interaction) -> tuple[Any, Rows]:
        """The backbone's own loss on a batch, and its training rows."""
        n_rows = interaction[self.ITEM_ID].shape[0]
        loss, rows = self._reader.read(self.backbone.calculate_loss, interaction, n_rows)
        index = interaction[self.INTER_IDX][: len(rows.loss)]
        environments = getattr(self, "environments", None)
        if isinstance(environments, RevisedAssignment):
            environments.see(index, rows.loss, rows.gradient)
        return loss, Rows(rows.loss, rows.gradient, index)

    def before_epoch(self, epoch: int, train_data) -> None:
        """Revise the environments where they follow the training."""
        environments = getattr(self, "environments", None)
        if isinstance(environments, RevisedAssignment):
            environments.revise(epoch)

    def inferred_environments(self) -> Tensor | None:
        """The environment of each training row [N] where it is known only after the training."""
        environments = getattr(self, "environments", None)
        if isinstance(environments, RevisedAssignment):
            return environments.environment
        return None

    @staticmethod
    def with_risk(loss: Any, rows: Rows, risk: Tensor) -> Tensor:
        """The backbone's loss with ``risk`` in the place of the mean over rows.

        Regularisation and other terms of the backbone stay as they are.
        """
        return total(loss) - rows.loss.mean() + risk

    def penalty_switches(self) -> bool:
        """Whether the optimizer is to be made anew before the next step."""
        return self.penalty is not None and self.penalty.switches_at(self.progress)

    def predict(self, interaction):
        return self.backbone.predict(interaction)

    def full_sort_predict(self, interaction):
        return self.backbone.full_sort_predict(interaction)

    def other_parameter(self):
        return self.backbone.other_parameter()

    def load_other_parameter(self, para):
        self.backbone.load_other_parameter(para)

    def __getattr__(self, name: str):
        if name in _DELEGATED:
            return getattr(super().__getattr__("backbone"), name)
        return super().__getattr__(name)


def _times(config) -> int:
    """How many rows RecBole lays out for each positive."""
    sampling = config["train_neg_sample_args"]
    if sampling["distribution"] == "none" or sampling["sample_num"] == "none":
        return 1
    pointwise = config["MODEL_INPUT_TYPE"] == InputType.POINTWISE
    return sampling["sample_num"] + int(pointwise)


def assignment_of(config, dataset) -> EnvironmentAssignment:
    """The environments of the training rows, as ``environment_source`` and its kin say."""
    source, balanced = config["environment_source"], bool(config["environment_balanced"])
    environment = environments_of(
        dataset,
        source="random" if source in FIGURES else source,
        n_environments=config["n_environments"],
        column=config["environment_column"],
        seed=config["seed"],
        balanced=balanced,
        features=config["environment_features"],
        file=config["environment_file"],
    )
    n_environments = int(environment.max()) + 1
    if source in FIGURES:
        interval = config["environment_interval"]
        keys = {"figure": source, "interval": interval, "balanced": balanced}
        return RevisedAssignment(n_environments, environment, **keys)
    return EnvironmentAssignment(len(environment), n_environments, environment)


def penalty_of(config) -> PenaltySchedule:
    """The penalty's weight, as ``penalty_weight`` and its kin say."""
    return PenaltySchedule(
        kind=config["penalty_schedule"],
        weight=config["penalty_weight"],
        initial=config["penalty_initial"],
        start=config["penalty_start"],
        stop=config["penalty_stop"],
        unit=config["penalty_unit"],
        reset_optimizer=config["penalty_reset_optimizer"],
    )


def seeded(config, build):
    """``build()`` on random numbers of its own, so that the backbone's stay what they are alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config["seed"])
        return build()
