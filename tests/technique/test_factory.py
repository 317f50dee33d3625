"""From names in the configuration to the objects of each player."""

import inspect

import pytest
import torch

from recbole_adv import Config
from recbole_adv.errors import CheckpointError, ConfigError
from recbole_adv.options import properties_dir, read_options, technique_names
from recbole_adv.technique import Technique
from recbole_adv.technique.clip_norm import ClipNorm
from recbole_adv.technique.factory import find_technique, techniques_of, unused_keys


class CountSteps(Technique):
    """Counts its player's steps and adds a constant to the loss."""

    def __init__(self, *, offset: float = 0.0):
        self.offset, self.steps = offset, 0

    def wrap_loss(self, loss, turn):
        return lambda batch: loss(batch) + self.offset

    def after_step(self, turn, outcome):
        self.steps += 1

    def figures(self):
        return {"steps": float(self.steps)}

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class CountAll(CountSteps):
    """The same for every player."""

    concerns = "all"


@pytest.mark.parametrize("name", technique_names())
def test_keys_and_constructor_agree(name):
    _, cls = find_technique(name)
    options = read_options(properties_dir() / "technique" / f"{name}.yaml")
    arguments = {f"{name}_{argument}" for argument in inspect.signature(cls).parameters}
    only_through_recboles_key = {"clip_norm_foreach"}
    assert set(options) == arguments - only_through_recboles_key


@pytest.mark.parametrize("name", technique_names())
def test_every_technique_says_what_it_is(name):
    _, cls = find_technique(name)
    assert cls.__doc__ and cls.__doc__ != Technique.__doc__
    assert cls.concerns in ("first", "all")


def names(config, player, first=False):
    return [name for name, _ in techniques_of(config, player, first)]


def test_each_player_has_those_that_concern_it():
    config = {"techniques": ["clip_norm", CountSteps], "clip_norm_max_norm": 3.0}
    config["max_clip_norm_max_norm"] = 1.0
    assert names(config, "min", first=True) == ["clip_norm", "count_steps"]
    assert names(config, "max") == ["clip_norm"]
    bounds = [
        dict(techniques_of(config, player, player == "min"))["clip_norm"].arguments["max_norm"]
        for player in ("min", "max")
    ]
    assert bounds == [3.0, 1.0]
    assert names({**config, "max_techniques": [CountSteps]}, "max") == ["count_steps"]
    assert names({**config, "max_techniques": []}, "max") == []


def test_recboles_key_is_a_last_technique():
    config = {"techniques": [CountSteps], "clip_grad_norm": {"max_norm": 5}}
    made = dict(techniques_of(config, "min", True))
    assert list(made) == ["count_steps", "clip_norm"]
    assert isinstance(made["clip_norm"], ClipNorm)
    with pytest.raises(ConfigError, match="clip_grad_norm .* and the technique clip_norm are the"):
        techniques_of({**config, "techniques": ["clip_norm"], "clip_norm_max_norm": 1}, "min", True)


def test_a_technique_of_ones_own_takes_its_keys(tiny):
    plain = tiny("BPR", epochs=1, eval_step=0).fit(saved=False).train_loss_dict[0]
    run = tiny("BPR", techniques=[CountSteps], count_steps_offset=2.0, epochs=1, eval_step=0)
    own = run.trainer.techniques["min"]["count_steps"]
    assert own.offset == 2.0
    run.fit(saved=False)
    assert own.steps == len(run.train)
    assert run.trainer.train_loss_dict[0] == pytest.approx(plain + 2.0 * len(run.train), rel=1e-5)
    assert run.trainer.report.figures()["min/count_steps_steps"] == own.steps


def test_a_technique_in_a_file(tmp_path, settings_of):
    (tmp_path / "mine.py").write_text(
        "from recbole_adv import Technique\n"
        "class MyNoise(Technique):\n"
        '    """Nothing."""\n'
        "    def __init__(self, *, size=1):\n"
        "        self.size = size\n"
    )
    given = {"techniques": [f"{tmp_path}/mine.py:MyNoise"], "my_noise_size": 3}
    config = Config("BPR", "checkerboard", config_dict=settings_of("BPR", **given))
    ((name, made),) = techniques_of(config.final_config_dict, "min", True)
    assert (name, made.size) == ("my_noise", 3)


@pytest.mark.parametrize(
    "given, sentence",
    [
        ({"techniques": ["clip_nrm"]}, "no technique 'clip_nrm'; did you mean clip_norm?"),
        ({"techniques": ["clip_norm", "clip_norm"]}, "techniques names 'clip_norm' twice"),
        ({"techniques": "clip_norm"}, "techniques must be a list, got 'clip_norm'; write"),
        ({"techniques": [int]}, "int is no technique; derive it from Technique"),
        ({"techniques": [3]}, "there is no technique 3"),
        (
            {"techniques": ["clip_norm"], "clip_norm_max_norm": -1.0},
            "clip_norm_max_norm must be a number > 0, got -1.0",
        ),
        (
            {"techniques": ["clip_norm"], "max_clip_norm_max_norm": "x"},
            "max_clip_norm_max_norm must be a number > 0, got 'x'",
        ),
        ({"techniques": ["clip_norm"], "clip_norm_maxnorm": 1.0}, "did you mean clip_norm_max_n"),
        ({"max_techniques": ["nothing"]}, "there is no technique 'nothing'"),
    ],
)
def test_mistakes_are_one_sentence_before_data_is_loaded(given, sentence, settings_of):
    with pytest.raises(ConfigError, match=sentence):
        Config("BPR", "checkerboard", config_dict=settings_of("BPR", **given))


def test_keys_of_a_technique_that_nobody_has_are_named():
    config = {"techniques": ["clip_norm"], "max_techniques": None}
    given = ["clip_norm_max_norm", "gradient_accumulation_batches", "learning_rate"]
    assert unused_keys(config, given) == ["gradient_accumulation_batches"]


def test_what_could_have_no_effect_is_refused(tiny):
    with pytest.raises(ConfigError, match="Pop is not trained by gradient descent, so techniques"):
        tiny("Pop", techniques=["clip_norm"])
    with pytest.raises(ConfigError, match="NCL is trained by a loop of its own, in which techniq"):
        tiny("NCL", techniques=["clip_norm"], warm_up_step=1, num_clusters=2)
    with pytest.raises(ConfigError, match="clip_before_unscale is RecBole's order"):
        tiny("BPR", techniques=["clip_norm"], clip_before_unscale=True)


def test_state_is_saved_and_the_techniques_must_be_the_same(tiny):
    settings = {"techniques": [CountAll], "epochs": 1}
    run = tiny("EIIL", run_dir="a", **settings)
    run.fit()
    steps = {p: run.trainer.techniques[p]["count_all"].steps for p in ("min", "max")}
    assert steps["min"] == len(run.train) and set(steps) == {"min", "max"}
    again = tiny("EIIL", **settings)
    again.trainer.resume_checkpoint(run.trainer.last_file)
    assert {p: again.trainer.techniques[p]["count_all"].steps for p in steps} == steps
    other = tiny("EIIL", techniques=["clip_norm"], epochs=1)
    with pytest.raises(CheckpointError, match=r"techniques \['count_all'\] of player 'min', got"):
        other.trainer.resume_checkpoint(run.trainer.last_file)


# --- accumulation, the one technique that is the engine's ---------------------------------------


@pytest.mark.parametrize("model, game", [("BPR", {}), ("EIIL", {"game_update": "shared_graph"})])
def test_one_accumulated_batch_is_none(tiny, model, game):
    runs = [
        tiny(model, techniques=techniques, gradient_accumulation_batches=1, **game).fit(saved=False)
        for techniques in ([], ["gradient_accumulation"])
    ]
    for mine, plain in zip(runs[1].model.parameters(), runs[0].model.parameters()):
        assert mine.equal(plain)


def test_batches_together_are_one_large_batch(tiny):
    """Without shuffling and with SGD: the mean of the means of equal batches is the mean."""
    plain = {"shuffle": False, "learner": "sgd", "epochs": 1, "eval_step": 0}
    small = tiny("BPR", techniques=["gradient_accumulation"], train_batch_size=64, **plain)
    large = tiny("BPR", train_batch_size=256, **plain)
    negatives = large.train._dataset.inter_feat  # both are to see the same negatives
    for run in (small, large):
        run.train._neg_sampling = lambda rows: _with_fixed_negatives(rows, negatives)
        run.model.load_state_dict(large.model.state_dict())
    small.fit(saved=False)
    large.fit(saved=False)
    n_rows = len(negatives)
    assert large.trainer.loop.steps_taken["min"] == -(-n_rows // 256)
    assert small.trainer.loop.steps_taken["min"] == -(-n_rows // 256)
    for mine, other in zip(small.model.parameters(), large.model.parameters()):
        # The last batches of the epoch are not equal in size.
        torch.testing.assert_close(mine, other, rtol=0, atol=2e-4)


def _with_fixed_negatives(rows, all_rows):
    rows.interaction["neg_item_id"] = (rows["item_id"] % int(all_rows["item_id"].max())) + 1
    return rows
