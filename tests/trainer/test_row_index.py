"""``inter_idx`` says of which training row a batch row was made."""

import pytest
import torch

from recbole_adv.errors import ConfigError

# needs_row_index is a property of the models over a backbone; batches do not depend on the rest.
EIIL = {"n_environments": 2, "generator": "table", "train_batch_size": 200}


def negatives(n):
    return {"train_neg_sample_args": {"distribution": "uniform", "sample_num": n}}


def epochs_of(run, epochs=2):
    """The batches of some epochs, as the trainer reads them."""
    run.trainer._before_fit(run.train)
    if hasattr(run.train, "set_mode"):
        from recbole.utils import KGDataLoaderState

        run.train.set_mode(KGDataLoaderState.RSKG)
    return [list(run.train) for _ in range(epochs)]


@pytest.mark.parametrize(
    "backbone, settings, tiles, labelled",
    [
        ("BPR", {}, 1, False),
        ("BPR", negatives(3), 3, False),
        ("NeuMF", negatives(2), 3, True),
        ("DeepFM", negatives(1), 2, True),
        ("SASRec", {}, 1, False),
        ("SASRec", {**negatives(2), "loss_type": "BPR"}, 2, False),
        ("CKE", {}, 1, False),
    ],
)
def test_each_row_once_an_epoch_with_its_own_user_and_item(
    backbone, settings, tiles, labelled, tiny
):
    run = tiny("EIIL", backbone=backbone, **{**EIIL, **settings})
    rows = run.train._dataset.inter_feat
    before = {field: rows[field].clone() for field in rows.columns}
    orders = []
    for batches in epochs_of(run):
        seen = []
        for batch in batches:
            index = batch["inter_idx"]
            n = len(index) // tiles
            assert len(index) == n * tiles == len(batch["item_id"])
            for tile in range(1, tiles):  # a negative carries the index of its positive
                assert torch.equal(index[tile * n : (tile + 1) * n], index[:n])
            positive = index[:n]
            for field, values in before.items():
                if field in batch.columns:
                    assert torch.equal(batch[field][:n], values[positive]), field
            assert torch.equal(batch["user_id"], before["user_id"][index])
            if labelled:
                assert batch["label"].tolist() == [1.0] * n + [0.0] * (n * (tiles - 1))
                assert not torch.equal(batch["item_id"][n : 2 * n], batch["item_id"][:n])
            seen.append(positive)
        assert len(batches) > 1
        orders.append(torch.cat(seen))
        assert torch.equal(orders[-1].sort().values, torch.arange(len(rows)))
    assert not torch.equal(*orders)  # shuffled anew
    assert not torch.equal(orders[0], orders[0].sort().values)


def test_sequences_are_those_of_their_row(tiny):
    run = tiny("EIIL", backbone="SASRec", **EIIL)
    rows = run.train._dataset.inter_feat
    assert len(rows) > 1000  # augmented: a row for each prefix
    for batch in epochs_of(run, 1)[0]:
        index = batch["inter_idx"]
        assert torch.equal(batch["item_id_list"], rows["item_id_list"][index])
        assert torch.equal(batch["item_length"], rows["item_length"][index])


def test_the_index_is_added_once_and_only_where_it_is_wanted(tiny):
    plain = tiny("BPR")
    plain.batch()
    assert "inter_idx" not in plain.train._dataset.inter_feat
    run = tiny("EIIL", **EIIL)
    run.batch()
    run.batch()  # a second fit of the same trainer
    rows = run.train._dataset.inter_feat["inter_idx"]
    assert torch.equal(rows, torch.arange(len(rows)))
    assert "inter_idx" not in run.valid._dataset.inter_feat


@pytest.fixture
def data_with_a_column(tmp_path):
    """A small data set with a column ``inter_idx`` of its own."""
    folder = tmp_path / "data" / "own"
    folder.mkdir(parents=True)
    lines = ["user_id:token\titem_id:token\ttimestamp:float\tinter_idx:float"]
    lines += [f"u{u}\ti{(u + k) % 12}\t{k}\t{7 * k}" for u in range(12) for k in range(5)]
    (folder / "own.inter").write_text("\n".join(lines) + "\n")
    columns = ["user_id", "item_id", "timestamp", "inter_idx"]
    return {"data_path": str(folder.parent), "load_col": {"inter": columns}}


def test_a_column_of_that_name_in_the_data_is_refused(data_with_a_column, tiny):
    run = tiny("EIIL", dataset="own", **{**EIIL, **data_with_a_column})
    with pytest.raises(
        ConfigError, match="column 'inter_idx' of its own; write another INTER_IDX_F"
    ):
        run.fit(saved=False)
    renamed = {**EIIL, **data_with_a_column, "INTER_IDX_FIELD": "row_number"}
    run = tiny("EIIL", dataset="own", epochs=1, **renamed)
    run.fit(saved=False)
    assert run.trainer.train_loss_dict[0] > 0
