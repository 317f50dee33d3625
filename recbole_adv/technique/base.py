"""What a training technique may do to a step, whatever the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from recbole_adv.objective.parts import Loss

if TYPE_CHECKING:
    from recbole_adv.game.player import Player
    from recbole_adv.trainer.adv_trainer import AdvTrainer
    from recbole_adv.trainer.turn import Outcome, Turn

LossFunction = Callable[[Any], Loss]
"""Takes a batch, returns what is minimised."""

Backward = Callable[..., Loss]
"""``backward(batch, weight=1.0)`` adds ``weight`` times the gradient of the loss at the current
weights to ``.grad`` of the player's parameters, and returns the loss. It may be called any number of
times in one step."""

Step = Callable[[], None]


class Technique:
    """One player's training technique; a subclass overrides the few methods that it needs.

    The step engine calls them in the order of the list in the configuration; the three ``wrap``
    methods nest, the first technique outermost. The constructor takes the keys
    ``<technique>_<argument>`` as keyword arguments, checks what can be checked without a model, and
    does nothing else.

    Attributes:
        concerns: ``first``: only the first player, the recommender, has it; ``all``: each player has
            one of its own. ``<player>_techniques`` says otherwise.
        tolerates_nonfinite: the engine does not stop at a loss of nan or inf, of any player; the
            technique acts, in ``between_batches``.
        state_is_of_process: where several processes train, each has a state of its own.
    """

    concerns: ClassVar[str] = "first"
    tolerates_nonfinite: ClassVar[bool] = False
    state_is_of_process: ClassVar[bool] = False

    def attach(self, trainer: AdvTrainer, player: Player) -> None:
        """Called once, before training or resuming. Refuse here, by a ConfigError, what cannot work."""

    def before_epoch(self, epoch: int) -> None:
        """Called before the first step of an epoch."""

    def wrap_loss(self, loss: LossFunction, turn: Turn) -> LossFunction:
        """Change WHAT is minimised."""
        return loss

    def wrap_backward(self, backward: Backward, turn: Turn) -> Backward:
        """Change HOW the gradient is found."""
        return backward

    def wraps_gradient(self) -> bool:
        """Whether this changes the loss or the backward, not only what comes after."""
        base, own = Technique, type(self)
        return own.wrap_loss is not base.wrap_loss or own.wrap_backward is not base.wrap_backward

    def holds_back(self, turn: Turn) -> bool:
        """Whether the gradient of this batch waits in ``.grad`` for the next one's."""
        return False

    def edit_gradients(self, turn: Turn) -> None:
        """Change the true, unscaled gradients of ``turn.parameters`` in place."""

    def wrap_step(self, step: Step, turn: Turn) -> Step:
        """Do something around the step of the optimizer, which a GradScaler may leave out."""
        return step

    def after_step(self, turn: Turn, outcome: Outcome) -> None:
        """Called after each step that was not left out; ``turn.steps`` counts it already."""

    def between_batches(self, moves: Sequence[tuple[str, Outcome]], batch: Any) -> None:
        """Called after each batch with the moves on it, by the player's name.

        Also, without moves and with None for the batch, before the first and after the last one. No
        player is in the midst of a move then: the one place where weights may be put back.
        """

    def after_validation(self, epoch: int, score: float) -> None:
        """Called after each validation with the score of ``valid_metric``."""

    def after_fit(self) -> None:
        """Called when training has ended: the place for a last word in the log."""

    @contextmanager
    def evaluation_weights(self) -> Iterator[None]:
        """The weights that are validated, tested and saved are those inside this context."""
        yield

    def figures(self) -> dict[str, float]:
        """Figures of the epoch for log and metrics.jsonl, by name; called once at its end."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must have."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back :meth:`state_dict`."""


@contextmanager
def gradients_aside(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """``.grad`` is None at the start inside; what was there before is added at the end."""
    earlier = [(parameter, parameter.grad) for parameter in parameters]
    for parameter, _ in earlier:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in earlier:
            if gradient is not None:
                parameter.grad = _sum(gradient, parameter.grad)


def _sum(earlier: Tensor, mine: Tensor | None) -> Tensor:
    if mine is None:
        return earlier
    return mine.add_(earlier) if earlier.is_sparse and not mine.is_sparse else earlier.add_(mine)


def gradient_values(parameter: nn.Parameter) -> Tensor:
    """The numbers of ``parameter.grad``, to be read or edited in place.

    A sparse gradient is coalesced first, so that these are the sums over each touched row.
    """
    if not parameter.grad.is_sparse:
        return parameter.grad
    parameter.grad = parameter.grad.coalesce()
    return parameter.grad.values()
