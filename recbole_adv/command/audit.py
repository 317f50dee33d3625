"""``recbole-adv audit``: what embedding_attack perturbs in a model."""

from __future__ import annotations

import argparse

from recbole_adv.command.shared import add_configuration, files_of, readable
from recbole_adv.errors import ConfigError

_EPILOG = """\
The keys of embedding_attack say what is attacked, as in training:

  recbole-adv audit -m LightGCN -d ml-100k
  recbole-adv audit -m MultiVAE -d ml-100k --embedding_attack_targets="['decoder.2.weight']"
  recbole-adv audit --checkpoint runs/BPR-ml-100k-.../model.pth --embedding_attack_epsilon=0.2

Of each table, on the first training batch: its share of the squared norm of the whole gradient; what
part of its gradient hooks on its lookups would miss ("direct"); how many rows have a gradient and how
many are looked up; the gradient of the padding row; the mean norm of its rows, and epsilon as a
multiple of that. In a new model rows are short: give a checkpoint to see what epsilon means later.
"""


def add(commands) -> None:
    """The parser of this command."""
    parser = commands.add_parser(
        "audit",
        help="say which tables of a model embedding_attack perturbs, and what that covers",
        description="Audit an attack on the embeddings of a model, on one training batch.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_configuration(parser)
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="audit a trained model, with its own configuration"
    )
    parser.set_defaults(function=_audit)


@readable()
def _audit(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.technique.attack.audit import audit
    from recbole_adv.technique.attack.radius import Radius
    from recbole_adv.technique.attack.tables import find_tables
    from recbole_adv.technique.embedding_attack import EmbeddingAttack
    from recbole_adv.technique.factory import arguments_of

    config, model, train_data = _loaded(options, settings)
    arguments = arguments_of(
        config.final_config_dict, "min", "embedding_attack", EmbeddingAttack
    )
    attack = EmbeddingAttack(**arguments)
    player = _first_player(config, model)
    tables = find_tables(model, player.parameters, attack.targets, attack.exclude)
    found = _in_words(lambda: audit(model, player.parameters, tables, player.loss, _batch(config, model, train_data)), model)
    radius = Radius(attack.recipe, tables, None)
    radius.measure()
    print("\n".join(_lines(config, attack, found, radius)))
