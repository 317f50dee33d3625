"""A trained model with its data, ready to be evaluated, its gradient taken, and put back."""

from __future__ import annotations

import hashlib
import random
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader import KnowledgeBasedDataLoader
from recbole.utils import EvaluatorType, KGDataLoaderState
from torch import Tensor, nn

from recbole_adv import checkpoint
from recbole_adv.config import Config
from recbole_adv.data.check import check_dataset
from recbole_adv.errors import CheckpointError, ConfigError
from recbole_adv.model_state import clear_caches, drawing_from, random_state, traceless
from recbole_adv.objective.parts import total
from recbole_adv.prepared_run import data_and_model
from recbole_adv.resumption import resumed_config
from recbole_adv.trainer import trainer_class


def checkpoint_of(path: str | Path) -> Path:
    """The best model of a run's directory, or the file itself."""
    file = Path(path)
    if not file.is_dir():
        return file
    for name in ("model.pth", "last.pth"):
        if (file / name).is_file():
            return file / name
    raise CheckpointError(
        f"there is no checkpoint in {str(file)!r}; write a run's directory or the path of a .pth file"
    )


def names_of(paths: Sequence[str | Path]) -> list[str]:
    """A short name for each run: its directory's, or the whole path where two are the same."""
    short = [file.name if file.is_dir() else file.stem for file in map(Path, paths)]
    return [name if short.count(name) == 1 else str(path) for name, path in zip(short, paths)]


def configuration_of(path: str | Path, settings: Sequence[str], given: Mapping[str, Any]) -> Config:
    """The configuration in a checkpoint, changed by ``given`` and by ``--key=value`` in settings.

    Techniques are left out: they belong to training. Raises before any data is loaded.
    """
    file = str(checkpoint_of(path))
    off = {"techniques": [], "max_techniques": [], "show_progress": False, "state": "warning"}
    return resumed_config(file, None, {**off, **given}, settings)


@dataclass(eq=False)
class Trained:
    """A model as a checkpoint holds it, with the loaders it was trained and is tested on.

    Attributes:
        name: for tables and plots.
        trainer: evaluates; nothing is trained. Its first player's loss is the model's.
        train_data: the training loader; test_data: what is evaluated.
        parts: the data sets of the parts by name, ``train`` first.
    """

    name: str
    config: Any
    model: nn.Module
    trainer: Any
    train_data: Any
    valid_data: Any
    test_data: Any
    parts: dict[str, Any]

    @property
    def player(self):
        """Who minimises the recommender's loss."""
        return self.trainer.players[0]

    def evaluate(self, numbers: Mapping[str, Any]) -> dict[str, float]:
        """Metrics on the test data; random numbers are drawn from ``numbers`` on.

        What the model keeps from one evaluation to the next is forgotten before and after.
        """
        clear_caches(self.model)
        try:
            with drawing_from(dict(numbers)), traceless(self.model):
                return self.trainer.evaluate(self.test_data, load_best_model=False)
        finally:
            clear_caches(self.model)

    def mean_gradient(
        self, parameters: Sequence[nn.Parameter], seed: int
    ) -> tuple[float, list[Tensor]]:
        """The training loss and its gradient, both means over the training rows.

        One pass over the training data at the weights of this moment, without dropout, the batches
        and negatives being those of the seed; ``.grad`` stays as it is.
        """
        sums = [torch.zeros_like(p) for p in parameters]
        loss_sum, n_rows = torch.zeros((), dtype=torch.float64), 0
        with traceless(self.model), cudnn_off(self.model), self._batches(seed) as batches:
            for batch in batches:
                loss = total(self.player.loss(batch))
                found = torch.autograd.grad(loss, parameters, allow_unused=True)
                n_rows += len(batch)
                loss_sum = loss_sum.to(loss.device) + loss.detach().double() * len(batch)
                for added, gradient in zip(sums, found):
                    if gradient is not None:
                        added.add_(gradient, alpha=len(batch))
        clear_caches(self.model)
        return float(loss_sum) / n_rows, [added / n_rows for added in sums]

    def mean_loss(self, seed: int) -> float:
        """The training loss alone, as in :meth:`mean_gradient`."""
        loss_sum, n_rows = torch.zeros((), dtype=torch.float64), 0
        with torch.no_grad(), traceless(self.model), self._batches(seed) as batches:
            for batch in batches:
                loss = total(self.player.loss(batch))
                loss_sum = loss_sum.to(loss.device) + loss.double() * len(batch)
                n_rows += len(batch)
        clear_caches(self.model)
        return float(loss_sum) / n_rows

    @contextmanager
    def _batches(self, seed: int) -> Iterator[Iterator[Any]]:
        """The training batches of a seed; outside, the random numbers go on as if none was drawn."""
        loader, loaders = self.train_data, [self.train_data]
        if isinstance(loader, KnowledgeBasedDataLoader):
            loader.set_mode(self._triples())
            loaders = [loader.general_dataloader, loader.kg_dataloader]
        for each in loaders:
            each.generator.manual_seed(seed)
        clear_caches(self.model)
        with drawing_from(random_state()):
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            self.model.train()  # SGL draws its graphs here
            self.model.eval()
            yield (batch.to(self.trainer.device) for batch in loader)

    def _triples(self) -> KGDataLoaderState:
        """Whether ``calculate_loss`` reads triples of a knowledge graph too, as KGTrainer says."""
        steps = [getattr(self.trainer, f"train_{kind}_step", 1) or 0 for kind in ("rec", "kg")]
        return KGDataLoaderState.RSKG if min(steps) <= 0 else KGDataLoaderState.RS

    def digest(self) -> str:
        """The same for the same state_dict, bit for bit."""
        digest = hashlib.sha256()
        for name, value in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()


@contextmanager
def cudnn_off(model: nn.Module) -> Iterator[None]:
    """cuDNN refuses the backward pass of recurrent layers outside of training; done without it."""
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled and not recurrent):
        yield


@contextmanager
def trained(path: str | Path, config: Config, name: str) -> Iterator[Trained]:
    """The model of a checkpoint; what a trainer writes goes to a folder that is then removed."""
    file = checkpoint_of(path)
    check_dataset(config)
    with tempfile.TemporaryDirectory() as folder:
        config["run_dir"] = config["checkpoint_dir"] = folder
        dataset, train_data, valid_data, test_data, model = data_and_model(config)
        state = checkpoint.load(file, config["device"])
        checkpoint.load_weights(model, state, str(file))
        trainer = trainer_class(config.model_class)(config, model)
        trainer.prepare_evaluation(train_data, valid_data, {}, [test_data])
        train_data = trainer._before_fit(train_data)
        trainer._weights_loaded = True  # a checkpoint holds the weights that are evaluated
        clear_caches(model)
        model.eval()
        parts = dataset.prepared.parts
        try:
            yield Trained(
                name, config, model, trainer, train_data, valid_data, test_data, dict(parts)
            )
        finally:
            trainer.tensorboard.close()


def can_rank(config) -> bool:
    """Whether the metrics are of rankings."""
    return config["eval_type"] == EvaluatorType.RANKING


def main_metric(config, wanted: str | None) -> str:
    """The metric that drops are told of, by RecBole's name.

    Raises :class:`ConfigError` where it is none of those computed.
    """
    names = [metric.lower() for metric in config["metrics"]]
    computed = names
    if can_rank(config):
        of_lists = [name for name in names if name != "gauc"]
        computed = [f"{name}@{k}" for name in of_lists for k in config["topk"]]
        computed += [name for name in names if name == "gauc"]
    if wanted is None:
        wanted = config["valid_metric"].rpartition("/")[2].lower()
        return wanted if wanted in computed else computed[0]
    if wanted.lower() not in computed:
        raise ConfigError(
            f"--metric must be one of {', '.join(computed)}, got {wanted!r}; --metrics=[...] and "
            "--topk=[...] say what is computed"
        )
    return wanted.lower()
