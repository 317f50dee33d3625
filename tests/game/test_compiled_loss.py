"""``compile: True``: the same training from a compiled loss; what it cannot be combined with."""

import pytest
import torch

from recbole_adv import checkpoint
from recbole_adv.errors import ConfigError, TrainingError
from recbole_adv.game.compiled_loss import compiled


@pytest.fixture
def without_code(monkeypatch):
    """torch's ``eager`` backend traces as any other and runs what it traced; it compiles no C++."""
    real, traced = torch.compile, []

    def compile_eagerly(function):
        fast = real(function, backend="eager")

        def counted(batch):
            traced.append(len(batch))
            return fast(batch)

        return counted

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    return traced


@pytest.mark.parametrize("model", ["BPR", "NeuMF"])
def test_trains_as_without(model, tiny, without_code):
    settings = {"epochs": 2, "eval_step": 0, "techniques": ["ema", "clip_norm"]}
    plain = tiny(model, **settings)
    plain.fit(saved=False)
    assert not without_code
    run = tiny(model, compile=True, **settings)
    run.fit()
    assert len(without_code) == 2 * len(run.train)
    saved = checkpoint.load(run.trainer.saved_model_file)["state_dict"]
    assert list(saved) == list(plain.model.state_dict())  # no _orig_mod
    for name, value in plain.model.state_dict().items():
        torch.testing.assert_close(run.model.state_dict()[name], value)
    other = tiny(model, compile=True, **settings)  # goes on from it, compiled or not
    other.trainer.resume_checkpoint(run.trainer.saved_model_file)


@pytest.mark.parametrize(
    "model, keys, sentence",
    [
        ("EIIL", {}, "compile: True goes with a model of one player .* EIIL is a game"),
        ("IRM", {}, "IRM is a game or reads the rows"),
        (
            "BPR",
            {"techniques": ["ema", "embedding_attack"]},
            r"the techniques \['embedding_attack'\]",
        ),
        ("SASRec", {"techniques": ["r_drop"]}, "which listen to the modules"),
        ("BPR", {"sparse_embeddings": True}, "does not go with sparse_embeddings: True"),
        ("BPR", {"compile": "yes please"}, "compile"),
    ],
)
def test_what_it_does_not_go_with_is_one_sentence(model, keys, sentence, tiny):
    with pytest.raises(ConfigError, match=sentence):
        tiny(model, **{"compile": True, **keys})


def test_a_failure_of_the_compiler_is_one_sentence(monkeypatch):
    class InvalidCxxCompiler(RuntimeError):
        pass

    InvalidCxxCompiler.__module__ = "torch._inductor.exc"

    def fails(batch):
        raise InvalidCxxCompiler("No working C++\n compiler found in g++")

    monkeypatch.setattr(torch, "compile", lambda loss: fails)
    with pytest.raises(TrainingError, match=r"No working C\+\+ compiler .* leave compile out"):
        compiled(lambda batch: None)(None)

    def wrong(batch):
        raise ValueError("of the model")

    monkeypatch.setattr(torch, "compile", lambda loss: wrong)
    with pytest.raises(ValueError, match="of the model"):
        compiled(lambda batch: None)(None)


@pytest.mark.slow
def test_real_code_gives_the_same_loss(tiny):
    """By the C++ compiler of this machine, within rounding."""
    settings = {"epochs": 1, "eval_step": 0}
    plain, run = tiny("BPR", **settings), tiny("BPR", compile=True, **settings)
    plain.fit(saved=False)
    run.fit(saved=False)
    assert run.trainer.train_loss_dict[0] == pytest.approx(
        plain.trainer.train_loss_dict[0], rel=1e-5
    )
