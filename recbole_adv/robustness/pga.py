"""Fake profiles by projected gradient ascent (Li et al., NIPS 2016), on a factorisation of our own.

The attacker knows the real interactions R [U, I] and expects matrix factorisation by ridge regression,
``min ||R - P Q^T||^2 + ||X - F Q^T||^2 + lambda (||P||^2 + ||F||^2 + ||Q||^2)``, X [n, I] being the fake
rows. At a solution by alternation, fake users and then items answer to X in closed form:

    F(X) = X Q (Q^T Q + lambda)^-1
    Q(X) = (R^T P + X^T F) (P^T P + F^T F + lambda)^-1

so that the gradient of a loss in Q(X) flows to X; that is Li et al.'s derivative by the conditions of
optimality, of one alternation. The loss is that of Carlini and Wagner as ARLib uses it on rankings,
softened: ``mean softplus((theta_u - p_u . q_t) / TEMPERATURE)`` over real users u without t, theta_u the
score of the item that is ``PLACE``-th for u. After ``N_STEPS`` steps ``X <- clip(X - .2 tanh(g / mean|g|))``
the largest entries of each row are its profile, the factorisation is made anew with it, and all of that is
done ``N_ROUNDS`` times. ARLib does not divide by the mean, so that its steps depend on the scale of the
loss.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse
import torch
from torch import Tensor
from torch.nn.functional import softplus

N_FACTORS, RIDGE, N_ALTERNATIONS = 32, 1.0, 8
N_ROUNDS, N_STEPS, STEP = 5, 10, 0.2
PLACE, TEMPERATURE = 10, 0.1
N_AUDIENCE = 2000
"""Real users whose lists the attacker looks at; more are drawn from."""


def promoting_profiles(
    pairs: tuple[np.ndarray, np.ndarray], start: np.ndarray, n_targets: int, n_items: int, seed: int
) -> np.ndarray:
    """Profiles [n, m] that promote their first ``n_targets`` items.

    pairs: users and items of the real interactions; start: profiles to begin with, targets first.
    """
    real, owner = _matrix(*pairs, n_items)
    generator = torch.Generator().manual_seed(seed)
    targets = torch.from_numpy(start[0, :n_targets])
    n_fillers = start.shape[1] - n_targets
    profiles = torch.from_numpy(start)
    audience = torch.randperm(real.shape[0], generator=generator)[:N_AUDIENCE]
    wanted = torch.from_numpy(owner[audience.numpy()][:, targets.numpy()].toarray() == 0)
    for _ in range(N_ROUNDS):
        fake = torch.zeros(len(profiles), n_items).scatter_(1, profiles, 1.0)
        users, items = factorise(real, fake, seed)
        for _ in range(N_STEPS):
            x = fake.requires_grad_(True)
            loss = promotion_loss(real, x, users, items, audience, targets, wanted)
            (g,) = torch.autograd.grad(loss, x)
            g /= g.abs().mean().clamp_min(1e-30)
            fake = (x.detach() - STEP * torch.tanh(g)).clamp_(0.0, 1.0)
            fake[:, targets] = 1.0
        rest = fake.clone()
        rest[:, targets] = -1.0
        rest[:, 0] = -1.0  # padding
        fillers = rest.topk(n_fillers, dim=1).indices
        profiles = torch.cat([profiles[:, :n_targets], fillers], dim=1)
    return profiles.numpy()


def _matrix(
    user: np.ndarray, item: np.ndarray, n_items: int
) -> tuple[Tensor, scipy.sparse.csr_array]:
    """The real interactions, users renumbered, as torch and scipy have sparse matrices."""
    kept, row = np.unique(user, return_inverse=True)
    shape = (len(kept), n_items)
    values = np.ones(len(row), dtype=np.float32)
    matrix = scipy.sparse.csr_array((values, (row, item)), shape=shape)
    index = torch.from_numpy(np.stack([row, item]))
    sparse = torch.sparse_coo_tensor(index, torch.from_numpy(values), shape, check_invariants=False)
    return sparse.coalesce(), matrix


def factorise(real: Tensor, fake: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """P [U, D] and Q [I, D] by alternating ridge regressions.   real: sparse; fake: dense."""
    generator = torch.Generator().manual_seed(seed)
    items = 0.1 * torch.randn(real.shape[1], N_FACTORS, generator=generator, dtype=fake.dtype)
    users = items[:0]
    for _ in range(N_ALTERNATIONS):
        users, fakes = _answer(real @ items, items), _answer(fake @ items, items)
        items = _answer_items(real, fake, users, fakes)
    return users, items


def _answer(products: Tensor, items: Tensor) -> Tensor:
    """Rows that fit ``products`` = R Q best."""
    return torch.linalg.solve(_ridge(items.T @ items), products.T).T


def _answer_items(real: Tensor, fake: Tensor, users: Tensor, fakes: Tensor) -> Tensor:
    products = real.T @ users + fake.T @ fakes
    return torch.linalg.solve(_ridge(users.T @ users + fakes.T @ fakes), products.T).T


def _ridge(gram: Tensor) -> Tensor:
    return gram + RIDGE * torch.eye(len(gram), dtype=gram.dtype)


def promotion_loss(
    real: Tensor,
    fake: Tensor,
    users: Tensor,
    items: Tensor,
    audience: Tensor,
    targets: Tensor,
    wanted: Tensor,
) -> Tensor:
    """How far targets are from the lists, differentiable in ``fake`` [n, I].

    audience: [a] rows of users; wanted: [a, t] bool, those who do not have the target.
    """
    fakes = _answer(fake @ items, items)
    score = users[audience] @ _answer_items(real, fake, users, fakes).T
    threshold = score.topk(min(PLACE, score.shape[1]), dim=1).values[:, -1:]
    miss = softplus((threshold - score[:, targets]) / TEMPERATURE)
    return miss[wanted].mean()
