"""The moving average of the weights: its arithmetic, and that what is evaluated is what is saved."""

import copy

import pytest
import torch
from recbole.config import Config as RecBoleConfig
from recbole.data import create_dataset, data_preparation
from recbole.model.general_recommender import BPR
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from recbole_adv import Technique, checkpoint, load_data_and_model, run_recbole_adv
from recbole_adv.technique.ema import average_, decay_at, replaced
from recbole_adv.trainer import trainer_class

ONE = {"epochs": 1, "eval_step": 0}


class NormBPR(BPR):
    """BPR with BatchNorm between the user's vector and the scores."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.norm = nn.BatchNorm1d(self.embedding_size)

    def forward(self, user, item):
        user_e, item_e = super().forward(user, item)
        return self.norm(user_e), item_e


class TorchAverage(Technique):
    """torch's own average of the same weights, beside ours."""

    def __init__(self, *, decay=0.9, buffers=False):
        self.decay, self.buffers = decay, buffers

    def attach(self, trainer, player):
        average = get_ema_multi_avg_fn(self.decay)
        self.model = trainer.model
        self.averaged = AveragedModel(self.model, multi_avg_fn=average, use_buffers=self.buffers)
        self.averaged.update_parameters(self.model)  # the first call copies

    def after_step(self, turn, outcome):
        self.averaged.update_parameters(self.model)


def test_decay_by_hand():
    assert [decay_at(t, 0.9, True) for t in (0, 1, 10)] == [1 / 10, 2 / 11, 11 / 20]
    assert decay_at(80, 0.9, True) == 0.9 and decay_at(79, 0.9, True) == 80 / 89
    assert decay_at(0, 0.9, False) == 0.9 and decay_at(500, 0.0, True) == 0.0


def test_average_is_the_closed_form():
    """d^n w0 + sum over i of (1 - d) d^(n - i) w_i, and by hand for two updates."""
    torch.manual_seed(0)
    weights = torch.randn(6, 3, dtype=torch.float64)
    shadow = {"w": weights[0].clone()}
    for weight in weights[1:]:
        average_(shadow, {"w": weight}, 0.75)
    share = [0.75**5, *(0.25 * 0.75 ** (5 - i) for i in range(1, 6))]
    torch.testing.assert_close(shadow["w"], sum(s * w for s, w in zip(share, weights)))
    by_hand = {"w": torch.tensor([8.0])}
    for weight in (4.0, 0.0):
        average_(by_hand, {"w": torch.tensor([weight])}, 0.5)
    assert by_hand["w"].item() == 3.0  # 8 -> 6 -> 3


def test_decay_zero_copies_to_the_last_bit():
    torch.manual_seed(0)
    weight, shadow = torch.randn(1000) * 1e-3, {"w": torch.randn(1000) * 1e5}
    average_(shadow, {"w": weight}, 0.0)
    assert shadow["w"].equal(weight)


@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_equals_torch(tiny, buffers):
    own = {"ema_decay": 0.9, "ema_warmup": False, "ema_buffers": buffers}
    own |= {"torch_average_buffers": buffers == "average"}
    run = tiny(NormBPR, techniques=["ema", TorchAverage], **own, **ONE)
    run.fit(saved=False)
    averaged = run.trainer.techniques["min"]["torch_average"].averaged.module
    live = {name: value.clone() for name, value in run.model.state_dict().items()}
    with run.trainer._evaluation_weights():
        for name, value in run.model.state_dict().items():
            # torch averages the number of batches, too, and rounds it down
            other = live if "num_batches" in name else averaged.state_dict()
            assert value.equal(other[name]), name
            is_copied = "running" in name and buffers == "copy"
            assert value.equal(live[name]) == (is_copied or "num_batches" in name), name
    assert all(value.equal(live[name]) for name, value in run.model.state_dict().items())


def test_weights_come_back_also_after_an_error(tiny):
    run = tiny("BPR", techniques=["ema"], **ONE)
    run.fit(saved=False)
    own = run.trainer.techniques["min"]["ema"]
    raw = [p.detach().clone() for p in run.model.parameters()]
    with pytest.raises(KeyError):
        with own.evaluation_weights():
            assert all(p.equal(own.shadows[n]) for n, p in run.model.named_parameters())
            assert not any(p.equal(q) for p, q in zip(run.model.parameters(), raw))
            raise KeyError
    assert all(p.equal(q) for p, q in zip(run.model.parameters(), raw))
    with own.evaluation_weights():
        with pytest.raises(AssertionError, match="already holds"):
            with own.evaluation_weights():
                pass
        with pytest.raises(AssertionError, match="a step was taken while"):
            own.after_step(None, None)
    assert all(p.equal(q) for p, q in zip(run.model.parameters(), raw))


def test_replaced_restores_though_x_plus_d_minus_d_is_not_x():
    weight = torch.tensor([0.1, 1e8])
    with replaced({"w": weight}, {"w": torch.tensor([1e8, 0.1])}):
        assert weight.tolist() == torch.tensor([1e8, 0.1]).tolist()
    assert weight.equal(torch.tensor([0.1, 1e8]))


@pytest.mark.parametrize(
    "start, begins", [({}, 0), ({"ema_start_step": 3}, 3), ({"ema_start_epoch": 1}, None)]
)
def test_the_average_begins_where_it_should(tiny, start, begins):
    """It begins as a copy of the weights; until then the plain weights are evaluated."""
    run = tiny("BPR", techniques=["ema"], epochs=2, eval_step=0, ema_decay=0.9, **start)
    run.fit(saved=False)
    n = len(run.train)
    expected = 2 * n - (n if begins is None else begins)
    assert run.trainer.techniques["min"]["ema"].updates == expected
    waiting = tiny("BPR", techniques=["ema"], ema_start_epoch=5, **ONE)
    waiting.fit(saved=False)
    raw = waiting.model.user_embedding.weight.detach().clone()
    with waiting.trainer._evaluation_weights():
        assert waiting.model.user_embedding.weight.equal(raw)
    assert waiting.trainer.techniques.figures() == {}


EMA = {"techniques": ["ema"], "ema_decay": 0.95, "ema_warmup": False, "epochs": 3}


@pytest.mark.parametrize("model", ["BPR", "LightGCN"])
def test_validated_is_saved_is_tested(model, settings_of):
    """LightGCN ranks from cached embeddings, which must not survive a change of weights."""
    settings = settings_of(model, **EMA)
    done = run_recbole_adv(model, "checkerboard", config_dict=settings)
    file = f"{done['run_dir']}/model.pth"
    config, net, _, _, valid, test = load_data_and_model(file)
    ours = trainer_class(config.model_class)(config, net)
    assert ours.evaluate(valid, load_best_model=False) == done["best_valid_result"]
    assert ours.evaluate(test, load_best_model=False) == done["test_result"]
    assert stock_result(model, settings, file) == done["test_result"]
    # The raw weights are in the file too, and would have given another result.
    raw = checkpoint.load(file)["recbole_adv"]["training_weights"]
    net.load_state_dict(raw)
    ours = trainer_class(config.model_class)(config, net)
    net.restore_user_e = net.restore_item_e = None
    assert ours.evaluate(test, load_best_model=False) != done["test_result"]


def stock_result(model, settings, file):
    """The test result of RecBole's own Trainer from a file of ours."""
    plain = {k: v for k, v in copy.deepcopy(settings).items() if not k.startswith(("ema", "techn"))}
    config = RecBoleConfig(model=model, dataset="checkerboard", config_dict=plain)
    init_seed(config["seed"], config["reproducibility"])
    train, _, test = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, get_model(model)(config, train._dataset))
    trainer.eval_collector.data_collect(train)
    result = trainer.evaluate(test, model_file=file)
    return {name: float(value) for name, value in result.items()}


@pytest.mark.parametrize("model", ["BPR", "LightGCN"])
def test_early_stopping_sees_the_average(model, tiny):
    """Each validation is of the averaged weights, and the weights trained on are the raw ones."""
    plain = tiny(model, epochs=3)
    plain.fit()
    run = tiny(model, **EMA)
    run.fit()
    for mine, other in zip(run.model.parameters(), plain.model.parameters()):
        assert mine.equal(other)
    assert run.trainer.best_valid_result != plain.trainer.best_valid_result


def test_of_the_recommender_only(tiny):
    run = tiny("EIIL", techniques=["ema"], max_start_epoch=0, **ONE)
    run.fit(saved=False)
    assert list(run.trainer.techniques["max"]) == []
    shadows = run.trainer.techniques["min"]["ema"].shadows
    names = [n for n, _ in run.model.named_parameters() if not n.startswith("env_generator")]
    assert sorted(shadows) == sorted(names)
    both = tiny("EIIL", techniques=["ema"], max_techniques=["ema"], max_start_epoch=0, **ONE)
    both.fit(saved=False)
    raw = [p.detach().clone() for p in both.model.parameters()]
    with both.trainer._evaluation_weights():
        moved = [not p.equal(q) for p, q in zip(both.model.parameters(), raw)]
        assert all(moved)
    assert all(p.equal(q) for p, q in zip(both.model.parameters(), raw))
