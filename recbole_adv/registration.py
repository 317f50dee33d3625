"""Makes RecBole's own functions find our models, trainers and properties.

``import recbole_adv`` calls :func:`register` once. After that RecBole's ``get_model``,
``get_trainer``, ``Config``, ``run_recbole``, ``load_data_and_model`` and ``HyperTuning`` work with
our models and with every model a user defines, in the user's script too:

* a finder, appended to ``sys.meta_path``, answers for
  ``recbole.model.general_recommender.<lower case name>``, the place where ``get_model`` looks
  first, with a small module that holds the class itself (RecBole's own models win);
* ``recbole.trainer`` gets a module ``__getattr__`` that answers for ``<Model>Trainer``;
* every subclass of RecBole's ``AbstractRecommender`` is noted when it is defined;
* ``Config`` loads our properties where it loads RecBole's, so that they have the precedence of a
  built-in: overall < model < dataset < file < dict < command line.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from pathlib import Path

from recbole_adv import discovery
from recbole_adv.errors import ConfigError
from recbole_adv.options import properties_dir, technique_files

_PACKAGE = "recbole.model.general_recommender"


class _ModelFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves ``recbole.model.general_recommender.<name>`` for models that RecBole does not have."""

    def find_spec(self, fullname, path=None, target=None):
        package, _, name = fullname.rpartition(".")
        if package != _PACKAGE or name in discovery.recbole_modules():
            return None
        if name in discovery.own_modules() or _user_classes(name):
            return importlib.machinery.ModuleSpec(fullname, self)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        lower = module.__name__.rpartition(".")[2]

        def lookup(name: str):
            # Looked up at each access, so that a class defined anew in a notebook takes effect.
            if name in _user_classes(lower):
                return discovery.user_models[name]
            if lower in discovery.own_modules() and not name.startswith("__"):
                return getattr(importlib.import_module(discovery.own_modules()[lower]), name)
            raise AttributeError(f"no model {name!r} was defined; names are case-sensitive")

        module.__getattr__ = lookup


def _user_classes(lower: str) -> list[str]:
    return [name for name in discovery.user_models if name.lower() == lower]


def note_model(cls: type) -> None:
    """Remember a user's model class under its name."""
    made_here = "written_class" in vars(cls)  # a user's class over a backbone
    if cls.__module__.split(".")[0] not in ("recbole", "recbole_adv") and not made_here:
        discovery.user_models[cls.__name__] = cls


def _note_subclasses() -> None:
    from recbole.model.abstract_recommender import AbstractRecommender

    def __init_subclass__(cls, **kwargs):
        super(AbstractRecommender, cls).__init_subclass__(**kwargs)
        note_model(cls)

    AbstractRecommender.__init_subclass__ = classmethod(__init_subclass__)


def _serve_trainers() -> None:
    import recbole.trainer as module

    previous = getattr(module, "__getattr__", None)

    def __getattr__(name: str):
        model = name.removesuffix("Trainer")
        if model and model != name and not name.startswith("_"):
            known = model in discovery.user_models or model in discovery.own_model_names()
            if known:
                from recbole_adv.trainer import trainer_for_stock

                return trainer_for_stock(discovery.find_model(model))
        if previous is not None:
            return previous(name)
        raise AttributeError(f"module 'recbole.trainer' has no attribute {name!r}")

    module.__getattr__ = __getattr__


def _serve_properties() -> None:
    """Let RecBole's Config load our property files and see through a model to its backbone."""
    from recbole.config.configurator import Config

    find_model_and_dataset = Config._get_model_and_dataset
    load_internal = Config._load_internal_config_dict
    update_internal = Config._update_internal_config_dict
    convert = Config._convert_config_dict

    def _get_model_and_dataset(self, model, dataset):
        name, model_class, dataset = find_model_and_dataset(self, model, dataset)
        over = getattr(model_class, "over", None)
        if over is not None:
            model_class = over(backbone_of(model_class, self.external_config_dict))
        return name, model_class, dataset

    def _load_internal_config_dict(self, model, model_class, dataset):
        # RecBole chooses property files by the model's name: for a model over a backbone these are
        # the backbone's, and the model's own follow.
        backbone = getattr(model_class, "backbone_class", None)
        self._property_class = model_class
        load_internal(self, backbone.__name__ if backbone else model, model_class, dataset)

    def _update_internal_config_dict(self, file):
        path = Path(file).resolve()
        of_recbole = discovery.recbole_properties() in path.parents
        model_class = getattr(self, "_property_class", None)
        if of_recbole and path.name == "sample.yaml" and model_class is not None:
            for own in _own_files(model_class):  # right after the model file that RecBole chose
                self._update_internal_config_dict(str(own))
        result = update_internal(self, file)
        if of_recbole and path.name == "overall.yaml":
            for own in (properties_dir() / "overall.yaml", *technique_files()):
                self._update_internal_config_dict(str(own))
        return result

    def _convert_config_dict(self, config_dict):
        # RecBole evaluates strings as Python; ours are only ever read as literals.
        from recbole_adv.config import literal
        from recbole_adv.config_check import own_keys

        ours = {key: value for key, value in config_dict.items() if key in own_keys()}
        rest = {key: value for key, value in config_dict.items() if key not in ours}
        converted = convert(self, rest)
        converted.update({key: literal(value) for key, value in ours.items()})
        return converted

    Config._get_model_and_dataset = _get_model_and_dataset
    Config._load_internal_config_dict = _load_internal_config_dict
    Config._update_internal_config_dict = _update_internal_config_dict
    Config._convert_config_dict = _convert_config_dict


def _own_files(model_class: type) -> list[Path]:
    """The property files that RecBole did not load by the model's name."""
    files: list[Path] = []
    backbone = getattr(model_class, "backbone_class", None)
    for cls in filter(None, (backbone, model_class)):
        files += [f for f in discovery.model_property_files(cls) if f not in files]
    return files


def backbone_of(model_class: type, given: dict) -> type:
    """The class of the key ``backbone``: the user's, else that of the model's property file."""
    import yaml

    name = given.get("backbone")
    if name is None:
        for file in discovery.model_property_files(model_class):
            name = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("backbone", name)
    try:
        return discovery.find_model(name)
    except ConfigError as error:
        raise ConfigError(f"backbone {name!r} cannot be used: {error}") from error


_registered = False


def register() -> None:
    """Install the hooks, once."""
    global _registered
    if _registered:
        return
    _registered = True
    sys.meta_path.append(_ModelFinder())
    _note_subclasses()
    _serve_trainers()
    _serve_properties()
