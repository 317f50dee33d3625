"""Who owns which parameters, and what each player wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from recbole_adv.errors import ConfigError, TrainingError, suggest
from recbole_adv.objective.parts import Loss, explain_no_loss, is_number


@dataclass(frozen=True)
class Player:
    """One side of a game.

    Args:
        name: ``min`` and ``max``, or a name of the model's own. Keys ``<name>_learning_rate`` and
            the like set its optimizer.
        parameters: it alone moves these; given as any iterable, or as the module that has them.
        loss: takes a batch and returns what this player MINIMISES; None if it never follows a
            gradient.
        move: takes a batch and moves the player in closed form. It may return ``NotImplemented``
            (the gradient of ``loss`` is followed instead) or pairs ``(tensor, gradient)``: the
            gradients are those of a value that the player INCREASES, sent back through the graph
            of the tensors and followed by the optimizer.
        project: called without arguments after each of its steps.
        rates: a factor of the learning rate for each of its parameters, by ``id``; 1 where absent.
        maximises: the logs show minus ``loss``, the objective that it increases.
    """

    name: str
    parameters: tuple[nn.Parameter, ...]
    loss: Callable[[Any], Loss] | None
    move: Callable[[Any], Any] | None = None
    project: Callable[[], None] | None = None
    rates: Mapping[int, float] = field(default_factory=dict)
    maximises: bool = False

    def __post_init__(self):
        given = self.parameters
        # The generator that module.parameters() is can be read once only.
        own = tuple(given.parameters() if isinstance(given, nn.Module) else given)
        object.__setattr__(self, "parameters", own)


def is_game(model: nn.Module | type) -> bool:
    """Whether a model has more than one player."""
    return any(hasattr(model, n) for n in ("players", "calculate_max_objective", "max_step"))


def players_of(model: nn.Module, config: Mapping[str, Any]) -> tuple[Player, ...]:
    """The model's own ``players()``, else ``min`` and ``max``, else ``min`` alone; checked."""
    if hasattr(model, "players"):
        players = _own_players(model)
    elif is_game(model):
        players = min_max_players(model, config["max_modules"])
    else:
        return only_player(model, config["max_modules"])
    check_players(model, players)
    return players


def _own_players(model: nn.Module) -> tuple[Player, ...]:
    returned = model.players()
    players = tuple(returned) if isinstance(returned, Iterable) else (returned,)
    for player in players:
        if not isinstance(player, Player):
            raise ConfigError(
                f"{type(model).__name__}.players() must return a list of recbole_adv.Player(name, "
                f"parameters, loss), got an object of type {type(player).__name__}"
            )
    return players


def only_player(model: nn.Module, max_modules: Sequence[str] = ()) -> tuple[Player]:
    """``min`` with every parameter, as in RecBole, also those that are frozen at this moment.

    Raises :class:`ConfigError` for a user's model with submodules ``max_modules``: its max player would
    be trained by ``min``.
    """
    _check_no_max_player(model, max_modules)
    return (Player("min", tuple(model.parameters()), model.calculate_loss),)


def _check_no_max_player(model: nn.Module, max_modules: Sequence[str]) -> None:
    cls = type(model)
    if _is_stock(cls):
        return
    for name, module in model.named_children():
        if name in max_modules and any(p.requires_grad for p in module.parameters()):
            stock = next(base for base in cls.__mro__ if _is_stock(base))
            near = suggest("calculate_max_objective", set(dir(cls)) - set(dir(stock)))
            raise ConfigError(
                f"{cls.__name__} has {name}, which max_modules gives to the max player, but no "
                "calculate_max_objective()"
                + (near or "; write it, or max_modules: [] to train one player")
            )


def _is_stock(cls: type) -> bool:
    return cls.__module__.split(".")[0] in ("recbole", "recbole_adv", "torch")


def min_max_players(model: nn.Module, max_modules: Sequence[str]) -> tuple[Player, Player]:
    """``min`` minimises ``calculate_loss``, ``max`` increases ``calculate_max_objective``.

    The submodules ``max_modules`` belong to ``max``, all else to ``min``, told apart by identity.
    """
    modules = dict(model.named_modules())
    owned = [modules[name] for name in max_modules if name in modules]
    tensors = {id(p) for module in owned for p in module.parameters()}
    if not tensors and not hasattr(model, "max_step"):
        names = [name for name, _ in model.named_children()]
        raise ConfigError(
            f"the max player of {type(model).__name__} owns nothing: max_modules is "
            f"{list(max_modules)!r}, but the submodules are {names}"
        )
    trainable = [p for p in model.parameters() if p.requires_grad]
    project = getattr(model, "project_", None)

    def max_loss(interaction):
        value = model.calculate_max_objective(interaction)
        if not is_number(value):
            what = f"calculate_max_objective of {type(model).__name__}"
            raise TrainingError(explain_no_loss(what, value))
        return -value  # the one place where the sign turns

    return (
        Player(
            "min",
            tuple(p for p in trainable if id(p) not in tensors),
            model.calculate_loss,
            project=project and (lambda: project("min")),
        ),
        Player(
            "max",
            tuple(p for p in trainable if id(p) in tensors),
            max_loss if hasattr(model, "calculate_max_objective") else None,
            move=getattr(model, "max_step", None),
            project=project and (lambda: project("max")),
            maximises=True,
        ),
    )


def graphs_apart(calculate_joint: Callable) -> Callable:
    """Marks a ``calculate_joint`` each of whose losses depends on its own player's parameters alone.

    Losses may share values, but no node of a graph, so one backward pass can fill the gradients of all
    players and no graph is kept. The trainer looks at the first graph, and with ``check_gradients`` at
    every one, whether that is so. A subclass that overrides the method marks its own.
    """
    calculate_joint.graphs_are_apart = True
    return calculate_joint


def check_players(model: nn.Module, players: Sequence[Player]) -> None:
    """Each trainable parameter has exactly one owner, and each player a way to move."""
    names = [player.name for player in players]
    if not players or len(set(names)) != len(names):
        raise ConfigError(
            f"{type(model).__name__}.players() must have different names, got {names}"
        )
    owners: dict[int, list[str]] = {}
    for player in players:
        for parameter in player.parameters:
            owners.setdefault(id(parameter), []).append(player.name)
        if player.loss is None and player.move is None:
            raise ConfigError(f"player {player.name!r} has neither a loss nor a move")
    of_model = set()
    for name, parameter in model.named_parameters():
        of_model.add(id(parameter))
        owner = owners.get(id(parameter), [])
        if len(owner) > 1:
            raise ConfigError(f"parameter {name!r} belongs to {owner}; it must have one owner")
        if not owner and parameter.requires_grad:
            raise ConfigError(
                f"parameter {name!r} belongs to no player, so it would never be trained; list it in "
                f"{type(model).__name__}.players(), or set requires_grad to False"
            )
    strangers = [
        player.name for player in players for p in player.parameters if id(p) not in of_model
    ]
    if strangers:
        raise ConfigError(
            f"player {strangers[0]!r} owns a tensor that is no parameter of the model"
        )


@contextmanager
def frozen(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """``requires_grad`` off inside, each flag as it was afterwards, also on an error."""
    changed = [p for p in parameters if p.requires_grad]
    for parameter in changed:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(True)
