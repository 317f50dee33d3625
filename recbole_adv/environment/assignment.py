"""Which environment each training row is in, kept where checkpoints find it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recbole_adv.environment.balance import balanced_least_cost


class EnvironmentAssignment(nn.Module):
    """A hard environment for every training row, as a buffer of full size from the start.

    Rows are addressed by their index in the training data (the field ``INTER_IDX_FIELD`` of a
    batch). Not a parameter: no optimizer moves it, ``state_dict`` holds it.

    n_rows: N; n_environments: E; environment: [N] int64 in 0..E-1, None puts all rows into 0.
    """

    environment: Tensor

    def __init__(self, n_rows: int, n_environments: int, environment: Tensor | None = None):
        super().__init__()
        if n_rows < 0 or n_environments < 1:
            raise ValueError(
                f"an assignment needs n_rows >= 0 and n_environments >= 1, "
                f"got {n_rows} and {n_environments}"
            )
        self.n_environments = n_environments
        self.register_buffer("environment", torch.zeros(n_rows, dtype=torch.int64))
        if environment is not None:
            if environment.shape != (n_rows,):
                raise ValueError(f"environment must be [{n_rows}], got {list(environment.shape)}")
            self._check(environment)
            self.environment.copy_(environment)

    def _check(self, environment: Tensor) -> None:
        if environment.numel() and not (
            0 <= int(environment.min()) and int(environment.max()) < self.n_environments
        ):
            raise ValueError(
                f"environments must lie in 0..{self.n_environments - 1}, got "
                f"{int(environment.min())}..{int(environment.max())}"
            )

    def of(self, row_idx: Tensor) -> Tensor:
        """The environments of rows.   row_idx: [B] int64.   Returns [B] int64."""
        return self.environment[row_idx]

    def membership(self, row_idx: Tensor) -> Tensor:
        """The environments of rows as membership q, one-hot.   row_idx: [B] -> [B, E] float."""
        return F.one_hot(self.of(row_idx), self.n_environments).to(torch.get_default_dtype())

    @torch.no_grad()
    def assign(self, row_idx: Tensor, environment: Tensor) -> int:
        """Put rows into environments; how many distinct rows moved.

        A row that stands more than once in ``row_idx`` (tiles of negatives) must be given the same
        environment each time, else any one of them stays.

        row_idx, environment: [B] int64.
        """
        self._check(environment)
        before = self.environment[row_idx]
        self.environment[row_idx] = environment.to(self.environment)
        return int(row_idx[before != self.environment[row_idx]].unique().numel())

    @torch.no_grad()
    def reassign(self, row_idx: Tensor, cost: Tensor, balanced: bool = False) -> int:
        """Put each row into its cheapest environment; how many moved.

        A tie with the row's present environment keeps it, so that rows do not wander, and so does
        a cost that is nan. Of several cheaper ones that tie, the lowest index is taken.

        row_idx: [B] int64, each row once; cost: [B, E]; balanced: environments of equal size among
        these rows (:func:`recbole_adv.environment.balance.balanced_least_cost`).
        """
        if cost.shape != (len(row_idx), self.n_environments):
            raise ValueError(
                f"cost must be [{len(row_idx)}, {self.n_environments}], got {list(cost.shape)}"
            )
        if balanced:
            return self.assign(row_idx, balanced_least_cost(cost.nan_to_num(0.0)))
        here = self.of(row_idx)
        least, cheapest = cost.min(dim=1)
        moves = least < cost.gather(1, here.unsqueeze(1)).squeeze(1)
        return self.assign(row_idx, torch.where(moves, cheapest, here))

    def counts(self) -> Tensor:
        """How many training rows each environment has.   Returns [E] int64, sums to N."""
        return torch.bincount(self.environment, minlength=self.n_environments)
