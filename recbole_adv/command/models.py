"""``recbole-adv models``: list the models."""

from __future__ import annotations

import argparse
import sys

from recbole_adv.command.shared import readable, takes_no_settings


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser("models", help="list the models", allow_abbrev=False)
    parser.set_defaults(function=_models)


@readable()
def _models(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv import discovery

    takes_no_settings("models", settings)
    print("Ours (each over any backbone: --backbone=LightGCN)")
    for name in discovery.own_model_names():
        line = (discovery.find_model(name).__doc__ or "").strip().splitlines()[0]
        print(f"  {name:<12} {_module_title(name) or line}")
    print("RecBole's")
    families: dict[str, list[str]] = {}
    for name in discovery.recbole_model_names():
        family = discovery.recbole_modules()[name.lower()].split(".")[2]
        families.setdefault(family.removesuffix("_recommender"), []).append(name)
    for family, names in families.items():
        print(f"  {family}: {', '.join(names)}")


def _module_title(name: str) -> str:
    """The first sentence of a model's module, without the model's name in front."""
    from recbole_adv import discovery

    text = sys.modules[discovery.find_model(name).__module__].__doc__ or ""
    return text.strip().splitlines()[0].partition(": ")[2]
