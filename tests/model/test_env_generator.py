"""EIIL's generators of environments: ours, and one of a user's own."""

import pytest
import torch
from torch import nn

from recbole_adv.errors import ConfigError
from recbole_adv.model.invariant_recommender.eiil import EIIL

GAME = {
    "penalty_start": 0,
    "penalty_weight": 5.0,
    "max_start_epoch": 0,
    "max_interval": 1,
    "train_batch_size": 256,
    "eval_step": 0,
    "epochs": 1,
}


@pytest.mark.parametrize("estimator", ["u", "plain", "split"])
def test_an_mlp_generator_reads_the_backbone_without_moving_it(estimator, tiny):
    run = tiny("EIIL", generator="mlp", penalty_estimator=estimator, **GAME)
    tables = (run.model.backbone.user_embedding, run.model.backbone.item_embedding)
    for table in tables:  # scores of all sizes: at the start of training they are all nearly 0
        table.weight.data.normal_(generator=torch.Generator().manual_seed(3))
    batch, net = run.batch(), run.model
    value = net.calculate_max_objective(batch)
    reached = torch.autograd.grad(value, list(net.backbone.parameters()), allow_unused=True)
    assert all(gradient is None for gradient in reached)
    # Its logits depend on the embeddings, counts and time of the row alone.
    index = batch["inter_idx"]
    logits = net.env_generator(batch["user_id"], batch["item_id"], index)
    torch.testing.assert_close(net.env_generator.of_all_rows()[index], logits)
    assert logits.std() > 0


def _affine(layer):
    """Weight [in, out] and bias [out]; of a layer without a bias that is the weight's first row."""
    if hasattr(layer, "bias"):
        return layer.weight.T, layer.bias
    return layer.weight[1:], layer.weight[0]


@pytest.mark.parametrize("hidden", [[], [3], [4, 3]])
def test_the_generator_is_the_plain_network_of_its_layers(hidden, tiny):
    """Values and gradients are those of torch's linear layers on the product, the counts and the time."""
    net = tiny("EIIL", generator_hidden_size=hidden).model
    user, item, index = torch.tensor([1, 2, 2]), torch.tensor([3, 1, 3]), torch.tensor([0, 4, 2])
    generator = net.env_generator
    features = [generator.user_count[user], generator.item_count[item]]
    if generator.row_time is not None:
        features.append(generator.row_time[index])
    product = net.backbone.user_embedding.weight[user] * net.backbone.item_embedding.weight[item]
    expected = torch.cat([torch.stack(features, dim=1), product.detach()], dim=1)
    *inner, last = (_affine(layer) for layer in generator.mlp if not isinstance(layer, nn.ReLU))
    assert [len(bias) for _, bias in inner] == hidden
    for weight, bias in inner:
        expected = (expected @ weight + bias).relu()
    weight, bias = last
    expected = expected @ weight + bias
    found = generator(user, item, index)
    torch.testing.assert_close(found, expected)
    slope = torch.randn_like(found)
    parameters = list(generator.parameters())
    for one, other in zip(*(torch.autograd.grad(v, parameters, slope) for v in (found, expected))):
        torch.testing.assert_close(one, other)


# --- a generator of one's own -------------------------------------------------------------------


class ByItem(nn.Module):
    """The logits of an item, through dropout, without ``of_all_rows``."""

    def __init__(self, n_items, n):
        super().__init__()
        self.table, self.dropout = nn.Embedding(n_items, n), nn.Dropout()

    def forward(self, user, item, index):
        return self.dropout(self.table(item))


class OwnGenerator(EIIL):
    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.env_generator = ByItem(dataset.item_num, config["n_environments"])


@pytest.mark.parametrize("inference", ["alternating", "one_shot"])
def test_a_generator_needs_no_of_all_rows(inference, tiny, monkeypatch):
    """The environment of a row is that of its item, whatever the size of the chunks."""
    monkeypatch.setattr("recbole_adv.model.env_generator._CHUNK", 500)
    keys = {"inference": inference, "one_shot_epochs": 1}
    run = tiny(OwnGenerator, **{**GAME, **keys})
    run.fit(saved=False)
    net, items = run.model, run.train._dataset.inter_feat["item_id"]
    assert len(items) > 500
    expected = net.env_generator.table.weight.argmax(dim=1)[items]
    assert net.inferred_environments().equal(expected)
    assert net.hard_environment.equal(expected) == (inference == "one_shot")


@pytest.mark.parametrize(
    "generator, sentence",
    [
        (lambda n: ByItem(n, 5), r"returned logits of shape \[3, 5\] for 3 rows; write forward\("),
        (
            lambda n: nn.Embedding(n, 2),
            r"cannot be called: TypeError: .*arguments.*; write forward",
        ),
    ],
)
def test_a_generator_that_cannot_be_used_is_refused_before_training(generator, sentence, tiny):
    class Unusable(EIIL):
        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self.env_generator = generator(dataset.item_num)

    run = tiny(Unusable, epochs=2, eval_step=0)
    with pytest.raises(ConfigError, match=sentence):
        run.fit(saved=False)
    assert not run.trainer.train_loss_dict


def test_a_subclass_that_does_not_ask_its_generator_may_have_any(tiny):
    class Unasked(EIIL):
        def __init__(self, config, dataset):
            super().__init__(config, dataset)
            self.env_generator = nn.Embedding(dataset.item_num, 2)

        def membership(self, interaction, index):
            item = interaction[self.ITEM_ID][: len(index)]
            return self.env_generator(item).t().softmax(dim=0)

        def inferred_environments(self):
            return None

    tiny(Unasked, **GAME).fit(saved=False)
