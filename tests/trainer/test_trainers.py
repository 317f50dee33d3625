"""The trainers: under RecBole's own, and what a model is told on the way."""

import pytest
import recbole.trainer as stock
import torch
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.model.general_recommender import BPR, NCL
from recbole.utils import InputType
from torch import nn

from recbole_adv.errors import ConfigError
from recbole_adv.game.penalty import PenaltySchedule
from recbole_adv.trainer import AdvTrainer, INVTrainer, compose

ONE_EPOCH = {"epochs": 1, "eval_step": 0, "train_batch_size": 256}


def names(trainer):
    return [cls.__name__ for cls in trainer.__mro__[1:]]


@pytest.mark.parametrize(
    "special, above",
    [
        ("KGTrainer", ["KGTrainer"]),
        ("KGATTrainer", ["KGATTrainer"]),
        ("MKRTrainer", ["MKRTrainer"]),
        ("RecVAETrainer", ["RecVAETrainer"]),
        ("TraditionalTrainer", ["TraditionalTrainer"]),
        ("S3RecTrainer", ["S3RecTrainer", "PretrainTrainer"]),
        ("RaCTTrainer", ["RaCTTrainer", "PretrainTrainer"]),
    ],
)
def test_ours_slides_between_the_special_trainer_and_recboles(special, above):
    below = [
        "SelectionMixin",
        "RunStateMixin",
        "SnapshotMixin",
        "Trainer",
        "AbstractTrainer",
        "object",
    ]
    alone = compose(getattr(stock, special), AdvTrainer)
    assert names(alone) == [*above, "AdvTrainer", *below]
    game = compose(getattr(stock, special), INVTrainer)
    assert names(game) == [*above, "INVTrainer", "AdvTrainer", *below]
    assert compose(getattr(stock, special), AdvTrainer) is alone
    # The epoch is theirs, the batches are ours.
    owner = next(cls for cls in alone.__mro__ if "_train_epoch" in vars(cls))
    assert owner in (getattr(stock, special), AdvTrainer)


def test_the_plain_trainer_is_ours_alone():
    assert compose(stock.Trainer, AdvTrainer) is AdvTrainer
    assert compose(stock.Trainer, INVTrainer) is INVTrainer


@pytest.mark.parametrize("ours", [AdvTrainer, INVTrainer])
@pytest.mark.parametrize("tree", ["XGBoostTrainer", "LightGBMTrainer"])
def test_decision_trees_are_refused(tree, ours):
    with pytest.raises(ConfigError, match=f"{tree} does not train by gradient.*RecBole's own"):
        compose(getattr(stock, tree), ours)


def test_ncl_is_refused_under_a_game_only(tiny):
    with pytest.raises(ConfigError, match="NCLTrainer runs a training loop of its own.*backbone"):
        compose(stock.NCLTrainer, INVTrainer)
    with pytest.raises(ConfigError, match="NCLTrainer"):
        tiny("EIIL", backbone="NCL", warm_up_step=1, num_clusters=2)
    assert names(compose(stock.NCLTrainer, AdvTrainer))[:2] == ["NCLTrainer", "AdvTrainer"]


def test_ncl_alone_trains_by_its_own_loop(tiny, monkeypatch):
    def clusters(self, x):
        """Two, by parity: the clusters of faiss are of no interest here."""
        parity = torch.arange(len(x)) % 2
        return torch.stack([torch.from_numpy(x)[parity == k].mean(dim=0) for k in (0, 1)]), parity

    monkeypatch.setattr(NCL, "run_kmeans", clusters)
    run = tiny("NCL", warm_up_step=1, num_clusters=2, m_step=1)
    before = run.model.user_embedding.weight.detach().clone()
    run.fit()
    assert run.trainer.loop.steps_taken == {"min": 0}
    assert not run.model.user_embedding.weight.equal(before)
    assert run.trainer.evaluate(run.test)["recall@10"] > 0  # of the checkpoint it wrote


# --- losses that are no numbers -----------------------------------------------------------------


def test_a_game_whose_objective_is_misspelt_is_refused(tiny):
    class Misspelt(BPR):
        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self.env_generator = nn.Embedding(self.n_items, 2)

        def calculate_max_objectiv(self, interaction):
            return self.env_generator(interaction[self.ITEM_ID]).sum()

    with pytest.raises(ConfigError, match="Misspelt has env_.*did you mean calculate_max_obj"):
        tiny(Misspelt)
    tiny(Misspelt, max_modules=[])
    tiny("BPR", max_modules=["item_embedding"])  # RecBole's own has no objective to write


# --- learning rate 0 ----------------------------------------------------------------------------


@pytest.mark.parametrize("still", ["backbone", "env_generator"])
def test_learning_rate_0_moves_nothing_of_that_player(still, tiny):
    rates = {"backbone": {"learning_rate": 0.0, "max_learning_rate": 0.1}}
    rates["env_generator"] = {"learning_rate": 0.1, "max_learning_rate": 0}
    start = {"max_start_epoch": 0, "penalty_start": 0, "max_interval": 1}
    run = tiny("EIIL", **ONE_EPOCH, **start, **rates[still])
    before = {name: weight.detach().clone() for name, weight in run.model.named_parameters()}
    run.fit(saved=False)
    for name, weight in run.model.named_parameters():
        assert weight.equal(before[name]) == name.startswith(still), name


# --- the batch of the max player's turn ---------------------------------------------------------


class Noting(GeneralRecommender):
    """Notes what each player is given and what the model is told."""

    input_type = InputType.PAIRWISE
    needs_row_index = True

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.body, self.env_generator = nn.Linear(1, 1), nn.Linear(1, 1)
        self.given = {"min": [], "max": []}
        self.told = []

    def note(self, player, interaction):
        self.given[player].append(interaction and interaction["inter_idx"])
        self.told.append(player)

    def calculate_loss(self, interaction):
        self.note("min", interaction)
        return self.body.weight.sum()

    def calculate_max_objective(self, interaction):
        self.note("max", interaction)
        return self.env_generator.weight.sum()

    def calculate_joint(self, interaction):
        self.told.append("together")
        return self.body.weight.sum(), self.env_generator.weight.sum()


def noted(run):
    run.fit(saved=False)
    return run.model.given


def test_max_data_same_fresh_and_none(tiny):
    settings = {**ONE_EPOCH, "game_update": "separate_forward", "monitor_interval": 0}
    same = noted(tiny(Noting, **settings))
    assert all(map(torch.equal, same["min"], same["max"]))
    fresh = noted(tiny(Noting, max_data="fresh", **settings))
    assert all(map(torch.equal, same["min"], fresh["min"]))  # in its first epoch
    assert len(fresh["max"]) == len(same["min"])
    assert not any(map(torch.equal, fresh["min"], fresh["max"]))
    rows = torch.cat(fresh["max"]).sort().values  # a reading of its own: each row once
    assert torch.equal(rows, torch.arange(len(rows)))
    assert noted(tiny(Noting, max_data="none", **settings))["max"] == [None] * len(same["min"])


@pytest.mark.parametrize("data", ["fresh", "none"])
def test_a_player_with_data_of_its_own_has_a_forward_pass_of_its_own(data, tiny):
    settings = {**ONE_EPOCH, "game_update": "shared_graph", "monitor_interval": 0}
    shared, own = tiny(Noting, **settings), tiny(Noting, max_data=data, **settings)
    noted(shared), noted(own)
    assert set(shared.model.told) == {"together"}
    assert own.model.told == ["min", "max"] * len(own.train)


def test_fresh_goes_round_the_data_when_it_needs_more_than_an_epoch(tiny):
    settings = {**ONE_EPOCH, "game_update": "separate_forward", "max_data": "fresh", "max_steps": 2}
    given = noted(tiny(Noting, monitor_interval=0, **settings))
    rows = torch.cat(given["max"])
    assert torch.equal(rows.bincount(), torch.full((len(rows) // 2,), 2))


def test_fresh_data_of_a_knowledge_graph_is_refused(tiny):
    run = tiny("EIIL", backbone="CKE", max_data="fresh", max_start_epoch=0, epochs=1)
    with pytest.raises(ConfigError, match="max_data: fresh does not work with a knowledge graph"):
        run.fit(saved=False)


# --- hooks --------------------------------------------------------------------------------------


class Told(Noting):
    calculate_joint = None
    needs_row_index = False

    def note(self, player, interaction):
        self.told.append(player)

    def on_fit_start(self, train_data):
        self.told.append(("fit", len(train_data)))

    def before_epoch(self, epoch, train_data):
        self.told.append(("before", epoch, len(train_data)))

    def after_epoch(self, epoch, train_data):
        self.told.append(("after", epoch, len(train_data)))

    def on_phase_start(self, player, epoch):
        self.told.append(("phase", player, epoch))

    def on_phase_end(self, player, epoch):
        self.told.append(("end", player, epoch))
        return epoch == 1


@pytest.mark.parametrize("max_first", [True, False])
def test_hooks_are_called_in_order(max_first, tiny):
    phase = {"max_unit": "epoch", "max_steps": 2, "max_start_epoch": 1, "max_first": max_first}
    settings = {"epochs": 2, "eval_step": 0, "train_batch_size": 512, "monitor_interval": 0}
    run = tiny(Told, **settings, **phase)
    n = len(run.train)
    first = run.trainer.optimizer
    run.fit(saved=False)
    alone = [("phase", "max", 1), *["max"] * (2 * n), ("end", "max", 1)]
    ordinary = ["min"] * n
    assert run.model.told == [
        ("fit", n),
        ("before", 0, n),
        *ordinary,
        ("after", 0, n),
        ("before", 1, n),
        *(alone + ordinary if max_first else ordinary + alone),
        ("after", 1, n),
    ]
    # on_phase_end asked for a new optimizer: it has seen the steps after the phase only.
    assert run.trainer.optimizer is not first
    steps = [state["step"].item() for state in run.trainer.optimizer.state.values()]
    assert steps == ([n] if max_first else [])
    assert run.trainer.loop.turns_taken == {"min": 2 * n, "max": 1}
    assert run.trainer.loop.steps_taken == {"min": 2 * n, "max": 2 * n}


class Pairs(BPR):
    """The max player follows gradients that it gives itself: 1 for its only weight."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.env_generator = nn.Linear(1, 1, bias=False)

    def max_step(self, interaction):
        weight = self.env_generator.weight
        return [(weight, torch.ones_like(weight))]


def test_gradients_that_a_player_gives_itself_are_accumulated_too(tiny):
    keys = {"techniques": ["gradient_accumulation"], "gradient_accumulation_batches": 4}
    sgd = {"learner": "sgd", "learning_rate": 0.5, "max_start_epoch": 0, "max_interval": 1}
    run = tiny(Pairs, **keys, **sgd, **{**ONE_EPOCH, "train_batch_size": 64})
    assert len(run.train) == 15  # three steps of four batches and one of three
    before = run.model.env_generator.weight.item()
    run.fit(saved=False)
    assert run.trainer.loop.steps_taken == {"min": 4, "max": 4}
    assert run.model.env_generator.weight.item() == pytest.approx(before + 4 * 0.5)


@pytest.mark.parametrize(
    "settings, before, after",
    [({"drop_last": True}, 4, 4), ({"min_interval": 2, "max_interval": 1}, 2, 3)],
)
def test_an_epoch_begins_for_the_penalty_where_min_left_the_last_batch_out(
    settings, before, after, tiny, monkeypatch
):
    penalty = {"penalty_start": 1, "penalty_initial": 0.0, "penalty_weight": 5.0}
    reset = {"penalty_reset_optimizer": True, "max_start_epoch": 0, "learner": "adam"}
    more = {"game_update": "separate_forward", "eval_step": 0, "epochs": 2}
    run = tiny("EIIL", train_batch_size=200, **penalty, **reset, **more, **settings)
    assert len(run.train) == 5  # 960 rows
    weights, own = {}, PenaltySchedule.__call__

    def noted(schedule, progress):
        weights[progress.step] = own(schedule, progress)
        return weights[progress.step]

    monkeypatch.setattr(PenaltySchedule, "__call__", noted)
    run.fit(saved=False)
    assert list(weights.values()) == [0.0] * before + [5.0] * after
    # The optimizer is new since then.
    steps = {int(state["step"]) for state in run.trainer.optimizer.state.values()}
    assert steps == {after}
