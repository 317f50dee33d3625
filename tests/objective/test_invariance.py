"""Environment objectives against hand-worked numbers, brute force, Monte Carlo and autograd."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from recbole_adv.errors import ConfigError
from recbole_adv.objective import invariance as inv
from recbole_adv.objective import partition, ranking

DOUBLE = torch.float64
ESTIMATORS = pytest.mark.parametrize("estimator", inv.ESTIMATORS)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def one_hot(environment, n_environments=None):
    environment = torch.as_tensor(environment)
    return F.one_hot(environment, n_environments or int(environment.max()) + 1).to(DOUBLE)


def doubles(*numbers):
    return torch.tensor(numbers, dtype=DOUBLE)


# Values worked by hand


def test_mass_risk_and_presence():
    q = one_hot([0, 2, 2, 0], 4)
    assert inv.environment_mass(q).tolist() == [0.5, 0, 0.5, 0]
    assert inv.present(q).tolist() == [True, False, True, False]
    assert inv.environment_risk(doubles(1, 2, 4, 5), q).tolist() == [3, 0, 3, 0]
    soft = torch.tensor([[0.25, 0.75], [0.75, 0.25]], dtype=DOUBLE)
    assert inv.environment_risk(doubles(4, 8), soft).tolist() == [7, 5]


def test_squared_gradient():
    gradient, q = doubles(1, 2, 4, 7), one_hot([0, 0, 0, 1])
    # Environment 0: mean 7/3; pairs 2 (1*2 + 1*4 + 2*4) / 6; even rows 1, 4, odd row 2.
    assert inv.squared_gradient(gradient, q, "plain").tolist() == pytest.approx([49 / 9, 49])
    assert inv.squared_gradient(gradient, q, "u").tolist() == pytest.approx([14 / 3, 0])
    assert inv.squared_gradient(gradient, q, "split").tolist() == pytest.approx([5, 0])
    # Soft memberships: the mean over pairs of q_i q_j g_i g_j / q_i q_j.
    soft = doubles(0.5, 1, 0.25).unsqueeze(1)
    pairs = 0.5 * 1 * 2 + 0.5 * 0.25 * 4 + 1 * 0.25 * 8
    assert inv.squared_gradient(doubles(1, 2, 4), soft, "u").item() == pytest.approx(
        pairs / (0.5 * 1 + 0.5 * 0.25 + 1 * 0.25)
    )


def test_irm_penalty_is_a_mean_over_present_environments():
    gradient, q = doubles(1, 3, 1), one_hot([0, 0, 2], 4)
    assert inv.irm_penalty(gradient, q, "plain").item() == pytest.approx((4 + 1) / 2)


def test_eiil_objectives():
    loss, gradient = doubles(1, 2, 6), doubles(1, 3, -2)
    q = one_hot([0, 0, 1])
    # Mass 2/3 and 1/3; mean gradients 2 and -2; risks 1.5 and 6, overall 3.
    assert inv.eiil_objective("irm", loss, gradient, q).item() == pytest.approx(4)
    assert inv.eiil_objective("irm_raw", loss, gradient, q).item() == pytest.approx(
        ((4 / 3) ** 2 + (-2 / 3) ** 2) / 2
    )
    assert inv.eiil_objective("rex", loss, gradient, q).item() == pytest.approx(
        2 / 3 * 1.5**2 + 1 / 3 * 3**2
    )


def test_irm_raw_is_the_official_loss_over_its_two_environments():
    """opt_utils.py: the mean of two squared scale-gradients of the weighted mean loss."""
    logit, label = torch.randn(9, dtype=DOUBLE), torch.randint(2, (9,)).to(DOUBLE)
    weight = torch.rand(9, dtype=DOUBLE)
    scale = torch.ones((), dtype=DOUBLE, requires_grad=True)
    loss = F.binary_cross_entropy_with_logits(logit * scale, label, reduction="none")
    penalties = [
        torch.autograd.grad((loss * w).mean(), scale, retain_graph=True)[0].square()
        for w in (weight, 1 - weight)
    ]
    row = ranking.bce(logit, label)
    ours = inv.eiil_objective("irm_raw", *row, torch.stack([weight, 1 - weight], dim=1))
    torch.testing.assert_close(ours, torch.stack(penalties).mean())


def test_irm_is_the_squared_mean_plus_the_variance_between():
    gradient = torch.randn(30, dtype=DOUBLE)
    q = one_hot(torch.arange(30) % 4)
    mass, mean = inv.environment_mass(q), inv.environment_risk(gradient, q)
    between = (mass * (mean - gradient.mean()).square()).sum()
    ours = inv.eiil_objective("irm", gradient, gradient, q, "plain")
    torch.testing.assert_close(ours, gradient.mean().square() + between)
    torch.testing.assert_close(inv.eiil_objective("rex", gradient, gradient, q), between)


def test_risk_variance_is_the_population_variance_of_present_risks():
    everywhere = torch.tensor([True, True, True])
    assert inv.risk_variance(doubles(1, 2, 6), everywhere).item() == pytest.approx(14 / 3)
    some = torch.tensor([True, False, True])
    assert inv.risk_variance(doubles(1, math.nan, 6), some).item() == pytest.approx(6.25)
    assert inv.risk_variance(doubles(3), torch.tensor([True])).item() == 0
    assert inv.risk_variance(doubles(3, 4), torch.tensor([False, False])).item() == 0


def test_balance_and_entropy():
    assert inv.balance(doubles(0.5, 0.5)).item() == pytest.approx(0, abs=1e-12)
    assert inv.balance(doubles(1, 0, 0)).item() == pytest.approx(math.log(3))
    assert inv.balance(doubles(0.25, 0.75)).item() == pytest.approx(
        0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    )
    assert inv.membership_entropy(one_hot([0, 1, 1])).item() == 0
    undecided = torch.full((4, 3), 1 / 3, dtype=DOUBLE)
    assert inv.membership_entropy(undecided).item() == pytest.approx(math.log(3))


@ESTIMATORS
def test_penalties_are_zero_where_there_is_nothing_to_punish(estimator):
    zero, q = torch.zeros(8, dtype=DOUBLE), one_hot([0, 1, 2, 0, 1, 2, 0, 1])
    assert inv.irm_penalty(zero, q, estimator).item() == 0
    for kind in inv.EIIL_KINDS:
        assert inv.eiil_objective(kind, zero + 2, zero, q, estimator).item() == pytest.approx(0)
    risk = inv.environment_risk(zero + 2, q)
    assert inv.risk_variance(risk, inv.present(q)).item() == 0


def test_names_are_checked():
    q = one_hot([0, 1])
    with pytest.raises(ConfigError, match="'splitt'; did you mean split?"):
        inv.squared_gradient(doubles(1, 2), q, "splitt")
    with pytest.raises(ConfigError, match="irm, irm_raw, rex, got 'vrex'; did you mean rex?"):
        inv.eiil_objective("vrex", doubles(1, 2), doubles(1, 2), q)


# Estimators


@pytest.mark.parametrize("soft", [False, True])
def test_u_and_split_are_unbiased_and_plain_is_not(soft):
    """g ~ N(0.3, 1), 6 rows: (E g)^2 = 0.09; plain adds Var(g) sum q^2 / (sum q)^2."""
    rng = torch.Generator().manual_seed(1)
    draws = 0.3 + torch.randn(200_000, 6, generator=rng, dtype=DOUBLE)
    q = torch.ones(6, 1, dtype=DOUBLE)
    if soft:
        q = torch.rand(6, 1, generator=rng, dtype=DOUBLE) + 0.1
    sample = {
        name: torch.vmap(lambda g, name=name: inv.squared_gradient(g, q, name))(draws)
        for name in inv.ESTIMATORS
    }
    bias = (q.square().sum() / q.sum().square()).item()
    # Standard deviations are below 0.6, so four standard errors are 0.0054.
    assert sample["plain"].mean().item() == pytest.approx(0.09 + bias, abs=0.006)
    assert sample["u"].mean().item() == pytest.approx(0.09, abs=0.006)
    assert sample["split"].mean().item() == pytest.approx(0.09, abs=0.006)
    assert sample["u"].var() < sample["split"].var()


@ESTIMATORS
def test_row_order_within_a_half_does_not_matter(estimator):
    gradient, q = torch.randn(10, dtype=DOUBLE), torch.rand(10, 3, dtype=DOUBLE)
    order = torch.tensor([2, 1, 0, 5, 8, 3, 4, 9, 6, 7])
    torch.testing.assert_close(
        inv.squared_gradient(gradient, q, estimator),
        inv.squared_gradient(gradient[order], q[order], estimator),
    )


# Gradients


@ESTIMATORS
@pytest.mark.parametrize("loss_name", ["bpr", "bce", "softmax"])
def test_irm_equals_double_backward_on_matrix_factorisation(loss_name, estimator):
    rng = torch.Generator().manual_seed(3)
    user = torch.randn(6, 4, generator=rng, dtype=DOUBLE, requires_grad=True)
    item = torch.randn(5, 4, generator=rng, dtype=DOUBLE, requires_grad=True)
    u = torch.randint(6, (20,), generator=rng)
    i, j = torch.randint(5, (2, 20), generator=rng)
    environment = torch.arange(20) // 2 % 3
    q = one_hot(environment)

    def row_loss(w):
        score = w * (user[u] @ item.t())
        rows = torch.arange(20)
        if loss_name == "softmax":
            return ranking.softmax_cross_entropy(score, i)
        if loss_name == "bce":
            return ranking.bce(score[rows, i], (j % 2).to(DOUBLE))
        return ranking.bpr(score[rows, i], score[rows, j])

    def oracle():
        w = torch.ones((), dtype=DOUBLE, requires_grad=True)
        loss = row_loss(w).loss

        def slope(rows):
            return torch.autograd.grad(loss[rows].mean(), w, create_graph=True)[0]

        squares = []
        for e in range(3):
            rows = (environment == e).nonzero().squeeze(1)
            if estimator == "plain":
                squares.append(slope(rows).square())
            elif estimator == "split":
                squares.append(slope(rows[rows % 2 == 0]) * slope(rows[rows % 2 == 1]))
            else:
                g = [slope(row.unsqueeze(0)) for row in rows]
                pairs = [a * b for a, b in itertools.permutations(g, 2)]
                squares.append(torch.stack(pairs).mean())
        return torch.stack(squares).mean()

    ours, theirs = inv.irm_penalty(row_loss(1.0).gradient, q, estimator), oracle()
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=1e-6)
    for mine, other in zip(
        torch.autograd.grad(ours, [user, item]), torch.autograd.grad(theirs, [user, item])
    ):
        torch.testing.assert_close(mine, other, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("trace", [0.0, 1e-30])
@ESTIMATORS
def test_absent_environments_are_silent(estimator, trace, dtype):
    """Environment 1 has one row, 2 has none (or what is left of a softmax), in value and slope."""
    q = one_hot([0, 0, 1, 0], 3).to(dtype)
    q[:, 2] = trace
    q.requires_grad_()
    loss = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype, requires_grad=True)
    gradient = torch.tensor([0.5, -1.0, 2.0, 1.0], dtype=dtype, requires_grad=True)
    inputs = [q, loss, gradient]

    risk = inv.environment_risk(loss, q)
    squares = inv.squared_gradient(gradient, q, estimator)
    assert risk[2].item() == 0 and squares[2].item() == 0
    for value in (risk[2], squares[2]):
        for slope in torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True):
            assert slope is None or (slope == 0).all()

    mass = inv.environment_mass(q)
    totals = [
        inv.irm_penalty(gradient, q, estimator),
        inv.risk_variance(risk, inv.present(q)),
        inv.balance(mass),
        inv.membership_entropy(q),
    ] + [inv.eiil_objective(kind, loss, gradient, q, estimator) for kind in inv.EIIL_KINDS]
    for total in totals:
        assert torch.isfinite(total)
        for slope in torch.autograd.grad(total, inputs, retain_graph=True, allow_unused=True):
            assert slope is None or torch.isfinite(slope).all()


def test_an_absent_environment_is_left_out_of_the_averages():
    loss, gradient = doubles(1, 2, 5), doubles(1, 2, -4)
    two, three = one_hot([0, 0, 1], 2), one_hot([0, 0, 1], 3)
    for q in (two, three):
        risk = inv.environment_risk(loss, q)
        assert inv.risk_variance(risk, inv.present(q)).item() == pytest.approx(1.75**2)
        assert inv.irm_penalty(gradient, q, "plain").item() == pytest.approx((1.5**2 + 16) / 2)


def test_an_empty_batch_costs_nothing():
    empty, q = torch.zeros(0), torch.zeros(0, 2)
    assert inv.irm_penalty(empty, q, "u").item() == 0
    assert inv.environment_risk(empty, q).tolist() == [0, 0]


# GroupDRO

EVERY = torch.tensor([True, True, True])
LN2 = math.log(2)


def test_group_dro_by_hand():
    weights = inv.group_dro_weights(doubles(0.5, 0.25, 0.25), doubles(1, 0, 2), EVERY, LN2)
    # Factors 2, 1, 4: 1, 1/4, 1.
    assert weights.tolist() == pytest.approx([4 / 9, 1 / 9, 4 / 9])


def test_group_dro_is_the_papers_formula():
    weights, risk = torch.rand(5, dtype=DOUBLE), torch.rand(5, dtype=DOUBLE)
    weights, counts = weights / weights.sum(), torch.tensor([5, 1, 40, 7, 100])
    ours = inv.group_dro_weights(
        weights, risk, torch.ones(5, dtype=torch.bool), 0.3, adjustment=2.0, counts=counts
    )
    product = weights * torch.exp(0.3 * (risk + 2.0 / counts.sqrt()))
    torch.testing.assert_close(ours, product / product.sum())


def test_group_dro_adjustment_by_hand():
    # Risks 0 + 1/1 and 0.5 + 1/2 are equal.
    weights = inv.group_dro_weights(
        doubles(0.3, 0.7), doubles(0, 0.5), EVERY[:2], 5.0, 1.0, torch.tensor([1, 4])
    )
    assert weights.tolist() == pytest.approx([0.3, 0.7])
    with pytest.raises(ConfigError, match="needs the counts"):
        inv.group_dro_weights(doubles(0.3, 0.7), doubles(0, 1), EVERY[:2], 1.0, adjustment=1.0)


def test_an_absent_environment_keeps_its_weight():
    some = torch.tensor([True, True, False])
    weights = doubles(0.5, 0.25, 0.25)
    # The present ones share 3/4 in the proportion 0.5 * 2 : 0.25.
    for risk in (0.0, 99.0, math.nan):
        found = inv.group_dro_weights(weights, doubles(1, 0, risk), some, LN2)
        assert found.tolist() == pytest.approx([0.6, 0.15, 0.25])
    # Large risks all over are no reason to take weight from whoever is not there.
    found = inv.group_dro_weights(weights, doubles(50, 50, 0), some, 1.0)
    assert found.tolist() == pytest.approx([0.5, 0.25, 0.25])
    alone = torch.tensor([True, False, False])
    assert inv.group_dro_weights(weights, doubles(9, 0, 0), alone, 1.0).tolist() == pytest.approx(
        weights.tolist()
    )
    nobody = torch.zeros(3, dtype=torch.bool)
    assert inv.group_dro_weights(weights, doubles(1, 2, 3), nobody, 1.0).tolist() == pytest.approx(
        weights.tolist()
    )


def test_an_absent_environment_moves_by_its_running_risk():
    weights, risk = doubles(0.5, 0.25, 0.25), doubles(1, 0, 0)
    some = torch.tensor([True, True, False])
    found = inv.group_dro_weights(weights, risk, some, LN2, running_risk=doubles(7, 7, 1))
    assert found.tolist() == pytest.approx([1 / 1.75, 0.25 / 1.75, 0.5 / 1.75])
    unknown = inv.group_dro_weights(weights, risk, some, LN2, running_risk=doubles(7, 7, math.nan))
    assert unknown.tolist() == pytest.approx([0.6, 0.15, 0.25])


def test_group_dro_never_overflows_and_can_come_back():
    weights = torch.tensor([0.5, 0.5])
    for _ in range(3):
        weights = inv.group_dro_weights(weights, torch.tensor([1e4, 0.0]), EVERY[:2], 1e3)
    assert weights.tolist() == [1, 0]
    for _ in range(100):
        weights = inv.group_dro_weights(weights, torch.tensor([0.0, 1.0]), EVERY[:2], 1.0)
    assert weights.tolist() == pytest.approx([0, 1], abs=1e-4)
    loss = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not inv.group_dro_weights(weights, loss, EVERY[:2], 0.1).requires_grad


def test_eta_zero_leaves_the_weights():
    weights = doubles(0.2, 0.3, 0.5)
    assert inv.group_dro_weights(weights, doubles(1, 2, 3), EVERY, 0.0).tolist() == pytest.approx(
        weights.tolist()
    )


# Oracles


def best_by_brute_force(kind, values, n_environments):
    best, argbest = -1.0, ()
    for environment in itertools.product(range(n_environments), repeat=len(values)):
        q = one_hot(environment, n_environments)
        value = inv.eiil_objective(kind, values, values, q, "plain").item()
        if value > best:
            best, argbest = value, environment
    return best, torch.tensor(argbest)


def same_partition(a, b):
    return torch.equal(a.unsqueeze(0) == a.unsqueeze(1), b.unsqueeze(0) == b.unsqueeze(1))


def test_sign_split_is_the_best_of_all_two_environments_of_irm_raw():
    gradient = torch.randn(10, generator=torch.Generator().manual_seed(5), dtype=DOUBLE)
    _, environment = best_by_brute_force("irm_raw", gradient, 2)
    assert same_partition(environment, partition.sign_split(gradient))


def test_irm_raw_with_three_environments_leaves_one_empty():
    gradient = torch.randn(7, generator=torch.Generator().manual_seed(6), dtype=DOUBLE)
    _, environment = best_by_brute_force("irm_raw", gradient, 3)
    assert len(environment.unique()) == 2


@pytest.mark.parametrize("kind", ["irm", "rex"])
@pytest.mark.parametrize("n_environments, n_rows", [(2, 11), (3, 8)])
def test_kmeans_is_the_best_of_all_environments(kind, n_environments, n_rows):
    values = torch.randn(n_rows, generator=torch.Generator().manual_seed(7), dtype=DOUBLE)
    best, environment = best_by_brute_force(kind, values, n_environments)
    ours = partition.kmeans_1d(values, n_environments)
    assert same_partition(environment, ours)
    q = one_hot(ours, n_environments)
    assert inv.eiil_objective(kind, values, values, q).item() == pytest.approx(best)


def ascend(kind, gradient, n_environments, seed):
    """Adam on a free table of logits; the hard environments and the value that are reached."""
    table = torch.randn(
        len(gradient), n_environments, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE
    ).requires_grad_()
    optimizer = torch.optim.Adam([table], lr=0.2, maximize=True)
    for _ in range(300):
        optimizer.zero_grad()
        inv.eiil_objective(kind, gradient, gradient, table.softmax(1), "plain").backward()
        optimizer.step()
    q = table.detach().softmax(1)
    return q, inv.eiil_objective(kind, gradient, gradient, q, "plain").item()


def test_ascent_on_irm_raw_reaches_the_sign_split():
    gradient = torch.randn(10, generator=torch.Generator().manual_seed(8), dtype=DOUBLE)
    q, _ = ascend("irm_raw", gradient, 2, seed=0)
    assert (q.max(dim=1).values > 0.98).all()
    assert same_partition(q.argmax(dim=1), partition.sign_split(gradient))


def test_ascent_on_irm_reaches_kmeans():
    gradient = torch.randn(12, generator=torch.Generator().manual_seed(9), dtype=DOUBLE)
    # Not convex: the best of a few starts.
    q, _ = max((ascend("irm", gradient, 2, seed) for seed in range(4)), key=lambda found: found[1])
    assert (q.max(dim=1).values > 0.98).all()
    assert same_partition(q.argmax(dim=1), partition.kmeans_1d(gradient, 2))


def kmeans_by_plain_dynamic_programming(values, k):
    """The within-cluster sum of squares of the best partition, in O(k N^2)."""
    x = sorted(values.tolist())
    cost = {
        (a, b): sum((v - sum(x[a:b]) / (b - a)) ** 2 for v in x[a:b])
        for a in range(len(x))
        for b in range(a + 1, len(x) + 1)
    }
    best = [0.0] + [cost[0, i] for i in range(1, len(x) + 1)]
    for _ in range(k - 1):
        best = [
            min([best[i]] + [best[j] + cost[j, i] for j in range(i)]) for i in range(len(x) + 1)
        ]
    return best[-1]


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", ["normal", "ties", "far from zero"])
def test_kmeans_is_exact(k, shape):
    rng = torch.Generator().manual_seed(k)
    for n in (1, 2, 5, 33):
        values = torch.randn(n, generator=rng, dtype=DOUBLE)
        if shape == "ties":
            values = (values * 2).round()
        if shape == "far from zero":
            values = values + 1e6
        cluster = partition.kmeans_1d(values, k)
        within = sum(
            (values[cluster == c] - values[cluster == c].mean()).square().sum().item()
            for c in cluster.unique()
        )
        assert within == pytest.approx(kmeans_by_plain_dynamic_programming(values, k), abs=1e-7)
        assert cluster.unique().tolist() == list(range(min(k, len(values.unique()))))
        assert (cluster[values.argsort()].diff() >= 0).all()


def test_kmeans_of_many_rows_and_of_few():
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    cluster = partition.kmeans_1d(values, 4)
    mean = torch.stack([values[cluster == c].mean() for c in range(4)])
    # Lloyd's condition: nobody is nearer to another centre.
    nearest = (values.unsqueeze(1) - mean).abs().argmin(dim=1)
    assert (nearest != cluster).sum() <= 2
    assert partition.kmeans_1d(torch.ones(4), 3).tolist() == [0, 0, 0, 0]
    assert partition.kmeans_1d(torch.zeros(0), 3).tolist() == []
    with pytest.raises(ValueError, match="finite"):
        partition.kmeans_1d(doubles(1, math.nan), 2)


def test_sign_split():
    assert partition.sign_split(doubles(-1, 0, 2)).tolist() == [0, 0, 1]
