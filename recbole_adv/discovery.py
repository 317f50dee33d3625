"""From a model's name to its class, and from a class to its property files.

Names are found by convention, nothing is listed twice: a model of ours is the module
``recbole_adv/model/<family>/<lower case name>.py`` and the file ``properties/model/<Name>.yaml``;
a user's model is known from the moment its class is defined (:mod:`recbole_adv.registration`).
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import re
from functools import cache
from pathlib import Path

from recbole_adv.class_path import class_at, path_of
from recbole_adv.errors import ConfigError, suggest
from recbole_adv.options import properties_dir

FAMILIES = ("invariant_recommender", "adversarial_recommender")
RECBOLE_FAMILIES = (
    "general_recommender",
    "context_aware_recommender",
    "sequential_recommender",
    "knowledge_aware_recommender",
    "exlib_recommender",
)

user_models: dict[str, type] = {}
"""Models defined outside recbole and recbole_adv, by class name; the latest definition counts."""


@cache
def own_modules() -> dict[str, str]:
    """Our models' modules by lower case model name; no model is imported."""
    modules = {}
    for family in FAMILIES:
        spec = importlib.util.find_spec(f"recbole_adv.model.{family}")
        for location in spec.submodule_search_locations if spec else ():
            for file in sorted(Path(location).glob("[a-z]*.py")):
                modules[file.stem] = f"recbole_adv.model.{family}.{file.stem}"
    return modules


def own_model_names() -> list[str]:
    """The names of our models: each has a property file."""
    files = (properties_dir() / "model").glob("*.yaml")
    return sorted(file.stem for file in files if file.stem.lower() in own_modules())


@cache
def recbole_modules() -> dict[str, str]:
    """RecBole's model modules by lower case name, as ``recbole.model.<family>.<name>``."""
    modules: dict[str, str] = {}
    for family in RECBOLE_FAMILIES:
        spec = importlib.util.find_spec(f"recbole.model.{family}")
        for module in pkgutil.iter_modules(spec.submodule_search_locations if spec else ()):
            modules.setdefault(module.name, f"recbole.model.{family}.{module.name}")
    return modules


@cache
def recbole_properties() -> Path:
    """RecBole's folder of property files."""
    import recbole

    return Path(recbole.__file__).resolve().parent / "properties"


@cache
def recbole_model_names() -> list[str]:
    """RecBole's model names: each has a property file of the same name, or is a class of its module."""
    files = (recbole_properties() / "model").glob("*.yaml")
    names = {file.stem.lower(): file.stem for file in files}
    for lower, module in recbole_modules().items():
        if lower not in names:  # Random: its source is read, as importing it may need a package
            source = Path(recbole_properties().parent, *module.split(".")[1:]).with_suffix(".py")
            named = re.search(rf"^class ({lower})\b", source.read_text("utf-8"), re.M | re.I)
            names |= {lower: named[1]} if named else {}
    return sorted(name for lower, name in names.items() if lower in recbole_modules())


def find_model(model: str | type) -> type:
    """The class of ``model``: a class, a name, ``package.module:Class`` or ``file.py:Class``.

    Raises :class:`ConfigError` with the nearest names if there is none, and if one name stands for
    two models (RecBole's own and a user's).
    """
    if isinstance(model, type):
        return _recommender(model, model.__name__)
    if not isinstance(model, str) or not model:
        raise ConfigError(f"model must be a name or a class, got {model!r}")
    if ":" in model:
        return _recommender(class_at(model), model)
    ours, users = own_modules().get(model.lower()), user_models.get(model)
    stock = recbole_modules().get(model.lower()) if model in recbole_model_names() else None
    if users is not None and (ours or stock):
        raise ConfigError(
            f"two models are called {model}: {ours or stock} and {users.__module__}; rename yours, "
            f"or write {users.__module__}:{model}"
        )
    if users is not None:
        return users
    module = ours if ours and model in own_model_names() else stock
    if module is None:
        names = [*own_model_names(), *user_models, *recbole_model_names()]
        hint = suggest(model, names) or "; 'recbole-adv models' lists them"
        hint = f"; write {model}:Class" if model.endswith(".py") else hint
        raise ConfigError(f"there is no model called {model!r}{hint}")
    try:
        return getattr(importlib.import_module(module), model)
    except ImportError as error:
        raise ConfigError(
            f"{model} needs the package {error.name!r}, which is not installed; install it, or "
            "choose another model"
        ) from error


def _recommender(model_class: type, name: str) -> type:
    from recbole.model.abstract_recommender import AbstractRecommender

    if not issubclass(model_class, AbstractRecommender):
        raise ConfigError(
            f"{name} is not a RecBole model; derive it from GeneralRecommender, "
            "SequentialRecommender or another of RecBole's"
        )
    return model_class


def model_source(model_class: type) -> str:
    """Where another process finds the class: its name if that is enough, else ``file.py:Class``."""
    if model_class.__module__.split(".")[0] in ("recbole", "recbole_adv"):
        return model_class.__name__
    return path_of(model_class)


def model_property_files(model_class: type) -> list[Path]:
    """The property files of a class and its ancestors, the class's own last.

    RecBole's models have theirs in RecBole, ours in ``properties/model``; a user's may lie beside
    the module or in a folder ``properties/model`` beside it.
    """
    files = []
    for cls in reversed(model_class.__mro__):
        package = cls.__module__.split(".")[0]
        name = f"{cls.__name__}.yaml"
        if package == "recbole":
            candidates = [recbole_properties() / "model" / name]
        elif package == "recbole_adv":
            candidates = [properties_dir() / "model" / name]
        elif package in ("builtins", "torch", "abc", "typing"):
            continue
        else:
            try:
                folder = Path(inspect.getfile(cls)).resolve().parent
            except (OSError, TypeError):
                continue
            candidates = [folder / name, folder / "properties" / "model" / name]
        files += [file for file in candidates if file.is_file()]
    return files
