"""What an attack reaches: shares of the gradient by hand, and those measured on ml-100k."""

import os

import pytest
import torch
from recbole.model.general_recommender import BPR
from torch import nn

from recbole_adv import cli
from recbole_adv.technique.attack.audit import audit, coverage
from recbole_adv.technique.attack.functional import loss_at
from recbole_adv.technique.attack.tables import Table, embedding_tables, find_tables

TABLES = torch.tensor([[1.0, 0.0], [3.0, 4.0], [0.0, 2.0]])


class Both(nn.Module):
    """Reads row 1 by lookup and all rows by a product; 5 of the gradient of row 1 is direct."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3, 2, padding_idx=0)
        self.table.weight.data.copy_(TABLES)
        self.other = nn.Parameter(torch.ones(2))

    def calculate_loss(self, batch):
        looked_up = self.table(torch.tensor([1, 1, 0])).sum()
        direct = 5 * self.table.weight[1, 0] + 2 * self.table.weight[0, 1]
        return looked_up + direct + (3 * self.other).sum()


def test_coverage_by_hand():
    model = Both()
    (table,) = find_tables(model, list(model.parameters()))
    assert (table.name, table.padding) == ("table.weight", 0)
    found = audit(model, list(model.parameters()), [table], model.calculate_loss, None)
    (row,) = found.rows
    # Lookups give (2, 2) to row 1, the product (5, 0) to row 1 and (0, 2) to the padding row.
    assert row.gradient_norm == pytest.approx((49 + 4 + 4) ** 0.5)
    assert row.direct_frac == pytest.approx((29 / 57) ** 0.5)
    assert (row.n_touched, row.n_looked_up, row.by_lookup) == (2, 2, False)
    assert row.padding_norm == pytest.approx(2)
    assert row.mean_row_norm == pytest.approx((5 + 2) / 2)  # padding left out
    assert found.share == pytest.approx(57 / (57 + 18))
    assert model.table.weight.grad is None and not model.table._forward_hooks


def test_a_table_without_a_gradient():
    model = Both()
    table = Table("table.weight", model.table.weight, (model.table,))
    (row,) = coverage([table], lambda tensors: [None])
    assert row.gradient_norm is row.direct_frac is row.padding_norm is None
    assert (row.n_touched, row.n_looked_up, row.by_lookup) == (0, 0, False)


@pytest.mark.parametrize(
    "model, direct, settings",
    [
        ("BPR", [0, 0], {}),
        ("LightGCN", [1, 1], {}),
        ("NGCF", [1, 1], {"hidden_size_list": [8]}),
        ("NeuMF", [0, 0, 0, 0], {}),
        (
            "SimpleX",
            [0, 0],
            {"train_neg_sample_args": {"distribution": "uniform", "sample_num": 3}},
        ),
        ("DeepFM", [0, 0], {}),
    ],
)
def test_models_that_read_their_tables_one_way(model, direct, settings, tiny):
    run = tiny(model, **settings)
    model, batch = run.model.train(), run.batch()
    state = torch.get_rng_state()
    parameters = list(model.parameters())
    tables = embedding_tables(model, parameters)
    found = audit(model, parameters, tables, model.calculate_loss, batch)
    assert [row.direct_frac for row in found.rows] == pytest.approx(direct, abs=1e-5)
    assert [row.by_lookup for row in found.rows] == [value == 0 for value in direct]
    assert torch.get_rng_state().equal(state)


@pytest.mark.parametrize(
    "model, direct",
    [("SASRec", {"item_embedding.weight": 0.8281, "position_embedding.weight": 0.0})]
    + [("FISM", {"item_src_embedding.weight": 0.7733, "item_dst_embedding.weight": 0.795})],
)
def test_figures_measured_on_ml_100k(model, direct, tiny):
    """By another program, at batches of 256 of the default configurations."""
    defaults = {"embedding_size": 64, "data_path": "dataset", "load_col": None}
    of_sasrec = {"hidden_size": 64, "inner_size": 256, "n_layers": 2, "MAX_ITEM_LIST_LENGTH": 20}
    defaults |= of_sasrec if model == "SASRec" else {}
    run = tiny(model, "ml-100k", **defaults)
    parameters = list(run.model.parameters())
    tables = embedding_tables(run.model, parameters)
    found = audit(run.model.train(), parameters, tables, run.model.calculate_loss, run.batch())
    shares = {row.table.name: row.direct_frac for row in found.rows}
    assert shares == pytest.approx(direct, abs=0.02)
    padding = found.rows[0].padding_norm
    assert padding > 0  # of the full softmax, or of the sum over a history, in spite of padding_idx


class Twice(BPR):
    """Two modules look rows up in one table."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.again = nn.Embedding(self.n_items, self.embedding_size)
        self.again.weight = self.item_embedding.weight

    def get_item_embedding(self, item):
        return (self.item_embedding(item) + self.again(item)) / 2


def test_a_table_that_two_modules_read_is_one_table(tiny):
    run = tiny(Twice)
    parameters = list(run.model.parameters())
    tables = find_tables(run.model, parameters)
    assert [table.name for table in tables] == ["user_embedding.weight", "item_embedding.weight"]
    found = audit(run.model, parameters, tables, run.model.calculate_loss, run.batch())
    assert found.rows[1].by_lookup and found.rows[1].direct_frac < 1e-6


def test_the_oracle_writes_no_weight_and_can_be_differentiated(tiny):
    run = tiny("BPR")
    batch, before = run.batch(), {n: p.clone() for n, p in run.model.named_parameters()}
    delta = {n: torch.full_like(p, 0.1).requires_grad_() for n, p in before.items()}
    loss = loss_at(run.model, delta, run.model.calculate_loss, batch)
    gradients = torch.autograd.grad(loss, list(delta.values()))
    assert all(p.equal(before[n]) for n, p in run.model.named_parameters())
    with torch.no_grad():
        for p in run.model.parameters():
            p.add_(0.1)
    moved = run.model.calculate_loss(batch)
    assert loss.item() == pytest.approx(moved.item(), abs=1e-7)
    for mine, other in zip(gradients, torch.autograd.grad(moved, list(run.model.parameters()))):
        torch.testing.assert_close(mine, other)


# --- the command ------------------------------------------------------------------------------------


def run_audit(capsys, settings_of, model, *arguments):
    """The lines that the command prints, and its exit code."""
    settings = settings_of(model, show_progress=False)
    given = [f"--{key}={value}" for key, value in settings.items()]
    code = cli.main(["audit", "-m", model, "-d", "checkerboard", *given, *arguments])
    printed = capsys.readouterr()
    return code, printed.out.splitlines(), printed.err


def test_the_command_describes_an_attack_and_leaves_no_file(capsys, settings_of, tmp_path):
    code, lines, _ = run_audit(capsys, settings_of, "SASRec", "--embedding_attack_epsilon=0.1")
    assert code == 0
    assert lines[0].startswith("SASRec on checkerboard, a batch of 256 rows, loss ")
    assert lines[1] == "preset apr: scope row, norm l2, epsilon 0.1 absolute"
    assert lines[2:4] == ["attacked: item_embedding.weight", "left out: position_embedding.weight"]
    table = [line.split("  ") for line in lines[6:]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in table]
    assert cells[0] == [
        "table",
        "shape",
        "written",
        "share",
        "direct",
        "touched",
        "looked up",
        "padding",
        "row norm",
        "epsilon / row",
    ]
    item, position = cells[1:]
    assert item[0] == "item_embedding.weight" and item[2] == "all rows"
    assert float(item[9]) == pytest.approx(0.1 / float(item[8]), rel=0.01)
    assert position[2] == "no" and position[-1] == "-"
    assert float(lines[4].split(": ")[1]) == pytest.approx(float(item[3]), abs=1e-4)
    assert os.listdir(tmp_path) == []


def test_the_command_audits_a_trained_model(capsys, tiny, settings_of):
    tiny("BPR", run_dir="trained", learning_rate=0.5).fit()
    assert cli.main(["audit", "--checkpoint=trained", "--embedding_attack_preset=freelb"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "scope sample, norm l2, epsilon 0.2 x row norm" in lines[1]
    trained = float(lines[-1].split()[-2])
    assert lines[-1].split()[4] == "lookups" and float(lines[-1].split()[-1]) == 0.2
    _, fresh, _ = run_audit(capsys, settings_of, "BPR")
    assert trained > 1.5 * float(fresh[-1].split()[-2])


@pytest.mark.parametrize(
    "model, sentence",
    [
        ("MultiVAE", "embedding_attack finds no embedding table in MultiVAE; write the names of"),
        ("Pop", "Pop is not trained by gradient descent, so techniques have no effect"),
    ],
)
def test_what_cannot_be_audited_is_one_sentence(model, sentence, capsys, settings_of):
    more = ("--train_neg_sample_args=None",) if model == "MultiVAE" else ()
    code, lines, error = run_audit(capsys, settings_of, model, *more)
    assert code == 2 and not lines and sentence in error


def test_a_loss_that_only_its_trainer_can_call(capsys, settings_of):
    given = ("--train_neg_sample_args=None", "--embedding_attack_targets=['decoder']")
    code, _, error = run_audit(capsys, settings_of, "RecVAE", *given)
    assert code == 2 and "the loss of RecVAE cannot be taken on a batch by itself" in error
