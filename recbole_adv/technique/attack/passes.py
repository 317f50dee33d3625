"""Forward and backward passes on one batch, at the weights and around them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from recbole_adv.model_state import drawing_from, forward_state, random_state, traceless
from recbole_adv.objective.parts import Loss, total
from recbole_adv.technique.attack.lookups import LookupPlace
from recbole_adv.technique.attack.weights import WeightPlace
from recbole_adv.technique.base import Backward, LossFunction, gradients_aside

if TYPE_CHECKING:
    from recbole_adv.trainer.turn import Turn

Repetition = Callable[[], AbstractContextManager]
"""Makes the context of a pass on a batch seen before."""

Moves = Sequence[Tensor] | None
"""A perturbation in units of its radius; None for none at all."""


class Unusable(Exception):
    """The loss of a pass must not be followed: it is not finite, or nothing was perturbed."""


class Passes:
    """The passes of an attack on one batch.

    The first one is the ordinary pass of the step; each later one is made inside ``repeat()``, with
    the random numbers of the first and without a trace.

    Args:
        backward: adds ``weight`` times a gradient to ``.grad``.
        weight: what the whole step is weighted by, not 0.
        place: where perturbations are put.
        remember: notes this moment; returns what makes the context of a pass that begins there.
        radii: the radius for each tensor of the place, once its rows are known.
    """

    def __init__(
        self,
        backward: Backward,
        turn: Turn,
        batch: Any,
        weight: float,
        place: WeightPlace | LookupPlace,
        remember: Callable[[], Repetition],
        radii: Callable[[], list[Tensor | float]],
    ):
        self._descend, self.turn, self.batch, self.weight = backward, turn, batch, weight
        self.place, self._remember, self._radii = place, remember, radii
        self._radius: list[Tensor | float] | None = None
        self._repetition: Repetition | None = None
        place.begin()

    @property
    def radius(self) -> list[Tensor | float]:
        """For each tensor of the place; a number, or shaped to be broadcast to it."""
        if self._radius is None:
            self._radius = self._radii()
        return self._radius

    def repeat(self) -> AbstractContextManager:
        """The context of a pass that sees what the first one saw, or will see."""
        return (self._repetition or self._remember())()

    def scout(self) -> None:
        """Learn rows or lookups, by a forward pass that leaves no trace."""
        if not self.place.known:
            with self.repeat(), self.place.at(None):  # gradients on: the loss may take some itself
                self.turn.forward(self.batch)

    def counted(self, moves: Moves, share: float) -> tuple[Loss, list[Tensor]]:
        """Add ``share`` of the gradient there to ``.grad``; returns the loss and that gradient, in
        the tensors of the place. The gradient is to be read before the next pass.

        Raises :class:`Unusable` before anything is added if the perturbed loss is not finite.
        """
        with gradients_aside(self.place.parameters):
            loss = self.last(moves, share)
            gradients = self.place.gradients([p.grad for p in self.place.parameters])
            return loss, gradients if self.weight > 0 else [-g for g in gradients]

    def look(self, moves: Moves) -> tuple[Tensor, list[Tensor]]:
        """The loss there and its gradient in the tensors of the place; ``.grad`` stays as it is.

        Raises :class:`Unusable` if the perturbed loss is not finite.
        """
        with self._pass(), self._at(moves), self._checked(moves):
            loss, gradients = self.turn.gradient(self.batch, self.place.parameters)
        return loss, self.place.gradients(gradients)  # of rows that a first pass has shown by now

    def last(self, moves: Moves, share: float, usable: Tensor | None = None) -> Loss:
        """Like :meth:`counted`, where the gradient has not to be told from the others'.

        usable: a truth on the device, without which the pass is :class:`Unusable` too.
        """
        with self._pass(), self._at(moves), self._checked(moves, usable):
            return self._descend(self.batch, share * self.weight)

    def _at(self, moves: Moves) -> AbstractContextManager:
        return self.place.at(moves, () if moves is None else self.radius)

    @contextmanager
    def minimising(self, loss: LossFunction) -> Iterator[None]:
        """Passes inside are made on another loss."""
        own = self.turn.forward
        self.turn.forward = loss
        try:
            yield
        finally:
            self.turn.forward = own

    @contextmanager
    def _checked(self, moves: Moves, usable: Tensor | None = None) -> Iterator[None]:
        """The engine stops the run at a loss that is not finite; a perturbed one is only left out.

        This is the one place of an attack that waits for the device.
        """
        if moves is None:
            yield
            return
        forward = self.turn.forward

        def checked(batch: Any) -> Loss:
            loss = forward(batch)
            finite = total(loss).isfinite()
            if not bool(finite if usable is None else finite & usable):
                raise Unusable
            return loss

        with self.minimising(checked):
            yield

    @contextmanager
    def _pass(self) -> Iterator[None]:
        if self._repetition is None:
            self._repetition = self._remember()
            yield
        else:
            with self.repeat():
                yield


def repetition(model: nn.Module, same_random: bool, frozen_state: bool) -> Repetition:
    """Note this moment, for passes that begin at it.

    same_random: they draw the random numbers that come next now. frozen_state: they find buffers
    and counters as they are now. After each everything is as it was before it.
    """
    numbers = random_state() if same_random else None
    state = forward_state(model) if frozen_state else None

    @contextmanager
    def repeat() -> Iterator[None]:
        with ExitStack() as stack:
            if numbers is not None:
                stack.enter_context(drawing_from(numbers))
            if state is not None:
                stack.enter_context(traceless(model, state))
            yield

    return repeat
