"""Sequences gathered when they are read equal those that RecBole writes."""

import copy
import pickle

import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_adv.loader.sequences import SequenceRows, gather, sequence_places

COLUMNS = ["user_id", "item_id", "timestamp", "price", "words", "sizes"]
WIDE = {"load_col": {"inter": COLUMNS}, "MAX_ITEM_LIST_LENGTH": 4}


@pytest.fixture
def wide(tmp_path):
    """Settings of a data set with a number, a list of words and a list of numbers in each row."""
    folder = tmp_path / "data" / "wide"
    folder.mkdir(parents=True)
    kinds = ["token", "token", "float", "float", "token_seq", "float_seq"]
    lines = ["\t".join(f"{c}:{k}" for c, k in zip(COLUMNS, kinds))]
    for u in range(15):
        for k in range(u % 7 + 3):
            words = " ".join(f"w{(u + j) % 5}" for j in range(1 + (u + k) % 3))
            sizes = " ".join(str(0.5 * (u + j)) for j in range(1 + k % 2))
            row = (f"u{u}", f"i{(3 * u + 5 * k) % 23}", (7 * k) % 11, u + 0.25 * k, words, sizes)
            lines.append("\t".join(map(str, row)))
    (folder / "wide.inter").write_text("\n".join(lines) + "\n")
    return {
        **WIDE,
        "data_path": str(folder.parent),
        "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO"},
    }


def both(tiny, dataset="checkerboard", **settings):
    """The parts of a run with RecBole's tables and of one with histories."""
    runs = [
        tiny("SASRec", dataset, train_loader=kind, **settings) for kind in ("recbole", "tensor")
    ]
    parts = [[d._dataset.inter_feat for d in (r.train, r.valid, r.test)] for r in runs]
    assert all(type(rows) is SequenceRows for rows in parts[1])
    return list(zip(*parts))


def equal(one, other):
    """All columns of two Interactions, read one by one, bit for bit."""
    assert sorted(one.columns) == sorted(other.columns) and len(one) == len(other)
    for name in one.columns:
        assert one[name].dtype == other[name].dtype, name
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize("numbers", [[], ["price"], ["price", "sizes"]])
def test_every_column_equals_recboles(numbers, wide, tiny):
    for table, rows in both(tiny, "wide", **wide, numerical_features=numbers):
        assert len(table) > 0 and "words_list" in table.columns
        equal(table, rows)
        equal(table, rows.plain())


@pytest.mark.parametrize("length", [1, 3, 50])
def test_sequences_shorter_and_longer_than_the_bound(length, tiny):
    for table, rows in both(tiny, MAX_ITEM_LIST_LENGTH=length):
        equal(table, rows)
        assert rows["item_id_list"].shape[1] == length


@pytest.mark.parametrize(
    "split",
    [
        {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": "user", "order": "TO"}},
        {"eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "group_by": None, "order": "TO"}},
        {"shift_split": "popularity"},
    ],
)
def test_other_splits(split, tiny):
    for table, rows in both(tiny, **split):
        equal(table, rows)


def test_it_is_an_interaction_to_who_reads_it(wide, tiny):
    table, rows = both(tiny, "wide", **wide)[0]
    choices = [slice(2, 9), [3, 1, 1], torch.tensor([5, 0]), torch.arange(len(table)) % 3 == 0]
    for index in [*choices, choices[2].numpy()]:
        equal(table[index], rows[index])
        assert type(rows[index]) is SequenceRows
    one, other = table[3], rows[3]
    assert all(torch.equal(one[name], other[name]) for name in table.columns)
    assert torch.equal(rows.item_id_list, table.item_id_list) and list(rows) == rows.columns
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        _ = rows.colour
    assert "history_end" not in rows and "item_id_list" in rows and "colour" not in rows
    for read in (lambda x: x.to("cpu"), lambda x: x.repeat(2), lambda x: x.repeat_interleave(2)):
        equal(read(table), read(rows))
        assert type(read(rows)) is Interaction
    equal(table, copy.deepcopy(rows))
    equal(table, pickle.loads(pickle.dumps(rows)))
    assert str(rows) == str(rows.plain())


def test_it_is_an_interaction_to_who_writes_it(wide, tiny):
    table, rows = (copy.deepcopy(x) for x in both(tiny, "wide", **wide)[0])
    for x in (table, rows):
        x["number"] = torch.arange(len(x))
        x.update(Interaction({"two": torch.ones(len(x)), "price_list": torch.zeros(len(x), 4)}))
        del x["words_list"]
        x.drop("words")
        x.sort(["item_length", "number"])
        x._reindex(torch.arange(len(x)).flip(0))
    equal(table, rows)
    with pytest.raises(ValueError, match="Column"):
        rows.drop("words")
    torch.manual_seed(0)
    table.shuffle()
    torch.manual_seed(0)
    rows.shuffle()
    equal(table, rows)


def test_places_by_hand():
    # Histories a b c | d e, and the rows that predict c (of a b), e (of d), with L = 3.
    end, length = torch.tensor([2, 4]), torch.tensor([2, 1])
    place, beyond = sequence_places(end, length, 3)
    assert beyond.tolist() == [[False, False, True], [False, True, True]]
    values = torch.tensor([10, 11, 12, 13, 14])
    assert gather(values, place, beyond).tolist() == [[10, 11, 0], [13, 0, 0]]
    nan = torch.full((5, 2), float("nan"))
    assert gather(nan, place, beyond)[0, 2].tolist() == [0, 0]


def test_only_what_is_kept_takes_memory(tiny):
    """Nothing of the size of rows x L lies in the parts."""
    from recbole_adv.loader.device_rows import size_in_bytes

    for table, rows in both(tiny, MAX_ITEM_LIST_LENGTH=50)[:1]:
        assert size_in_bytes(rows) < size_in_bytes(table) / 10
        assert (
            rows.histories["item_id_list"].data_ptr()
            == rows[:5].histories["item_id_list"].data_ptr()
        )


def test_an_augmentation_of_its_own_is_kept(tiny, settings_of):
    """DIEN adds sequences of negatives; RecBole's code runs for it."""
    extra = {"load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "mlp_hidden_size": [8]}
    extra |= {
        "MAX_ITEM_LIST_LENGTH": 5,
        "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
    }
    extra |= {
        "metrics": ["Recall"],
        "valid_metric": "Recall@10",
        "eval_args": {"mode": "full", "order": "TO"},
    }
    run = tiny("DIEN", train_loader="tensor", **extra)
    assert not isinstance(run.train._dataset.inter_feat, SequenceRows)
    assert "neg_item_id_list" in run.train._dataset.inter_feat
    run.fit(saved=False)


def test_models_that_look_at_the_whole_data_set(tiny):
    """``inter_matrix`` takes the first items of the users from the sequences."""
    runs = [tiny("SASRec", train_loader=kind) for kind in ("recbole", "tensor")]
    one, other = (r.train._dataset.inter_matrix() for r in runs)
    assert one.nnz > 0 and (one != other).nnz == 0
    counts = [(r.train._dataset.item_counter, r.train._dataset.user_counter) for r in runs]
    assert counts[0] == counts[1]
    assert runs[0].trainer.evaluate(runs[0].test, load_best_model=False) == runs[
        1
    ].trainer.evaluate(runs[1].test, load_best_model=False)
