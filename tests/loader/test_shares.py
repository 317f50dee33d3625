"""Which rows of each batch a process reads."""

import pytest
import torch

from recbole_adv import processes
from recbole_adv.errors import DataError
from recbole_adv.loader import shares


@pytest.fixture
def of(monkeypatch):
    """``of(rank, count)``: what follows is told to this process."""

    def pretend(rank, count):
        monkeypatch.setattr(processes, "rank", lambda: rank)
        monkeypatch.setattr(processes, "count", lambda: count)

    return pretend


@pytest.mark.parametrize(
    "n, n_rows, drop_last, sizes",
    [
        (1, 23, False, [10, 10, 3]),
        (1, 21, True, [10, 10, 1]),  # which the loop leaves out
        (2, 23, False, [10, 13]),  # 3 rows are fewer than two for each
        (2, 24, False, [10, 10, 4]),
        (2, 24, True, [10, 10]),
        (2, 20, True, [10, 10]),
        (3, 25, False, [10, 15]),
        (3, 26, False, [10, 10, 6]),
        (2, 3, True, [3]),
    ],
)
def test_batches_of_all(n, n_rows, drop_last, sizes, of):
    of(0, n)
    assert shares.batch_sizes(n_rows, 10, drop_last) == sizes


@pytest.mark.parametrize("n_rows, step", [(2, 10), (20, 2)])
def test_too_few_rows_for_all(n_rows, step, of):
    of(0, 3)
    with pytest.raises(
        DataError, match="got 2 rows and 3 processes; write a larger train_batch_size"
    ):
        shares.batch_sizes(n_rows, step)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_the_rows_of_all_are_all_rows_and_weights_make_their_mean(n, of):
    order, value = torch.randperm(53), torch.rand(53, dtype=torch.float64)
    of(0, n)
    sizes = shares.batch_sizes(53, 10)
    batches, means = [[] for _ in sizes], [0.0 for _ in sizes]
    for rank in range(n):
        of(rank, n)
        own = shares.own_rows(order, sizes).split([shares.own_size(size) for size in sizes])
        for b, rows in enumerate(own):
            assert len(rows) >= 2 or n == 1
            batches[b] += rows.tolist()
            means[b] += shares.weight_of(sizes[b]) * float(value[rows].mean()) / n
    for b, batch in enumerate(order[: sum(sizes)].split(sizes)):
        assert sorted(batches[b]) == sorted(batch.tolist())
        assert means[b] == pytest.approx(float(value[batch].mean()), rel=1e-12)


def test_even_shares_weigh_exactly_one(of):
    for n in (2, 3, 7):
        of(n - 1, n)
        assert shares.weight_of(2048 * n) == 1.0


@pytest.mark.parametrize("n_batches", [0, 1, 5, 8])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_blocks_follow_one_another(n_batches, n, of):
    found = []
    for rank in range(n):
        of(rank, n)
        found += shares.own_block(n_batches)
    assert found == list(range(n_batches))


def test_worker_processes_of_two_draw_other_numbers():
    drawn = []
    for rank in (0, 1):
        torch.manual_seed(3)
        shares._OwnSeed(rank)(0)
        drawn.append(torch.rand(4))
    assert not torch.equal(*drawn)
