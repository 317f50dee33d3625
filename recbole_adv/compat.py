"""Every workaround RecBole 1.2.0 and 1.2.1 need on today's numpy, scipy, torch, hyperopt and Ray.

One function per defect; its docstring says what breaks, when it applies (checked in code) and when it can go.
A shim of a RecBole module runs right after that module is imported, so ``apply()`` imports no RecBole, Ray or
hyperopt, and what is never used is never touched.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from logging import getLogger
from types import FunctionType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from recbole_adv.errors import RecBoleAdvError
from recbole_adv.import_hook import Hook, install, replace, stand_ins


def apply() -> None:
    """Apply every shim the installed versions need; a second call changes nothing.

    Raises RecBoleAdvError for a stack on which RecBole cannot be mended (pandas 3).
    """
    refuse_pandas_3()
    restore_numpy_names()
    restore_dok_update()
    install(_HOOKS)


def refuse_pandas_3() -> None:
    """pandas 3 corrupts RecBole's data in silence: ``fillna(inplace=True)`` on a column does nothing there.

    Applies to pandas >= 3. Can go when RecBole's ``data/dataset`` assigns instead of filling in place.
    """
    version = _installed("pandas")
    if version >= (3,):
        raise RecBoleAdvError(
            "RecBole silently corrupts its data (padding tokens, sequence lengths) on pandas 3 and later, "
            f"found pandas {'.'.join(map(str, version))}; run: pip install 'pandas<3'"
        )


def restore_numpy_names() -> None:
    """numpy 2 lacks ``float_``, ``complex_`` and ``unicode_``, of which ``Config`` makes ``np.float`` and others.

    Those others are needed without a Config too (``Interaction`` reads ``np.float``, ``HyperTuning.plot_hyper``
    ``np.str``), so they are set here, to Config's own values. Applies to each name numpy lacks; replaces none that it
    has. Nothing reads ``bool8``. Can go when ``Config.compatibility_settings`` is gone from RecBole.
    """
    names: dict[str, type] = {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_}
    names |= {"bool": np.bool_, "int": np.int_, "float": np.float64, "complex": np.complex128}
    names |= {"object": np.object_, "str": np.str_, "long": np.int_, "unicode": np.str_}
    for name, kind in names.items():
        if name not in vars(np):
            setattr(np, name, kind)


def restore_dok_update() -> None:
    """scipy 1.13 dropped ``dok_matrix._update``; LightGCN, NGCF, NCL, SpectralCF, GCMC, KGIN and MCCLK call it.

    It was ``dict.update`` without checks; the entries now live in ``_dict``, so the matrix comes out the same. Applies
    where the method is missing. Can go when RecBole builds its adjacency matrices from coordinates.
    """
    from scipy.sparse import dok_matrix

    if not hasattr(dok_matrix, "_update"):
        has_dict = hasattr(dok_matrix((1, 1)), "_dict")
        slow = dok_matrix.update  # checks every key
        dok_matrix._update = (lambda self, data: self._dict.update(data)) if has_dict else slow


def write_plain_checkpoints(trainer: ModuleType) -> None:
    """Stock trainers pickle their Config, which ``torch.load`` of torch >= 2.6 refuses to read back.

    They write our plain checkpoint with RecBole's keys instead; the stock ``evaluate`` and ``resume_checkpoint`` then
    work unchanged. ``DecisionTreeTrainer`` keeps its own method: it never loads the file with torch.
    Can go when RecBole's checkpoints hold no classes.
    """
    if not _torch_refuses_pickles():
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
    """Stock ``evaluate`` hands ``other_parameter`` of a plain checkpoint to the model as it stands in the file.

    Arrays and sparse matrices (EASE, ItemKNN) are encoded there, so they are decoded first. Applies and goes with
    ``write_plain_checkpoints``.
    """
    if not _torch_refuses_pickles():
        return
    from recbole_adv.checkpoint import decode

    def decoded(stock: Callable) -> Callable:
        return lambda self, para: stock(self, decode(para))

    replace(module.AbstractRecommender, "load_other_parameter", decoded)


def mend_exhaustive_search(module: ModuleType) -> None:
    """hyperopt >= 0.2.6 calls ``rng.integers``; RecBole's exhaustive search passes a RandomState, which has none.

    The stock function runs with a RandomState that has it (the draws of hyperopt 0.2.5). Applies if such a hyperopt
    is installed, without importing it. Can go when ``exhaustive_search`` uses ``np.random.default_rng``.
    """
    if _installed("hyperopt") < (0, 2, 6):
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
def without_ray() -> Iterator[None]:
    """``recbole.quick_start`` imports Ray at its top, though only a Ray trial needs it.

    Applies if ``ray.tune`` cannot be imported: a stub stands in while that one module is executed and is gone
    after, so that "is Ray installed?" stays answerable. Can go when RecBole imports Ray where it uses it.
    """
    ray, tune = ModuleType("ray"), ModuleType("ray.tune")
    vars(tune)["report"] = lambda *args, **kwargs: None
    vars(ray)["tune"] = tune
    with nullcontext() if _importable("ray.tune") else stand_ins({"ray": ray, "ray.tune": tune}):
        yield


@contextmanager
def without_kmeans() -> Iterator[None]:
    """All general models of RecBole 1.2 import ``kmeans_pytorch`` (undeclared), by way of LDiffRec.

    A stub that raises when called, not an error on import: only LDiffRec with ``n_cate > 1`` calls it, and BPR must
    run without it. Applies if the package cannot be imported, while LDiffRec is. Can go when RecBole imports it where
    it uses it.
    """

    def kmeans(*args: Any, **kwargs: Any) -> None:
        raise ImportError("LDiffRec needs kmeans_pytorch; run: pip install kmeans-pytorch")

    stub = ModuleType("kmeans_pytorch")
    vars(stub)["kmeans"] = kmeans
    with nullcontext() if _importable("kmeans_pytorch") else stand_ins({"kmeans_pytorch": stub}):
        yield


class ForgivingTune:
    """``ray.tune`` whose ``report`` takes metrics by keyword, as RecBole passes them, and is silent outside a trial."""

    def __init__(self, tune: Any) -> None:
        self._tune = tune

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tune, name)

    def report(self, metrics: dict | None = None, /, **named: Any) -> None:
        """Pass the metrics to Ray as the one dict it wants."""
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*is meant to only be called inside a function"
            )
            self._tune.report({**(metrics or {}), **named})


def mend_quick_start(module: ModuleType) -> None:
    """Three defects of ``recbole.quick_start``, mended where the module holds the names. Can go one by one with them.

    ``tune.report(**result)``: Ray >= 2.7 takes one dict, a trial dies of a TypeError. Applies with or without Ray.
    ``get_flops``: dies without thop, or without thop's distutils (Python >= 3.12, no setuptools). Gives "n/a" then.
    ``load_data_and_model``: reads neither its own files (torch >= 2.6) nor plain ones; ours, imported when called.
    """

    def flops(stock: Callable) -> Callable:
        def get_flops(*args, **kwargs):
            try:
                return stock(*args, **kwargs)
            except ImportError as error:
                getLogger().warning(f"FLOPs are not counted: {error}")
                return "n/a"

        return get_flops

    def load(stock: Callable) -> Callable:
        def load_data_and_model(model_file):
            ours = importlib.import_module("recbole_adv.quick_start")
            return ours.load_data_and_model(model_file)

        return load_data_and_model

    if not isinstance(module.tune, ForgivingTune):
        setattr(module, "tune", ForgivingTune(module.tune))
    replace(module, "get_flops", flops)
    replace(module, "load_data_and_model", load)
    package = sys.modules.get("recbole.quick_start")
    if hasattr(
        package, "load_data_and_model"
    ):  # imported before us: the package holds the stock function
        setattr(package, "load_data_and_model", module.load_data_and_model)


_HOOKS = {
    "recbole.trainer.trainer": Hook(nullcontext, write_plain_checkpoints),
    "recbole.trainer.hyper_tuning": Hook(nullcontext, mend_exhaustive_search),
    "recbole.model.abstract_recommender": Hook(nullcontext, read_plain_other_parameter),
    "recbole.model.general_recommender.ldiffrec": Hook(without_kmeans, lambda module: None),
    "recbole.quick_start.quick_start": Hook(without_ray, mend_quick_start),
}


def _installed(distribution: str) -> tuple[int, ...]:
    """The installed version's numbers, read without importing the package; ``()`` if it is not installed."""
    try:
        version = importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _importable(module: str) -> bool:
    """Whether ``module`` can really be imported, with everything it needs."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def _torch_refuses_pickles() -> bool:
    """Whether ``torch.load`` reads data only unless told otherwise."""
    return _installed("torch") >= (2, 6)
