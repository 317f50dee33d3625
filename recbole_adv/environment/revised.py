"""Environments that follow the training: rows that are fitted alike belong together."""

from __future__ import annotations

import torch
from torch import Tensor

from recbole_adv import processes
from recbole_adv.environment.assignment import EnvironmentAssignment
from recbole_adv.environment.source import mass_quantiles
from recbole_adv.objective import kmeans_1d

FIGURES = ("loss", "gradient")
"""What may be looked at: a row's loss, or its derivative in a dummy factor of the score."""


class RevisedAssignment(EnvironmentAssignment):
    """Environments cut anew every few epochs from a figure of each row, the last one seen.

    They are the exact k-means partition of the figures, 0 the least, which of all partitions
    maximises EIIL's objective 'rex' (of losses) or 'irm' (of gradients) without a generator;
    ``balanced``: cuts of equal mass. Before the first revision rows are where ``environment`` puts
    them.

    figure: one of FIGURES; interval: epochs from one revision to the next.
    Buffers: seen [N], nan for a row that has had no turn yet, which stays where it is; fresh [N], in
    no checkpoint: rows that this one of several processes has seen.
    """

    seen: Tensor

    def __init__(
        self,
        n_environments: int,
        environment: Tensor,
        *,
        figure: str = "loss",
        interval: int = 1,
        balanced: bool = False,
    ):
        super().__init__(len(environment), n_environments, environment)
        self.figure, self.interval, self.balanced = figure, interval, balanced
        self.register_buffer("seen", torch.full((len(environment),), torch.nan))
        self.register_buffer(
            "fresh", torch.zeros(len(environment), dtype=torch.bool), persistent=False
        )

    @torch.no_grad()
    def see(self, row_idx: Tensor, loss: Tensor, gradient: Tensor) -> None:
        """Note the figures of a batch.   row_idx, loss, gradient: [B]."""
        value = loss if self.figure == "loss" else gradient
        self.seen[row_idx] = value.detach().to(self.seen)
        if processes.count() > 1:
            self.fresh[row_idx] = True

    @torch.no_grad()
    def merge_processes_(self) -> None:
        """Take each row's figure from the process that has seen it since the last time."""
        counts = self.fresh.to(self.seen)
        figures = torch.where(self.fresh, self.seen, 0.0)
        counts, figures = processes.sum_(torch.stack([counts, figures]))
        self.seen.copy_(torch.where(counts > 0, figures / counts.clamp(min=1), self.seen))
        self.fresh.zero_()

    @torch.no_grad()
    def revise(self, epoch: int) -> int:
        """Cut anew if ``epoch`` begins a new interval; how many rows moved."""
        rows = self.seen.isfinite().nonzero().squeeze(1)
        if epoch == 0 or epoch % self.interval or len(rows) < self.n_environments:
            return 0
        values = self.seen[rows]
        if self.balanced:  # equal figures by the row, so that every cut is possible
            environment = mass_quantiles(values, rows, n_environments=self.n_environments)
        else:
            environment = kmeans_1d(values, self.n_environments)
        return self.assign(rows, environment)
