"""``recbole-adv audit``: what embedding_attack perturbs in a model."""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from recbole_adv.command.shared import add_configuration, files_of, readable
from recbole_adv.errors import ConfigError

_EPILOG = """\
The keys of embedding_attack say what is attacked, as in training:

  recbole-adv audit -m LightGCN -d ml-100k
  recbole-adv audit -m MultiVAE -d ml-100k --embedding_attack_targets="['decoder.2.weight']"
  recbole-adv audit --checkpoint runs/BPR-ml-100k-... --embedding_attack_epsilon=0.2

Of each table, on the first training batch:
  share       its part of the squared norm of the gradient in all parameters
  direct      the part of its gradient that hooks on its lookups would miss (of the norm)
  touched     rows with a gradient; looked up: rows that lookups read
  padding     the norm of the gradient of the padding row, which is never perturbed
  row norm    the mean norm of its rows; epsilon / row: the radius as a multiple of it
Rows of a new model are short: give a checkpoint to see what epsilon means to a trained one.
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
        "--checkpoint",
        metavar="PATH",
        help="a trained model, with its own configuration: a run's directory or a .pth file",
    )
    parser.set_defaults(function=_audit)


@readable()
def _audit(options: argparse.Namespace, settings: list[str]) -> None:
    from recbole_adv.technique.attack.audit import audit
    from recbole_adv.trainer import trainer_class

    config, model, train_data = _loaded(options, settings)
    with tempfile.TemporaryDirectory() as folder:  # a trainer writes files, an audit leaves none
        config["run_dir"] = config["checkpoint_dir"] = folder
        trainer = trainer_class(config.model_class)(config, model)
        trainer._before_fit(train_data)
        player = trainer.players[0]
        attack = trainer.techniques[player.name]["embedding_attack"]
        attack.before_epoch(0)
        batch = _first_batch(trainer, train_data)
        with _in_words(model):
            found = audit(model, player.parameters, attack.tables, player.loss, batch)
        trainer.tensorboard.close()
    print("\n".join([*_head(config, attack, found, batch), *_table(attack, found)]))


def _loaded(options: argparse.Namespace, settings: list[str]):
    """Configuration, model and training data."""
    from recbole_adv import checkpoint
    from recbole_adv.config import Config
    from recbole_adv.data.check import check_dataset
    from recbole_adv.prepared_run import data_and_model
    from recbole_adv.resumption import checkpoint_at, resumed_config

    given = {"techniques": ["embedding_attack"], "max_techniques": []}
    files = files_of(options)
    if not options.checkpoint:
        config = Config(options.model, options.dataset, files, given, settings)
    else:
        file = checkpoint_at(options.checkpoint)
        given |= {k: getattr(options, k) for k in ("model", "dataset") if getattr(options, k)}
        config = resumed_config(file, files, given, settings)
    check_dataset(config)
    _, train_data, _, _, model = data_and_model(config)
    if options.checkpoint:
        checkpoint.load_weights(model, checkpoint.load(file, config["device"]), file)
    return config, model, train_data


def _first_batch(trainer, train_data):
    """The first batch of interactions, where the model's trainer puts it."""
    from recbole.data.dataloader import KnowledgeBasedDataLoader
    from recbole.utils import KGDataLoaderState

    if isinstance(train_data, KnowledgeBasedDataLoader):
        train_data.set_mode(KGDataLoaderState.RS)
    trainer.model.train()
    return next(iter(train_data)).to(trainer.device)


@contextmanager
def _in_words(model) -> Iterator[None]:
    try:
        yield
    except (TypeError, AttributeError) as error:
        raise ConfigError(
            f"the loss of {type(model).__name__} cannot be taken on a batch by itself ({error}); its "
            "own trainer calls it otherwise, so it cannot be audited"
        ) from error


def _head(config, attack, found, batch) -> list[str]:
    attacked = found.rows[: found.n_attacked]
    others = [row.table.name for row in found.rows[found.n_attacked :]]
    lines = [
        f"{config['model']} on {config['dataset']}, a batch of {len(batch)} rows, loss {found.loss:.4g}",
        f"preset {attack.preset}: scope {attack.recipe.scope}, norm {attack.recipe.norm}, "
        f"epsilon {attack.recipe.epsilon:g} {'x row norm' if attack.recipe.relative else 'absolute'}",
        f"attacked: {', '.join(row.table.name for row in attacked)}",
    ]
    if others:
        lines.append(f"left out: {', '.join(others)}")
    share = f"share of the squared gradient norm over all parameters: {found.share:.4f}"
    return [*lines, share, ""]


def _table(attack, found) -> list[str]:
    """Aligned columns, one line a table."""
    titles = ("table", "shape", "written", "share", "direct", "touched", "looked up", "padding")
    rows = [(*titles, "row norm", "epsilon / row")]
    for number, row in enumerate(found.rows):
        rows.append(_cells(attack, found, row, attacked=number < found.n_attacked))
    widths = [max(len(cells[i]) for cells in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(cells, widths)).rstrip() for cells in rows]


def _cells(attack, found, row, attacked: bool) -> tuple[str, ...]:
    def shown(value: float | None, style: str) -> str:
        return "-" if value is None else format(value, style)

    table = row.table
    written, multiple = "no", None
    if attacked and row.gradient_norm is None:
        written = "no gradient"
    elif attacked:
        lookups = row.by_lookup if attack.rows == "touched" else attack.rows == "looked_up"
        written = "rows looked up" if lookups else "all rows"
        if attack.recipe.scope == "sample":
            written = "lookups"
        length = attack.radius.of_table(table) * (
            math.sqrt(table.parameter[0].numel()) if attack.recipe.norm == "linf" else 1.0
        )
        multiple = length / row.mean_row_norm if row.mean_row_norm > 0 else None
    share = None
    if row.gradient_norm is not None and found.square_norm > 0:
        share = row.gradient_norm**2 / found.square_norm
    return (
        table.name,
        " x ".join(map(str, table.parameter.shape)),
        written,
        shown(share, ".4f"),
        shown(row.direct_frac, ".4f"),
        str(row.n_touched),
        str(row.n_looked_up),
        shown(row.padding_norm, ".2g"),
        f"{row.mean_row_norm:.4g}",
        shown(multiple, ".3g"),
    )
