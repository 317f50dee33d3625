"""Checkpoints: what is written comes back, and what is read is never executed."""

from __future__ import annotations

import copyreg
import functools
import io
import logging
import os
import pickle
import random
import resource
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

import recbole_adv  # noqa: F401  (RecBole needs its numpy names)
from recbole_adv import checkpoint
from recbole_adv.errors import CheckpointError
from recbole_adv.plain_data import decode, encode
from recbole_adv.restricted_pickle import Name


def there_and_back(value, tmp_path):
    """``value`` as it comes out of a file that was written and read by us."""
    checkpoint.save({"state_dict": {}, "value": value}, tmp_path / "value.pth")
    return checkpoint.load(tmp_path / "value.pth")["value"]


def same(left, right):
    """Equal in type and value, all the way down."""
    assert type(left) is type(right)
    if isinstance(left, dict):
        assert list(left) == list(right)
        return all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        return all(same(a, b) for a, b in zip(left, right))
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and np.array_equal(left, right) and left.ndim == right.ndim
    if sparse.issparse(left):
        return left.dtype == right.dtype and (left.toarray() == right.toarray()).all()
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    return left == right


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        [None, True, 3, -0.5, float("inf"), "é", 2**80],
        {"a": [1, (2, [3], {})], 7: "int key", None: 0, (1, "b"): 1, 2.5: ()},
        {"exp_avg": torch.arange(6, dtype=torch.float16).view(2, 3), "step": torch.tensor(3)},
        {1, 2, 30},
        torch.device("cuda:1"),
        np.arange(6, dtype=np.float32).reshape(2, 3).T,
        np.array(2.5),
        np.array([True, False]),
        np.array([1, 2], dtype=np.uint16),
        np.matrix([[1.0, 2.0]]),
        sparse.csr_matrix(np.float32([[0, 1.5], [2, 0]])),
        sparse.lil_matrix(np.float64([[0, 1], [0, 0]])),
        sparse.coo_array(np.array([[0, 1], [4, 0]])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_comes_back_as_it_was(value, tmp_path):
    assert same(there_and_back(value, tmp_path), value)


def test_numpy_scalars_come_back_as_python_numbers(tmp_path):
    value = {"score": np.float64(0.25), "n": np.int32(7), "b": np.bool_(True), np.int64(3): "k"}
    assert same(there_and_back(value, tmp_path), {"score": 0.25, "n": 7, "b": True, 3: "k"})


def test_big_endian_and_read_only_arrays_keep_their_numbers(tmp_path):
    array = np.array([1, 256], dtype=">i4")
    array.setflags(write=False)
    assert there_and_back(array, tmp_path).tolist() == [1, 256]


def test_parameters_and_subclasses_become_plain(tmp_path):
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    back = there_and_back(OrderedDict(w=weight, size=torch.Size([2])), tmp_path)
    assert same(back, {"w": torch.tensor([1.0, 2.0]), "size": (2,)})
    assert not back["w"].requires_grad


def test_enums_come_back_as_recboles_and_classes_as_strings(tmp_path):
    from recbole.utils import InputType, ModelType

    value = {"t": ModelType.GENERAL, "i": [InputType.PAIRWISE], "c": zipfile.ZipFile}
    back = there_and_back(value, tmp_path)
    assert back["t"] is ModelType.GENERAL and back["i"] == [InputType.PAIRWISE]
    assert back["c"] == "zipfile:ZipFile"
    assert encode(ModelType.GENERAL) == {"__enum__": ["ModelType", "GENERAL"]}


def test_tied_weights_are_stored_once(tmp_path):
    weight = torch.zeros(100_000)
    checkpoint.save({"state_dict": {"a": weight, "b": weight}}, tmp_path / "tied.pth")
    assert (tmp_path / "tied.pth").stat().st_size < 500_000  # one copy is 400 000 bytes


def test_random_states_survive(tmp_path):
    states = {"python": random.getstate(), "numpy": np.random.get_state()}
    drawn = random.random(), np.random.rand()
    back = there_and_back(states, tmp_path)
    random.setstate(back["python"])
    np.random.set_state(back["numpy"])
    assert (random.random(), np.random.rand()) == drawn


def test_an_optimizer_goes_on_where_it_was(tmp_path):
    def setup():
        torch.manual_seed(0)
        layer = torch.nn.Linear(2, 1)
        return layer, torch.optim.Adam(layer.parameters(), lr=0.1, betas=(0.8, 0.9))

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(torch.ones(1, 2)).pow(2).sum().backward()
        optimizer.step()

    layer, optimizer = setup()
    step(layer, optimizer)
    state = {"state_dict": layer.state_dict(), "optimizer": optimizer.state_dict()}
    checkpoint.save(state, tmp_path / "a.pth")
    step(layer, optimizer)

    again, resumed = setup()
    back = checkpoint.load(tmp_path / "a.pth")
    again.load_state_dict(back["state_dict"])
    resumed.load_state_dict(back["optimizer"])
    assert resumed.param_groups[0]["betas"] == (0.8, 0.9)
    step(again, resumed)
    assert torch.equal(again.weight, layer.weight)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (lambda: 0, "builtins.function"),
        (torch.nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (np.array(["a"]), "numpy.ndarray"),
        (np.longdouble(1), "numpy.longdouble"),
        (logging.INFO.__class__.__add__, "builtins.wrapper_descriptor"),
        (Path("x"), "Path"),
    ],
    ids=["function", "layer", "strings", "longdouble", "descriptor", "path"],
)
def test_what_is_no_data_is_named_with_its_place(value, kind, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        checkpoint.save({"other_parameter": {"cache": [0, value]}}, tmp_path / "a.pth")
    message = str(caught.value)
    assert message.startswith("other_parameter.cache[1] is a ") and kind in message
    assert "keep a tensor" in message
    assert list(tmp_path.iterdir()) == []


def test_a_reserved_key_is_refused_when_written():
    with pytest.raises(CheckpointError, match="'__enum__' is a reserved key"):
        encode({"settings": {"__enum__": 3}})
    assert encode({"__enum__": 3, "other": 1}) == {"__enum__": 3, "other": 1}


def test_what_contains_itself_is_refused_when_written(tmp_path):
    with pytest.raises(CheckpointError, match="contains itself"):
        checkpoint.save({"state_dict": {}, "a": ENDLESS}, tmp_path / "a.pth")


def test_encoding_and_decoding_twice_is_doing_it_once():
    value = {"d": torch.device("cpu"), "a": np.arange(3), "s": sparse.eye(2).tocsr()}
    once = encode(value)
    assert list(encode(once)["a"]) == ["__array__"]
    assert same(decode(decode(encode(once))), value)


# --- a file -------------------------------------------------------------------------------------


def test_torch_reads_a_file_of_ours_with_no_allow_list(tmp_path):
    from recbole.utils import ModelType

    state = {
        "config": {"model": "BPR", "MODEL_TYPE": ModelType.GENERAL, "device": torch.device("cpu")},
        "best_valid_score": np.float64(0.25),
        "state_dict": {"w": torch.nn.Parameter(torch.ones(2))},
        "other_parameter": {"w": sparse.eye(3).tocsr(), "a": np.arange(3)},
    }
    path = tmp_path / "a.pth"
    checkpoint.save(state, path)
    assert torch.serialization.get_unsafe_globals_in_checkpoint(path) == []
    raw = torch.load(path, weights_only=True)
    assert raw["config"]["model"] == "BPR" and raw["best_valid_score"] == 0.25
    assert torch.equal(raw["state_dict"]["w"], torch.ones(2))


def test_a_write_that_fails_leaves_the_checkpoint_before_it(tmp_path):
    path = tmp_path / "model.pth"
    checkpoint.save({"state_dict": {"w": torch.zeros(4)}}, path)
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # like a full disk
    try:
        with pytest.raises(CheckpointError, match="cannot be written: File too large; make room"):
            checkpoint.save({"state_dict": {"w": torch.zeros(100_000)}}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("place", ["missing/a.pth", "file/a.pth", "folder"])
def test_a_place_that_cannot_be_written_is_named(place, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match=f"{place} cannot be written: .*checkpoint_dir"):
        checkpoint.save({"state_dict": {}}, tmp_path / place)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_checkpoint_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    checkpoint.save({"state_dict": {}}, tmp_path / "a.pth")
    assert (tmp_path / "a.pth").stat().st_mode == (tmp_path / "plain").stat().st_mode


def zip_bytes(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def torch_bytes(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


GOOD = torch_bytes({"state_dict": {"w": torch.arange(1000)}})
ENDLESS: list = []
ENDLESS.append(ENDLESS)
OLD_FORMAT = torch_bytes({"state_dict": {"w": torch.ones(9)}}, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"epoch: 3\nmodel: BPR\n", "it is no checkpoint, or a damaged one"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is no checkpoint"),
        (bytes(range(256)), "it is no checkpoint"),
        (GOOD[: len(GOOD) // 2], "cut short or damaged"),
        (GOOD.replace(torch.arange(1000).numpy().tobytes()[:4000], bytes(4000)), "damaged"),
        (OLD_FORMAT[:-20], "damaged"),
        (zip_bytes(**{"word/document.xml": "<xml/>"}), "another program's zip"),
        (pickle.dumps({"state_dict": {}}), "it is no checkpoint"),
        (torch_bytes({"w": torch.ones(1)}), "no 'state_dict', but the keys w"),
        (torch_bytes({}), "no 'state_dict', but the keys none"),
        (torch_bytes(torch.ones(2)), "no 'state_dict', but a Tensor"),
        (torch_bytes({"state_dict": "best.txt"}), "no 'state_dict'"),
        (torch_bytes({"state_dict": {"a": {"__enum__": ["os", "system"]}}}), "__enum__"),
        (torch_bytes({"state_dict": {}, "a": ENDLESS}), "recursion"),
        (torch_bytes({"state_dict": {}, "a": ENDLESS, "b": print}), "recursion"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_sentence(content, reason, tmp_path):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path} cannot be loaded: ") and reason in message
    assert "\n" not in message


def test_a_missing_file_and_a_directory_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint .*/gone.pth; check"):
        checkpoint.load(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="is a directory; name the .pth file"):
        checkpoint.load(tmp_path)


def test_torchs_old_file_format_is_read(tmp_path):
    (tmp_path / "a.pth").write_bytes(OLD_FORMAT)
    assert same(checkpoint.load(tmp_path / "a.pth"), {"state_dict": {"w": torch.ones(9)}})


# --- RecBole's own ------------------------------------------------------------------------------


def write_toy(folder: Path) -> dict:
    """A dataset of 12 users and 10 items, each user with 5 of them; the settings to use it."""
    (folder / "toy").mkdir()
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    lines += [f"u{u}\ti{(u + 2 * k) % 10}\t{k}" for u in range(12) for k in range(5)]
    (folder / "toy" / "toy.inter").write_text("\n".join(lines))
    return {
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id"]},
        "gpu_id": "",
        "embedding_size": 4,
        "epochs": 1,
        "topk": [3],
        "valid_metric": "MRR@3",
        "show_progress": False,
    }


@pytest.fixture
def stock_trainer(tmp_path):
    """A stock trainer of BPR that has made one step."""
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.model.general_recommender.bpr import BPR
    from recbole.trainer.trainer import Trainer

    config = Config("BPR", "toy", config_dict=write_toy(tmp_path))
    train_data, _, _ = data_preparation(config, create_dataset(config))
    trainer = Trainer(config, BPR(config, train_data.dataset))
    trainer._train_epoch(train_data, 0)
    trainer.best_valid_score = np.float64(0.375)
    return trainer


def test_a_config_becomes_data_that_stock_code_can_read(stock_trainer, caplog, tmp_path):
    from recbole.utils import ModelType

    config = stock_trainer.config
    config["callback"], config["some_class"] = (lambda: 0), zipfile.ZipFile
    data = checkpoint.config_as_data(config)
    assert "callback" not in data
    assert "config.callback is a builtins.function" in caplog.text
    del config.final_config_dict["callback"]
    assert data["model"] == "BPR" and data["some_class"] == {"__class__": "zipfile:ZipFile"}
    expected = {**config.final_config_dict, "some_class": "zipfile:ZipFile"}
    assert there_and_back(data, tmp_path) == expected
    assert expected["MODEL_TYPE"] is ModelType.GENERAL
    assert checkpoint.config_as_data(data) == data


def test_a_models_own_layers_are_no_other_parameter():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def other_parameter(self):
            return {"layer": self.layer, "table": torch.ones(1)}

    assert checkpoint.other_parameter(Model()) == {"table": torch.ones(1)}


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_file_that_stock_recbole_wrote_is_read(protocol, stock_trainer, tmp_path):
    trainer, path = stock_trainer, tmp_path / "stock.pth"
    trainer.config["device"] = torch.device("cuda", 0)
    similarity = np.matrix([[0.0, 0.5], [0.25, 0.0]])
    state = {
        "config": trainer.config,
        "epoch": 3,
        "best_valid_score": trainer.best_valid_score,
        "state_dict": trainer.model.state_dict(),
        "other_parameter": {
            "interaction_matrix": sparse.csr_matrix(np.float32([[1, 0, 1], [0, 1, 0]])),
            "item_similarity": similarity,
            "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
            "embedding_layer": torch.nn.Embedding(2, 2),
            "cache": None,
        },
        "optimizer": trainer.optimizer.state_dict(),
    }
    torch.save(state, path, pickle_protocol=protocol)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    back = checkpoint.load(path)
    assert back["config"]["model"] == "BPR"
    assert back["config"] == trainer.config.final_config_dict
    assert same(back["best_valid_score"], 0.375) and back["epoch"] == 3
    assert same(back["state_dict"], dict(trainer.model.state_dict()))
    other = back["other_parameter"]
    assert list(other) == ["interaction_matrix", "item_similarity", "fortran", "cache"]
    assert same(other["interaction_matrix"], state["other_parameter"]["interaction_matrix"])
    assert same(other["item_similarity"], similarity)
    assert other["fortran"].tolist() == [[0, 1, 2], [3, 4, 5]]
    trainer.optimizer.load_state_dict(back["optimizer"])


def test_recboles_own_method_writes_a_file_that_is_read(stock_trainer, tmp_path):
    from recbole.trainer.trainer import Trainer

    Trainer._save_checkpoint.__wrapped__(stock_trainer, 5, saved_model_file=tmp_path / "a.pth")
    back = checkpoint.load(tmp_path / "a.pth")
    assert back["epoch"] == 5 and back["config"]["embedding_size"] == 4
    assert same(back["state_dict"], dict(stock_trainer.model.state_dict()))


# --- attacks ------------------------------------------------------------------------------------


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def torch_file(data: bytes) -> bytes:
    """torch's file format around a pickle of ours."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {"data.pkl": data, "version": "3\n", "byteorder": "little"}.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def old_torch_file(data: bytes) -> bytes:
    """torch's format before 1.6 around a pickle of ours."""
    from torch.serialization import MAGIC_NUMBER, PROTOCOL_VERSION

    head = [pickle.dumps(part, 2) for part in (MAGIC_NUMBER, PROTOCOL_VERSION, {})]
    return b"".join(head) + data + pickle.dumps([], 2)


def refused(content: bytes, path: Path, marker: Path) -> str:
    """The message of ``load`` for a hostile file; nothing of it may have run."""
    path.write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    assert not marker.exists()
    return str(caught.value)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


def is_real(data: bytes, marker: Path) -> None:
    """Check that the attack works on Python's own unpickler."""
    try:
        pickle.loads(data)
    except Exception:  # once the harm is done, it may fail
        pass
    assert marker.exists()
    marker.unlink()


def hostile(marker: Path) -> dict[str, tuple[object, str]]:
    """Objects that touch ``marker`` when unpickled, with the name the refusal must give."""
    from recbole.config import Config

    touch, python = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    evil = torch_bytes({"state_dict": Call(os.system, touch)})
    settings = {"learner": f"__import__('os').system({touch!r})"}
    return {
        "system": (Call(os.system, touch), "call posix.system when read; do not trust"),
        "eval": (Call(eval, python), "call builtins.eval when"),
        "exec": (Call(exec, python), "call builtins.exec when"),
        "popen": (Call(subprocess.Popen, ["touch", str(marker)]), "call subprocess.Popen when"),
        "config": (
            Call(Config, "BPR", "toy", None, settings),
            "call recbole.config.configurator.Config when",
        ),
        "partial": (Call(functools.partial(os.system, touch)), "call functools.partial when"),
        "torch.load": (Call(torch.load, io.BytesIO(evil), None, None), "would call "),
        "_load_from_bytes": (
            Call(torch.storage._load_from_bytes, evil),
            "call torch.storage._load_from_bytes when",
        ),
        "map": (Call(list, Call(map, os.system, [touch])), "call builtins.map when"),
    }


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("attack", ["system", "eval", "exec", "popen", "config", "partial"])
def test_a_pickle_that_calls_something_is_refused(attack, protocol, marker, tmp_path):
    evil, reason = hostile(marker)[attack]
    data = pickle.dumps({"state_dict": {}, "epoch": evil}, protocol)
    if attack != "popen":  # whose effect comes later
        is_real(data, marker)
    for content in (torch_file(data), old_torch_file(data), data):
        assert f"refused: it would {reason}" in refused(content, tmp_path / "a.pth", marker)


@pytest.mark.parametrize("attack", ["system", "config", "torch.load", "_load_from_bytes", "map"])
@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_call_hidden_in_a_file_of_torchs_is_refused(attack, options, marker, tmp_path):
    evil, reason = hostile(marker)[attack]
    state = {"state_dict": {"w": torch.ones(3)}, "optimizer": {"state": [(evil,)]}}
    content = torch_bytes(state, pickle_protocol=4, **options)
    assert reason in refused(content, tmp_path / "a.pth", marker)


def test_a_call_hidden_in_a_stock_config_is_refused(stock_trainer, marker, tmp_path):
    stock_trainer.config.parameters = {"General": Call(os.system, f"touch {marker}")}
    content = torch_bytes({"config": stock_trainer.config, "state_dict": {}}, pickle_protocol=4)
    assert "it would call posix.system" in refused(content, tmp_path / "a.pth", marker)


def test_an_allow_listed_config_is_refused_all_the_same(marker, tmp_path):
    from recbole.config import Config

    content = torch_bytes({"state_dict": hostile(marker)["config"][0]})
    with torch.serialization.safe_globals([Config]):
        allowed = set(torch.serialization.get_safe_globals())
        with pytest.raises(Exception):  # noqa: B017  (it runs the command, then does not find toy)
            torch.load(io.BytesIO(content), weights_only=True)["nothing"]
        assert marker.exists()
        marker.unlink()
        assert "configurator.Config" in refused(content, tmp_path / "a.pth", marker)
        assert set(torch.serialization.get_safe_globals()) == allowed >= {Config}


def text(value: object) -> bytes:
    return b"X" + len(str(value)).to_bytes(4, "little") + str(value).encode()


def opcodes(marker: Path) -> dict[str, tuple[bytes, str]]:
    """Pickles that no pickler writes; all but the last five touch ``marker`` if they can."""
    touch = text(f"touch {marker}")
    system = b"cposix\nsystem\n"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    blank = b"cargparse\nNamespace\n)\x81"
    return {
        "inst": (b"(" + touch + b"iposix\nsystem\n.", "call posix.system"),
        "obj": (b"(" + system + touch + b"o.", "call posix.system"),
        "getattr": (
            b"cbuiltins\ngetattr\n" + system + text("__call__") + b"\x86R" + touch + b"\x85R.",
            "call builtins.getattr",
        ),
        "set state twice": (
            b"\x80\x02}"
            + text("state_dict")
            + blank
            + b"}"
            + text("__setstate__")
            + system
            + b"sb"
            + touch
            + b"bs.",
            "its state_dict is an object of argparse.Namespace",
        ),
        "set state of a function": (rebuild + b"N}" + text("x") + b"Ns\x86b.", "__setstate__"),
        "set state of a class": (
            b"crecbole.utils.enum_type\nModelType\nN}" + text("x") + b"Ns\x86b.",
            "__setstate__",
        ),
        "keyword arguments": (
            b"\x80\x04" + b"cbuiltins\nset\n)}" + text("key") + b"Ns\x92.",
            "refused",
        ),
        "append to a stand-in": (blank + b"Na.", "a method of Instance"),
        "set an item of a tuple": (b")" + text("a") + b"Ns.", "a method of tuple"),
    }


@pytest.mark.parametrize("attack", list(opcodes(Path())))
def test_opcodes_that_reach_round_the_check_are_refused(attack, marker, tmp_path):
    data, reason = opcodes(marker)[attack]
    if attack in ("inst", "obj", "getattr", "set state twice"):
        is_real(data, marker)
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    for content in (torch_file(data), old_torch_file(data)):
        assert reason in refused(content, tmp_path / "a.pth", marker)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults
    assert not hasattr(torch._utils._rebuild_tensor_v2, "x")


def test_an_extension_code_is_refused(marker, tmp_path):
    copyreg.add_extension("posix", "system", 250)
    try:
        data = pickle.dumps(Call(os.system, f"touch {marker}"), 2)
        assert b"\x82\xfa" in data
        is_real(data, marker)
        refused(torch_file(data), tmp_path / "a.pth", marker)
    finally:
        copyreg.remove_extension("posix", "system", 250)


def test_a_module_entry_of_torchs_old_format_is_refused(marker, tmp_path):
    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("module", OrderedDict, "x.py", "source") if value == "here" else None

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"state_dict": "here"})
    message = refused(old_torch_file(buffer.getvalue()), tmp_path / "a.pth", marker)
    assert "call persistent_load" in message


def test_a_stand_in_refuses_to_be_called():
    with pytest.raises(CheckpointError, match="it would call posix.system when read"):
        Name("posix", "system")("true")


def test_reading_a_stock_file_imports_none_of_its_classes(tmp_path):
    (tmp_path / "trap_module.py").write_text("raise AssertionError('imported')")
    sys.path.insert(0, str(tmp_path))
    try:
        data = b"\x80\x02}(" + text("state_dict") + b"}" + text("model_class")
        data += b"ctrap_module\nModel\nu."
        (tmp_path / "a.pth").write_bytes(torch_file(data))
        back = checkpoint.load(tmp_path / "a.pth")
        assert back == {"state_dict": {}, "model_class": "trap_module:Model"}
    finally:
        sys.path.remove(str(tmp_path))
