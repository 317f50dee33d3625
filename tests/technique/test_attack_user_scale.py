"""Users' factors of VAT and PamaCF, and the radius they make."""

import math

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_adv.errors import ConfigError
from recbole_adv.technique.attack.user_scale import pama_factors, row_factors, vat_factors


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_vat_by_hand():
    """Users 7 and 3: losses 0.2 + 0.4 and 1.8, as sums 0.6 and 1.8 with the mean 1.2."""
    losses, users = torch.tensor([0.2, 1.8, 0.4]), torch.tensor([7, 3, 7])
    seven, three = 2 * sigmoid(1.2 / 0.6 - 1), 2 * sigmoid(1.2 / 1.8 - 1)
    assert vat_factors(losses, users).tolist() == pytest.approx([seven, three, seven])
    # As means 0.3 and 1.8, with the mean 1.05: user 7 is fitted better than its two rows suggest.
    seven, three = 2 * sigmoid(1.05 / 0.3 - 1), 2 * sigmoid(1.05 / 1.8 - 1)
    assert vat_factors(losses, users, "mean").tolist() == pytest.approx([seven, three, seven])


def test_pama_by_hand():
    """The mean is over the rows of the batch, not over distinct users."""
    factors = pama_factors(torch.tensor([1.0, 4.0, 4.0]))
    expected = [2 * sigmoid(1 / 3 - 1), 2 * sigmoid(4 / 3 - 1), 2 * sigmoid(4 / 3 - 1)]
    assert factors.tolist() == pytest.approx(expected)


def test_equal_users_have_factor_one_and_all_lie_in_the_official_range():
    users = torch.arange(50)
    assert vat_factors(torch.full((50,), 0.3), users).tolist() == pytest.approx([1.0] * 50)
    assert pama_factors(torch.full((50,), 2.0)).tolist() == pytest.approx([1.0] * 50)
    torch.manual_seed(0)
    spread = torch.rand(50).exp() ** 8
    for factors in (vat_factors(spread, users), pama_factors(spread)):
        assert factors.min() > 0.537 and factors.max() <= 2.0  # 2 sigmoid(-1) = 0.538
    assert (
        vat_factors(spread, users)[spread.argmin()]
        > 1
        > vat_factors(spread, users)[spread.argmax()]
    )
    assert pama_factors(spread)[spread.argmax()] > 1 > pama_factors(spread)[spread.argmin()]


def test_the_order_of_the_rows_does_not_matter():
    torch.manual_seed(0)
    losses, users, order = torch.rand(40), torch.randint(0, 9, (40,)), torch.randperm(40)
    for reduce in ("sum", "mean"):
        whole = vat_factors(losses, users, reduce)
        torch.testing.assert_close(vat_factors(losses[order], users[order], reduce), whole[order])


def test_items_have_the_mean_factor_of_their_rows():
    factors = torch.tensor([0.5, 1.5, 1.0])
    rows = row_factors(5, [torch.tensor([1, 1, 2]), torch.tensor([3, 2, 3])], factors)
    assert rows.tolist() == pytest.approx([1.0, 1.0, 1.25, 0.75, 1.0])


BATCH = Interaction(
    {
        "user_id": torch.tensor([1, 1, 2]),
        "item_id": torch.tensor([3, 4, 5]),
        "neg_item_id": torch.tensor([6, 7, 3]),
    }
)


def expected_factors(kind, run):
    """From the tables, by hand."""
    p, q = (t.parameter.detach() for t in run.attack.tables)
    u, i, j = BATCH["user_id"], BATCH["item_id"], BATCH["neg_item_id"]
    if kind == "pama":
        squares = p[u].square().sum(1)
        return 2 * torch.sigmoid(squares / squares.mean() - 1)
    losses = torch.log1p(torch.exp(-(p[u] * (q[i] - q[j])).sum(1)))
    one, two = losses[0] + losses[1], losses[2]
    mean = (one + two) / 2
    return 2 * torch.sigmoid(torch.stack([mean / one, mean / one, mean / two]) - 1)


@pytest.mark.parametrize("kind", ["vat", "pama"])
def test_radii_of_rows(kind, attacked):
    run = attacked("BPR", {"user_scale": kind, "epsilon": 0.4, "start_epoch": 0}, double=True)
    c = expected_factors(kind, run)
    run.gradients(BATCH)
    user, item = (delta.norm(dim=1) for delta in run.deltas().values())
    assert user[[1, 2]].tolist() == pytest.approx((0.4 * c[[0, 2]]).tolist(), abs=1e-8)
    of_items = {3: (c[0] + c[2]) / 2, 4: c[1], 5: c[2], 6: c[0], 7: c[1]}
    for row, factor in of_items.items():
        assert item[row].item() == pytest.approx(0.4 * factor.item(), abs=1e-8)
    assert item.count_nonzero() == 5


@pytest.mark.parametrize("kind", ["vat", "pama"])
def test_radii_of_occurrences_are_the_official_ones(kind, attacked):
    """The user's factor also scales the perturbation of the row's items; nothing is merged."""
    settings = {"user_scale": kind, "scope": "sample", "epsilon": 0.4, "start_epoch": 0}
    run = attacked("BPR", settings, double=True)
    c = expected_factors(kind, run)
    (put,), _ = run.puts(BATCH)
    assert len(put) == 3
    for delta in put:
        assert delta.norm(dim=1).tolist() == pytest.approx((0.4 * c).tolist(), abs=1e-8)


def test_a_graph_model_has_factors_by_table_too(attacked):
    run = attacked("LightGCN", {"user_scale": "vat", "epsilon": 0.4, "start_epoch": 0})
    run.gradients()
    norms = torch.cat([delta.norm(dim=1) for delta in run.deltas().values()])
    moved = norms[norms > 0]
    assert 0.4 * 0.537 < moved.min() < 0.39 and 0.41 < moved.max() <= 0.8
    assert run.model.restore_user_e is None


def test_who_has_no_users_or_no_pairs_is_refused(attacked):
    with pytest.raises(
        ConfigError, match="user_scale: vat is made for pairs of items, which NeuMF"
    ):
        attacked("NeuMF", {"user_scale": "vat"})
    with pytest.raises(
        ConfigError, match="pama needs a table of users among those attacked, got item"
    ):
        attacked("BPR", {"user_scale": "pama", "targets": ["item"]})
