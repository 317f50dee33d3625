"""Every workaround RecBole 1.2.0 and 1.2.1 need on today's numpy, scipy, torch, hyperopt and Ray.

One function per defect; its docstring says what breaks, when it applies (checked in code) and when
it can go. What mends a RecBole module runs right after that module is imported, so ``apply()``
imports no RecBole, Ray or hyperopt, and what is never used is never touched. The shims of
``recbole.quick_start`` are in :mod:`recbole_adv.compat_quick_start`.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from recbole_adv.compat_quick_start import mend_quick_start, without_ray
from recbole_adv.errors import RecBoleAdvError
from recbole_adv.import_hook import Hook, importable, install, replace, stand_ins


def apply() -> None:
    """Apply every shim the installed versions need; a second call changes nothing.

    Raises RecBoleAdvError for a stack on which RecBole cannot be mended (pandas 3).
    """
    refuse_pandas_3()
    restore_numpy_names()
    restore_dok_update()
    install(_HOOKS)


def refuse_pandas_3() -> None:
    """pandas 3 corrupts RecBole's data in silence: ``fillna(inplace=True)`` on a column is lost.

    Applies to pandas >= 3. Can go when RecBole's ``data/dataset`` assigns what it fills.
    """
    version = installed("pandas")
    if version >= (3,):
        raise RecBoleAdvError(
            "RecBole silently corrupts its data (padding tokens, sequence lengths) on pandas 3, "
            f"found pandas {'.'.join(map(str, version))}; run: pip install 'pandas<3'"
        )


def restore_numpy_names() -> None:
    """numpy 2 lacks ``float_``, ``complex_``, ``unicode_``, of which Config makes ``np.float`` etc.

    Those are needed without a Config too (``Interaction`` reads ``np.float``, ``plot_hyper`` of
    HyperTuning ``np.str``), so they are set here, to Config's own values. Applies to each name that
    numpy lacks; replaces none. Nothing in RecBole reads ``bool8``. Can go when
    ``Config.compatibility_settings`` is gone.
    """
    names: dict[str, type] = {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}
    names |= {"bool": np.bool_, "int": np.int_, "float": np.float64, "complex": np.complex128}
    names |= {"object": np.object_, "str": np.str_, "long": np.int_, "unicode": np.str_}
    for name, kind in names.items():
        if name not in vars(np):
            setattr(np, name, kind)


def restore_dok_update() -> None:
    """scipy dropped ``dok_matrix._update``, which LightGCN, NGCF, NCL and four more models call.

    (1.11 has it, 1.17 has not.) It was ``dict.update`` without checks; the entries are now in
    ``_dict``, so the matrix comes out the same. Applies where the method is missing. Can go when
    RecBole builds its adjacency matrices from coordinates.
    """
    from scipy.sparse import dok_matrix

    if not hasattr(dok_matrix, "_update"):
        has_dict = hasattr(dok_matrix((1, 1)), "_dict")
        slow = dok_matrix.update  # checks every key
        dok_matrix._update = (lambda self, data: self._dict.update(data)) if has_dict else slow


def write_plain_checkpoints(trainer: ModuleType) -> None:
    """Stock trainers pickle their Config, which ``torch.load`` of torch >= 2.6 does not read back.

    They write our plain checkpoint with RecBole's keys instead; the stock ``evaluate`` and
    ``resume_checkpoint`` then work unchanged. ``DecisionTreeTrainer`` keeps its own method, since
    torch never loads its file. Can go when RecBole's checkpoints hold no classes.
    """
    if not torch_refuses_pickles():
        return
    from recbole_adv import checkpoint

    def for_trainer(stock: Callable) -> Callable:
        def _save_checkpoint(self, epoch, verbose=True, **kwargs):
            if not self.config["single_spec"] and self.config["local_rank"] != 0:
                return
            path = kwargs.pop("saved_model_file", self.saved_model_file)
            checkpoint.save(checkpoint.trainer_state(self, epoch), path)
            if verbose:
                self.logger.info(f"Saving current: {path}")

        return _save_checkpoint

    def for_pretraining(stock: Callable) -> Callable:
        def save_pretrained_model(self, epoch, saved_model_file):
            checkpoint.save(checkpoint.trainer_state(self, epoch), saved_model_file)
            self.saved_model_file = saved_model_file

        return save_pretrained_model

    replace(trainer.Trainer, "_save_checkpoint", for_trainer)
    replace(trainer.PretrainTrainer, "save_pretrained_model", for_pretraining)


def read_plain_other_parameter(module: ModuleType) -> None:
    """Stock ``evaluate`` hands a model its ``other_parameter`` as it stands in a plain checkpoint.

    Arrays and sparse matrices (EASE, ItemKNN) are encoded there, so they are decoded first. Applies
    and goes with ``write_plain_checkpoints``.
    """
    if not torch_refuses_pickles():
        return
    from recbole_adv.plain_data import decode

    def decoded(stock: Callable) -> Callable:
        return lambda self, para: stock(self, decode(para))

    replace(module.AbstractRecommender, "load_other_parameter", decoded)


def mend_exhaustive_search(module: ModuleType) -> None:
    """hyperopt >= 0.2.6 calls ``rng.integers``; RecBole's exhaustive search passes a RandomState.

    That has no such method, so the stock function runs with one that has (the draws are those of
    hyperopt 0.2.5). Applies if such a hyperopt is installed, without importing it. Can go when
    ``exhaustive_search`` uses ``np.random.default_rng``.
    """
    if installed("hyperopt") < (0, 2, 6):
        return

    class RandomState(np.random.RandomState):
        def integers(self, low, high=None, size=None):
            return self.randint(low, high, size)

    def mended(stock: FunctionType) -> Callable:
        numpy = SimpleNamespace(random=SimpleNamespace(RandomState=RandomState))
        names = {**stock.__globals__, "np": numpy}
        return FunctionType(stock.__code__, names, stock.__name__, stock.__defaults__)

    replace(module, "exhaustive_search", mended)


@contextmanager
def without_kmeans() -> Iterator[None]:
    """Any general model of RecBole 1.2.0 imports ``kmeans_pytorch``, undeclared, with LDiffRec.

    A stub that raises when called, not an error on import: only LDiffRec with ``n_cate > 1`` calls
    it, and BPR must run without it. Applies if the package cannot be imported, while LDiffRec is.
    Can go with RecBole 1.2.0; 1.2.1 imports it where it uses it.
    """

    def kmeans(*args: Any, **kwargs: Any) -> None:
        raise ImportError("LDiffRec needs kmeans_pytorch; run: pip install kmeans-pytorch")

    stub = ModuleType("kmeans_pytorch")
    vars(stub)["kmeans"] = kmeans
    with nullcontext() if importable(stub.__name__) else stand_ins({stub.__name__: stub}):
        yield


@contextmanager
def anomaly_detection_as_it_was() -> Iterator[None]:
    """RecBole's SINE switches torch's anomaly detection on when it is imported, which is when any
    sequential model is; a step of SASRec then takes twice as long. Results do not depend on it.

    Can go when RecBole's ``sine.py`` no longer does that (1.2.1 does).
    """
    import torch

    before, check_nan = torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()
    try:
        yield
    finally:
        torch.autograd.set_detect_anomaly(before, check_nan)


def installed(distribution: str) -> tuple[int, ...]:
    """The installed version's numbers, without importing the package; ``()`` if there is none."""
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def torch_refuses_pickles() -> bool:
    """Whether ``torch.load`` reads data only unless told otherwise."""
    return installed("torch") >= (2, 6)


_HOOKS = {
    "recbole.trainer.trainer": Hook(nullcontext, write_plain_checkpoints),
    "recbole.trainer.hyper_tuning": Hook(nullcontext, mend_exhaustive_search),
    "recbole.model.abstract_recommender": Hook(nullcontext, read_plain_other_parameter),
    "recbole.model.general_recommender.ldiffrec": Hook(without_kmeans, lambda module: None),
    "recbole.model.sequential_recommender.sine": Hook(
        anomaly_detection_as_it_was, lambda module: None
    ),
    "recbole.quick_start.quick_start": Hook(without_ray, mend_quick_start),
}
