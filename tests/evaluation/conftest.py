"""A recommender with given scores on data small enough to rank by hand."""

from __future__ import annotations

import pytest
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType


class GivenScores(GeneralRecommender):
    """Scores by the names of users and items; what is not given is 0."""

    input_type = InputType.PAIRWISE
    given: dict = {}

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        scores = torch.zeros(dataset.user_num, dataset.item_num)
        for user, of_user in self.given.items():
            for item, score in of_user.items():
                u = dataset.token2id(dataset.uid_field, user)
                scores[u, dataset.token2id(dataset.iid_field, item)] = score
        self.register_buffer("scores", scores)

    def calculate_loss(self, interaction):
        return self.weight.sum()

    def predict(self, interaction):
        return self.scores[interaction[self.USER_ID], interaction[self.ITEM_ID]]

    def full_sort_predict(self, interaction):
        return self.scores[interaction[self.USER_ID]].view(-1).clone()


class OnlyPredict(GivenScores):
    """The same without a method for all items."""

    def full_sort_predict(self, interaction):
        raise NotImplementedError


# Users a b c d, items p q r s t v. In the test, a has targets q and r (r is a training pair, too:
# a leak), b has s, c has p and t. d is in no test.
PARTS = {
    "train": "a p,a r,b p,b q,c q,d p,d s,d t,d v",
    "valid": "a s,b r,c r",
    "test": "a q,a r,b s,c p,c t",
}
# a ranks p > r > q > s > t > v, b ranks p > q > t > s > r > v, c ranks v > t > s > r > q > p.
SCORES = {
    "a": dict(zip("prqstv", range(9, 3, -1))),
    "b": dict(zip("pqtsrv", range(9, 3, -1))),
    "c": dict(zip("vtsrqp", range(9, 3, -1))),
}


class Reverses(GivenScores):
    """Ranks by SCORES after one step of Adam at 0.01, the other way round after two."""

    given = SCORES

    def full_sort_predict(self, interaction):
        return (self.scores * (self.weight + 0.015))[interaction[self.USER_ID]].view(-1)


def write_pairs(path, pairs, header="user_id item_id"):
    """A file of rows such as ``a p``, separated by commas."""
    names = "\t".join(f"{name}:token" if ":" not in name else name for name in header.split())
    rows = "\n".join("\t".join(row.split()) for row in pairs.split(","))
    path.write_text(f"{names}\n{rows}\n")
    return str(path)


@pytest.fixture
def reverses():
    return Reverses


@pytest.fixture
def pairs_file(tmp_path):
    """``pairs_file(name, "a p,b q")`` writes a file and gives its path."""
    return lambda name, pairs, header="user_id item_id": write_pairs(tmp_path / name, pairs, header)


@pytest.fixture
def toy(tiny, tmp_path):
    """``toy(parts, scores, model, **keys)`` -> a run that is ready to be evaluated."""

    def build(parts=PARTS, scores=SCORES, model=GivenScores, header="user_id item_id", **keys):
        folder = tmp_path / "toy"
        folder.mkdir(exist_ok=True)
        for part, pairs in parts.items():
            write_pairs(folder / f"toy.{part}.inter", pairs, header)
        model.given = GivenScores.given = scores
        names = [column.partition(":")[0] for column in header.split()]
        settings = {
            "data_path": str(tmp_path),
            "benchmark_filename": list(parts),
            "load_col": {"inter": names},
            "metrics": ["Recall", "NDCG", "Hit", "MRR", "Precision"],
            "topk": [2],
            "valid_metric": "Recall@2",
            "metric_decimal_place": 6,
            **keys,
        }
        run = tiny(model, "toy", **settings)
        prepared = run.dataset.prepared
        from recbole_adv.evaluation.further_sets import further_tests, further_valids

        tests = further_tests(run.config, prepared)
        further = further_valids(prepared)
        run.trainer.prepare_evaluation(run.train, run.valid, further, [run.test, *tests.values()])
        run.tests = tests
        run.of_test = lambda: run.trainer.evaluate(run.test, load_best_model=False)
        return run

    return build
