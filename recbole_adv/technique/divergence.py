"""Tells divergence of a loss from its noise.

Tang et al., "Improving Training Stability for Multitask Ranking Models in Recommender Systems" (KDD
2023, arXiv 2302.09178), name the symptoms, micro-divergence (a jump that recovers) and full divergence
(a loss that stays high), and leave their detection open; this detector is ours.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from statistics import median
from typing import Any

SUSPECT, OUTLIER, MICRO, FULL = "suspect", "outlier", "micro", "full"
EVENTS = (SUSPECT, OUTLIER, MICRO, FULL)

_NORMAL_MAD = (
    1.4826  # times the median absolute deviation is the standard deviation of a normal one
)


class DivergenceDetector:
    """Reads one loss after the other and says when something happens.

    With m the median of the last ``window`` accepted losses and
    s = max(1.4826 MAD, ``min_deviation`` max(|m|, whole))::

        suspect  a loss above m + band s; from here on none is accepted
        outlier  the median of the ``recovery`` newest losses is at most m + band s / 2, and fewer
                 than ``outlier_steps`` were above the band
        micro    the same, but more were
        full     after ``patience`` losses the median is still above the band; or a loss of nan or inf

    A median that is then in the upper half of the band ends the suspicion, too: the data have drifted,
    and the next losses move the band. The band is relative, as no number bounds every loss: log 2 is
    where a dead model stays, and summed losses are in the thousands. ``whole``, where a loss is one
    part of several, is the m of their sum: a penalty of a thousandth of it may grow tenfold. Before
    ``min_losses`` were accepted, and where m and MAD are both 0 (a term that is switched off), only
    nan and inf are seen.

    Args:
        window, min_losses, recovery, outlier_steps, patience: numbers of losses.
        band: the half-width of the band in standard deviations.
        min_deviation: the smallest standard deviation, as a share of the median.
    """

    def __init__(
        self,
        *,
        window: int = 100,
        min_losses: int = 30,
        band: float = 8.0,
        min_deviation: float = 0.02,
        recovery: int = 10,
        outlier_steps: int = 3,
        patience: int = 50,
    ):
        self.min_losses, self.band, self.min_deviation = min_losses, band, min_deviation
        self.recovery, self.outlier_steps, self.patience = recovery, outlier_steps, patience
        self.window = window
        self.reset()

    def reset(self) -> None:
        """Start anew: the losses to come are those of another objective."""
        self._accepted: deque[float] = deque()
        self._sorted: list[float] = []  # the same, for medians
        self._suspected: list[float] = []
        self._above = 0

    @property
    def suspicious(self) -> bool:
        """Whether a suspicion is open."""
        return bool(self._suspected)

    @property
    def level(self) -> float:
        """m, 0 before the first loss."""
        half, odd = divmod(len(self._sorted), 2)
        if not self._sorted:
            return 0.0
        return self._sorted[half] if odd else (self._sorted[half - 1] + self._sorted[half]) / 2

    def limits(self, whole: float = 0.0) -> tuple[float, float]:
        """m + band s / 2 and m + band s; infinite where nothing can be said."""
        if len(self._accepted) < self.min_losses:
            return math.inf, math.inf
        middle = self.level
        deviation = _NORMAL_MAD * median(abs(loss - middle) for loss in self._accepted)
        width = self.band * max(deviation, self._least(whole))
        return (middle + width / 2, middle + width) if width else (math.inf, math.inf)

    def observe(self, loss: float, whole: float = 0.0) -> str | None:
        """Take in one loss; returns one of :data:`EVENTS` if it brought one about."""
        if not math.isfinite(loss):
            self.reset()
            return FULL
        # Most losses are within the narrowest band, for which no MAD is needed.
        if not self._suspected and loss <= self.level + self.band * self._least(whole):
            return self._accept(loss)
        lower, upper = self.limits(whole)
        if not self._suspected and loss <= upper:
            return self._accept(loss)
        self._suspected.append(loss)
        self._above += loss > upper
        level = median(self._suspected[-self.recovery :])
        late = len(self._suspected) > self.patience
        if late and level > upper:
            self.reset()
            return FULL
        if late or (len(self._suspected) >= self.recovery and level <= lower):
            # Among more losses there are more outliers.
            allowed = self.recovery if late else self.outlier_steps
            event = OUTLIER if self._above < allowed else MICRO
            self._suspected, self._above = [], 0
            return event
        return SUSPECT if len(self._suspected) == 1 else None

    def _least(self, whole: float) -> float:
        return self.min_deviation * max(abs(self.level), abs(whole))

    def _accept(self, loss: float) -> None:
        while len(self._accepted) >= self.window:  # more, where a resumed run has a smaller window
            del self._sorted[bisect_left(self._sorted, self._accepted.popleft())]
        self._accepted.append(loss)
        insort(self._sorted, loss)

    def state_dict(self) -> dict[str, Any]:
        """Everything that was read."""
        return {
            "accepted": list(self._accepted),
            "suspected": list(self._suspected),
            "above": self._above,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back :meth:`state_dict`."""
        self._accepted = deque(state["accepted"])
        self._sorted = sorted(self._accepted)
        self._suspected, self._above = list(state["suspected"]), state["above"]


def score_collapsed(score: float, best: float, share: float, bigger: bool, chance: float) -> bool:
    """Whether a validation score is below ``share`` of the best, both counted from chance's.

    Where smaller is better (``bigger`` False): above best / share. A score of nan or inf is; beside a
    best one that is nan or no better than chance nothing else can be said.
    """
    if not math.isfinite(score):
        return True
    if not bigger:
        return best > 0 and score * share > best
    return best > chance and score - chance < share * (best - chance)
