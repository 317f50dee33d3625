"""What ``recbole.quick_start`` needs to be imported and used on today's stack; see ``compat``."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from logging import getLogger
from types import ModuleType
from typing import Any

from recbole_adv.import_hook import importable, replace, stand_ins


@contextmanager
def without_ray() -> Iterator[None]:
    """``recbole.quick_start`` imports Ray at its top, though only a trial of Ray's needs it.

    Applies if ``ray.tune`` cannot be imported: a stub stands in while that one module is executed,
    and is gone after, so that "is Ray installed?" has its answer. Can go when RecBole imports Ray
    where it uses it.
    """
    ray, tune = ModuleType("ray"), ModuleType("ray.tune")
    vars(tune)["report"] = lambda metrics: None
    vars(ray)["tune"] = tune
    with nullcontext() if importable("ray.tune") else stand_ins({"ray": ray, "ray.tune": tune}):
        yield


class ForgivingTune:
    """``ray.tune``, but ``report`` takes RecBole's keywords and is silent outside a trial.

    ``objective_function`` calls ``tune.report(**result)``. Ray 2.60 takes one dict, so a trial dies
    of a TypeError; outside a trial Ray warns and does nothing. Applies always; can go when RecBole
    passes a dict.
    """

    def __init__(self, tune: Any) -> None:
        self._tune = tune

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tune, name)

    def report(self, metrics: dict | None = None, /, **named: Any) -> None:
        """Hand the metrics to Ray in one dict."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*only be called inside a function")
            self._tune.report({**(metrics or {}), **named})


def forgiving_flops(stock: Callable) -> Callable:
    """``get_flops`` dies without thop, and where thop finds no distutils: "n/a" then.

    (Python >= 3.12 without setuptools has no distutils.) Applies when the import fails. Can go when
    RecBole counts FLOPs only if asked to.
    """

    def get_flops(*args, **kwargs):
        try:
            return stock(*args, **kwargs)
        except ImportError as error:
            getLogger().warning(f"FLOPs are not counted: {error}")
            return "n/a"

    return get_flops


def our_load_data_and_model(stock: Callable) -> Callable:
    """``load_data_and_model`` unpickles a Config, which no plain checkpoint holds: call ours.

    Ours is imported when called. Applies always; can go when RecBole reads its Config from data.
    """

    def load_data_and_model(model_file):
        ours = importlib.import_module("recbole_adv.quick_start")
        return ours.load_data_and_model(model_file)

    return load_data_and_model


def mend_quick_start(module: Any) -> None:
    """Put the three above in place of the stock ones, in the module and in its package."""
    if not isinstance(module.tune, ForgivingTune):
        module.tune = ForgivingTune(module.tune)
    replace(module, "get_flops", forgiving_flops)
    replace(module, "load_data_and_model", our_load_data_and_model)
    package: Any = sys.modules.get("recbole.quick_start")
    if hasattr(package, "load_data_and_model"):  # imported before us, it holds the stock function
        package.load_data_and_model = module.load_data_and_model
