"""Which snapshots of a run are kept, and which of them can be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from recbole_adv.trainer.snapshot import Snapshot


class GoodSnapshots:
    """A candidate, a good one, and that of the last sound validation; at most three are held.

    A candidate is good after ``patience`` quiet steps; before that it may lie in the onset of a
    divergence. The first one, that of the start, is good at once.

    Args:
        interval: steps from one candidate to the next; None: one in each epoch.
        keeps_sound: whether those of sound validations are wanted.

    Attributes:
        good: where to go back to.
        sound: where to go back to if no loss showed what went wrong; None where it is not kept.
    """

    def __init__(self, patience: int, interval: int | None, keeps_sound: bool):
        self.patience, self.interval, self.keeps_sound = patience, interval, keeps_sound
        self.start_anew()

    def start_anew(self) -> None:
        """Forget all, but for the sound one until there is a new one."""
        self.good: Snapshot | None = None
        self._candidate: Snapshot | None = None
        self._taken_at = 0
        self._due, self._validated = True, self.keeps_sound
        self.sound: Snapshot | None = getattr(self, "sound", None)

    def epoch_begins(self) -> None:
        """An epoch begins."""
        self._due |= self.interval is None

    def validation_was_sound(self) -> None:
        """The state of this moment was validated."""
        self._validated = self.keeps_sound

    def wanted(self, step: int) -> bool:
        """Whether to take one at this step."""
        if self.interval is not None and step - self._taken_at >= self.interval:
            self._due = True
        return self.good is None or self._validated or (self._due and self._candidate is None)

    def take(self, step: int, snapshot: Snapshot) -> None:
        """Keep one that was taken at this step."""
        self._due = False
        if self._validated:
            self.sound, self._validated = snapshot, False
        if self.good is None:
            self.good = snapshot
        elif self._candidate is None:
            self._candidate, self._taken_at = snapshot, step

    def promote(self, step: int) -> None:
        """The steps up to this one were quiet."""
        if self._candidate is not None and step - self._taken_at >= self.patience:
            self.good, self._candidate = self._candidate, None

    def distrust_candidate(self) -> None:
        """Drop it, and take another one as soon as possible."""
        self._candidate, self._due = None, True

    def went_back(self, step: int, snapshot: Snapshot) -> None:
        """Training went back to this one, at this step."""
        self.good, self._candidate = snapshot, None
        self._due, self._taken_at = False, step
