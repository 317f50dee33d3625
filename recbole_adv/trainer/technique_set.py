"""The techniques of every player of one trainer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from recbole.trainer import Trainer
from recbole.utils import ModelType

from recbole_adv import processes
from recbole_adv.errors import CheckpointError, ConfigError
from recbole_adv.model_state import clear_caches
from recbole_adv.technique import Technique
from recbole_adv.technique.factory import techniques_of


class TechniqueSet(Mapping[str, dict[str, Technique]]):
    """From a player's name to its techniques by name, in order.

    Args:
        trainer: the trainer, whose players, config and model are there.

    Raises:
        ConfigError: where techniques were asked for and could have no effect.
    """

    def __init__(self, trainer):
        config = trainer.config.final_config_dict
        self._of = {
            player.name: dict(techniques_of(config, player.name, player is trainer.players[0]))
            for player in trainer.players
        }
        asked = [name for key in config if key.endswith("techniques") for name in config[key] or ()]
        if asked:
            check_takes_steps(trainer, "techniques", asked)
        if processes.count() > 1:
            check_takes_steps(trainer, "several processes", f"{processes.count()} processes")
        if asked and config["clip_before_unscale"]:
            raise ConfigError(
                "clip_before_unscale is RecBole's order for RecBole's own clipping and does not go "
                f"with techniques, got {asked}; leave it out"
            )

    def __getitem__(self, player: str) -> dict[str, Technique]:
        return self._of[player]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def all(self) -> list[Technique]:
        """Every technique of every player."""
        return [technique for named in self._of.values() for technique in named.values()]

    def attach(self, trainer) -> None:
        """Show each technique the trainer and its player."""
        for player in trainer.players:
            for technique in self._of[player.name].values():
                technique.attach(trainer, player)

    @contextmanager
    def evaluation_weights(self, model) -> Iterator[None]:
        """The weights to validate, test and save; RecBole's cached embeddings follow them."""
        if not self.moves_weights:
            yield
            return
        try:
            with ExitStack() as stack:
                for technique in self.all():
                    stack.enter_context(technique.evaluation_weights())
                clear_caches(model)
                yield
        finally:
            clear_caches(model)

    @property
    def moves_weights(self) -> bool:
        """Whether the weights that are evaluated are not those that are trained."""
        base = Technique.evaluation_weights
        return any(type(technique).evaluation_weights is not base for technique in self.all())

    def figures(self) -> dict[str, float]:
        """``<player>/<technique>_<figure>``, of the epoch."""
        return {
            f"{player}/{name}_{figure}": value
            for player, named in self._of.items()
            for name, technique in named.items()
            for figure, value in technique.figures().items()
        }

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """By player and technique."""
        return {
            player: {name: technique.state_dict() for name, technique in named.items()}
            for player, named in self._of.items()
        }

    def own_state_dict(self) -> dict[str, dict[str, Any]]:
        """Of it what belongs to this process alone."""
        return {
            player: {n: t.state_dict() for n, t in named.items() if t.state_is_of_process}
            for player, named in self._of.items()
        }

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]], file: str) -> None:
        """Take back :meth:`state_dict`; the techniques must be the same."""
        for player, named in self._of.items():
            saved = state.get(player, {})
            if list(saved) != list(named):
                raise CheckpointError(
                    f"{file} was written with the techniques {list(saved)} of player {player!r}, "
                    f"got {list(named)}; go on with those it was written with"
                )
            for name, technique in named.items():
                try:
                    technique.load_state_dict(saved[name])
                except KeyError as error:
                    raise CheckpointError(
                        f"{name} of player {player!r} was written to {file} for other weights "
                        f"({error}); go on with the keys {name}_... it was written with"
                    ) from error


def check_takes_steps(trainer, what: str, asked: Any) -> None:
    """Raise :class:`ConfigError` for what is ``asked`` of a model whose batches never reach the step."""
    config = trainer.config.final_config_dict
    if any(bypasses(cls) for cls in _above_ours(trainer)):
        raise ConfigError(
            f"{config['model']} is trained by a loop of its own, in which {what} have no effect, got "
            f"{asked}; leave them out or choose another model"
        )
    size = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    if config.get("MODEL_TYPE") == ModelType.TRADITIONAL or size <= 1:
        raise ConfigError(
            f"{config['model']} is not trained by gradient descent, so {what} have no effect, got "
            f"{asked}; leave them out"
        )


def bypasses(stock: type) -> bool:
    """Whether a trainer has a ``_train_epoch`` that never calls the one below it (NCLTrainer)."""
    own = vars(stock).get("_train_epoch")
    return own is not None and "super" not in own.__code__.co_names


def _above_ours(trainer) -> list[type]:
    """RecBole's special trainers, which call ours."""
    classes = type(trainer).__mro__
    return [cls for cls in classes if cls.__module__.startswith("recbole.") and cls is not Trainer]
