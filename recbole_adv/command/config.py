"""``recbole-adv config``: print the resolved configuration."""

from __future__ import annotations

import argparse

from recbole_adv.command.shared import add_configuration, files_of, readable


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser(
        "config",
        help="print the resolved configuration and where each value came from",
        allow_abbrev=False,
    )
    add_configuration(parser)
    parser.set_defaults(function=_config)


@readable()
def _config(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.config import Config
    from recbole_adv.config_check import meanings

    config = Config(options.model, options.dataset, files_of(options), command_line=settings)
    explained = meanings(config)
    for key, value in sorted(config.final_config_dict.items(), key=lambda item: item[0].lower()):
        source = config.source_of.get(key, "derived")
        meaning = f"  # {explained[key]}" if key in explained else ""
        print(f"{key}: {value!r}  [{source}]{meaning}")
