"""What a user can get wrong on the command line: one sentence, exit code 2, nothing left behind."""

from __future__ import annotations

import os
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from recbole_adv.cli import main

ROOT = Path(__file__).resolve().parent.parent

HEAD = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
PAIRS = [(u, i) for u in range(6) for i in range(8) if (u + i) % 4]
ROWS = "".join(f"u{u}\ti{i}\t{1 + (u + i) % 5}\t{10 * u + i}\n" for u, i in PAIRS)
GOOD = HEAD + ROWS
ON_TINY = "-m EIIL -d tiny "
FAST = shlex.split(
    "--epochs=1 --train_batch_size=16 --topk=[2] --valid_metric=MRR@2 --embedding_size=4 "
    "--state=error --show_progress=False --use_gpu=False"
)

# name: (arguments, words that the sentence holds: the value found and what to write)
CONFIGURATION = {
    "typo in a key of ours": ("--max_intervall=3", "'max_intervall'", "did you mean max_interval?"),
    "typo in a key of RecBole's": ("--learing_rate=1", "'learing_rate'", "mean learning_rate?"),
    "typo in a key of the model's": ("--penalty_wieght=1", "'penalty_wieght'", "penalty_weight?"),
    "typo in backbone": ("--backbne=BPR", "'backbne'", "did you mean backbone?"),
    "typo in a learner's argument": ("--learner_bettas=[0.9,0.9]", "'learner_bettas'", "betas?"),
    "unknown technique": ("--techniques=['sharpness']", "'sharpness'", "clip_norm"),
    "word for a number": ("--epochs=abc", "epochs", "whole number >= 0", "'abc'"),
    "fraction for a count": ("--max_interval=1.5", "max_interval", "whole number >= 1", "got 1.5"),
    "word for a rate": ("--learning_rate=fast", "learning_rate", "a number >= 0", "'fast'"),
    "rate not a number": ("--learning_rate=nan", "learning_rate", "a number >= 0", "'nan'"),
    "word for a truth value": ("--check_gradients=yes", "True or False", "'yes'"),
    "number for a word": ("--run_dir=5", "run_dir", "a word", "got 5"),
    "no list": ("--max_modules=env_generator", "a list", """="['env_generator']\""""),
    "list unquoted in the shell": ("--generator_hidden_size=[8,x]", "'[8,x]'", "['8', 'x']"),
    "no such word": ("--generator=mpl", "generator must be one of mlp, table", "'mpl'"),
    "topk zero": ("--topk=0", "topk", "positive whole numbers", "[0]"),
    "topk negative": ("--topk=[5,-1]", "topk", "positive whole numbers", "[5, -1]"),
    "metric unknown": ("--metrics=['Recal']", "'Recal'", "did you mean recall?"),
    "metric a number": ("--metrics=5", "metrics must be a list of names", "got 5"),
    "metrics of two kinds": ("--metrics=['Recall','AUC']", "['Recall', 'AUC']", "leave one"),
    "metrics without labels": ("--metrics=AUC --valid_metric=AUC", "['AUC']", "'mode': 'labeled'"),
    "valid_metric not computed": ("--valid_metric=Recall@7", "'Recall@7'", "recall@10", "topk"),
    "eval_args no dict": ("--eval_args=RO", "eval_args must be a dict", "'RO'"),
    "eval_args typo": ("--eval_args={'splitt':{'RS':[8,1,1]}}", "'splitt'", "did you mean split?"),
    "two shares": ("--eval_args={'split':{'RS':[0.8,0.2]}}", "[0.8, 0.2]", "[0.8, 0.1, 0.1]"),
    "order unknown": ("--eval_args={'order':'XO'}", "order", "RO, TO", "'XO'"),
    "mode unknown": ("--eval_args={'mode':'uni'}", "full, labeled, uni100", "'uni'"),
    "load_col a list": ("--load_col=['user_id']", "load_col must be a dict", "['user_id']"),
    "interval no interval": ("--user_inter_num_interval=5", "'[5,inf)'", "got 5"),
    "encoding unknown": ("--encoding=utf-99", "'utf-99'", "write utf-8"),
    "state unknown": ("--state=loud", "'loud'", "debug, info"),
    "interval zero": ("--max_interval=0", "max_interval", ">= 1", "got 0"),
    "rate negative": ("--learning_rate=-0.1", "learning_rate", ">= 0", "got -0.1"),
    "rate of max negative": ("--max_learning_rate=-1", "max_learning_rate", ">= 0", "got -1"),
    "stop before start": ("--max_start_epoch=5 --max_stop_epoch=3", "max_start_epoch 5", "got 3"),
    "both players pause": ("--min_interval=2 --max_interval=2", "must be 1", "got 2 and 2"),
    "one environment": ("--n_environments=1", "n_environments", ">= 2", "got 1"),
    "embedding_size zero": ("--embedding_size=0", "embedding_size", ">= 1", "got 0"),
    "model misspelt": ("-m EILL -d tiny", "'EILL'", "did you mean EIIL?"),
    "model in lower case": ("-m eiil -d tiny", "'eiil'", "did you mean EIIL?"),
    "model like nothing": ("-m qqqqq -d tiny", "'qqqqq'", "recbole-adv models"),
    "no model": ("-d tiny", "no model is given", "--model=EIIL"),
    "no dataset": ("-m EIIL", "no dataset is given", "--dataset=ml-100k"),
    "backbone misspelt": ("--backbone=LightGNC", "'LightGNC'", "did you mean LightGCN"),
    "backbone a number": ("--backbone=3", "backbone 3", "must be a name"),
    "backbone a wrapper": ("--backbone=IRM", "backbone", "IRM", "write BPR or LightGCN"),
    "decision trees": ("-m lightgbm -d tiny", "lightgbm", "another model"),
    "backbone of decision trees": ("--backbone=lightgbm", "'lightgbm'", "another"),
    "learner unknown": ("--learner=adamm", "'adamm'", "adam, adamw, sgd", "did you mean adam"),
    "max_learner unknown": ("--max_learner=sdg", "max_learner", "'sdg'", "did you mean sgd?"),
    "argument unfit": ("--learner=sgd --learner_betas=[0.9,0.99]", "[0.9, 0.99]", "momentum"),
    "argument out of range": ("--learner_betas=[0.9,1.5]", "adam", "1.5", "torch.optim.Adam"),
    "sparse_adam and decay": ("--learner=sparse_adam --weight_decay=0.1", "to 0, not 0.1"),
    "clipping without max_norm": (
        "--clip_grad_norm={'norm_type':2}",
        "'norm_type': 2",
        "max_norm:",
    ),
    "max_norm a word": ("--clip_grad_norm={'max_norm':'a'}", "{'max_norm': 'a'}", "{max_norm: 5}"),
    "loss_type unknown": ("-m SASRec -d tiny --loss_type=NCE", "'NCE'", "BPR or CE"),
    "two losses": (
        "-m SASRec -d tiny --train_neg_sample_args={'distribution':'uniform','sample_num':1}",
        "'sample_num': 1",
        "None when the loss_type is CE",
    ),
    "sampling unknown": ("--train_neg_sample_args={'distribution':'normal'}", "normal", "uniform"),
    "RecBole's number": ("-m LightGCN -d tiny --n_layers=two", "n_layers", "a number", "'two'"),
    "RecBole's list": ("-m NeuMF -d tiny --mlp_hidden_size=8", "a list such as [", "got 8"),
    "shared_graph misspelt": ("--game_update=shared", "shared_graph, separate_forward", "'shared'"),
    "source unknown": ("-m IRM -d tiny --environment_source=popul", "'popul'", "item_popularity"),
    "file missing": ("-c missing.yaml", "'missing.yaml'", "No such file", "path of a YAML file"),
    "file a directory": ("-c dataset", "'dataset'", "Is a directory", "path of a YAML file"),
    "file no YAML": ("-c broken.yaml", "broken.yaml", "line 2", "key: value"),
    "file no mapping": ("-c list.yaml", "list.yaml", "[1, 2]", "key: value"),
    "file no text": ("-c noise.yaml", "noise.yaml", "key: value"),
    "typo in a file": ("-c typo.yaml", "'max_intervall'", "typo.yaml", "max_interval?"),
    "key without =": ("--backbone LightGCN", "'--backbone'", "write --backbone=LightGCN"),
    "key without --": ("backbone=LightGCN", "'backbone=LightGCN'", "write --backbone=LightGCN"),
    "key given twice": ("--epochs=1 --epochs=2", "--epochs is given twice", "1 and as 2"),
    "class in no file": ("-m nowhere.py:Mine -d tiny", "'nowhere.py'", "path/to/file.py:Class"),
    "no such class": ("-m mine.py:Mime -d tiny", "mine.py", "'Mime'", "did you mean Mine?"),
    "class no model": ("-m mine.py:Mine -d tiny", "mine.py:Mine", "GeneralRecommender"),
    "file without class": ("-m mine.py -d tiny", "'mine.py'", "write mine.py:Class"),
    "syntax error": ("-m wrong.py:Mine -d tiny", "wrong.py", "SyntaxError", "line 1", "mend it"),
    "module missing": ("-m no.such.module:Mine -d tiny", "'no.such.module'", "file.py:Class"),
    "no process": ("--nproc=0", "nproc must be at least 1", "got 0", "--nproc=2"),
    "processes a word": ("--nproc=two", "--nproc", "'two'", "--help"),
    "model without a name": ("-d tiny -m", "--model", "expected one argument", "--help"),
    "dataset misspelt": ("-m EIIL -d tinny", "'tinny'", "did you mean tiny"),
    "data_path nowhere": ("--data_path=nowhere", "nowhere", "set dataset"),
    "separator": ("--field_separator=,", "no ','", r"field_separator to '\t'"),
    "run_dir below a file": ("--run_dir=list.yaml/run", "list.yaml/run", "write another one"),
    "run_dir a file": ("--run_dir=list.yaml", "list.yaml", "write another one"),
    "checkpoint_dir below a file": ("--checkpoint_dir=list.yaml/x", "'list.yaml/x'", "another one"),
}

# The same, but found only when the data is loaded or the model is built.
LATE = {
    "backbone of linear algebra": ("--backbone=EASE", "backbone EASE", "such as BPR"),
    "backbone without rows": ("--backbone=MultiVAE", "backbone MultiVAE", "such as BPR"),
    "backbone that counts": ("--backbone=Pop", "backbone Pop", "such as BPR"),
    "backbone with its own loop": ("--backbone=NCL", "NCLTrainer", "another backbone"),
    "no calculate_joint": (
        "-m GroupDRO -d tiny --game_update=shared_graph",
        "shared_graph",
        "GroupDRO.calculate_joint()",
        "write separate_forward",
    ),
    "max owns nothing": ("--max_modules=['env_genrator']", "['env_genrator']", "'env_generator'"),
    "no timestamps": ("-m IRM -d tiny --environment_source=time", "timestamp", "load_col"),
    "no column": ("-m IRM -d tiny --environment_source=column", "None", "write environment_column"),
    "column unknown": (
        "-m IRM -d tiny --environment_source=column --environment_column=item",
        "'item'",
        "did you mean item_id?",
    ),
    "environments without number": ("-m VREx -d tiny --n_environments=None", "None", "write n_env"),
    "more environments than items": ("-m IRM -d tiny --n_environments=9", "=9", "write 8 or less"),
    "more ranks than items": ("--topk=[9] --valid_metric=MRR@9", "[9]", "write topk: [8]"),
    "all rows filtered out": ("--user_inter_num_interval=[99,inf)", "'tiny'", "filtering settings"),
    "sparse_adam for a dense model": (
        "-m BPR -d tiny --learner=sparse_adam",
        "got learner: sparse_adam for BPR",
        "write learner: adam",
    ),
    "no negatives": ("--train_neg_sample_args=None", "'neg_item_id'", "'sample_num': 1"),
    "no labels": (
        "-m DeepFM -d tiny --metrics=['MRR'] --eval_args={'mode':'full'}",
        "'label'",
        "threshold: {'rating': 4}",
    ),
}

# name: (the .inter file, words)
ALL_COLUMNS = "-m EIIL -d bad --load_col=None"
DATA = {
    "no file": (None, "no file bad.inter", "which holds nothing"),
    "empty": ("", "bad.inter is empty", "write a header"),
    "header only": (HEAD, "bad.inter has a header and no rows", "add at least 2"),
    "header without types": ("user_id\titem_id\n" + ROWS, "'user_id'", "write name:type"),
    "header missing": (ROWS, "'u0'", "write name:type"),
    "type unknown": (GOOD.replace("rating:float", "rating:real"), "'rating:real'", "token_seq"),
    "user column missing": (GOOD.replace("user_id", "user"), "'user_id'", "did you mean user?"),
    "row too short": (GOOD + "u1\ti1\t3\n", "line 38", "['u1', 'i1', '3']", "write 4"),
    "row too long": (GOOD + "u1\ti1\t3\t1\t1\n", "line 38", "5 columns", "write 4"),
    "text in a number": (GOOD + "u1\ti1\tgood\t3\n", "line 38", "rating is 'good'", "write one"),
    "rating NaN": (GOOD + "u1\ti1\tnan\t3\n", "line 38", "rating is 'nan'", "remove the row"),
    "rating missing": (GOOD + "u1\ti1\t\t3\n", "line 38", "rating is empty", "remove the row"),
    "rating infinite": (GOOD + "u1\ti1\tinf\t3\n", "line 38", "'inf'", "remove the row"),
    "one user": (re.sub(r"(?m)^u\d", "u0", GOOD), "a single user_id, 'u0'", "at least 2 users"),
    "one item": (re.sub(r"\ti\d", "\ti0", GOOD), "a single item_id, 'i0'", "2 items"),
    "not UTF-8": ((GOOD + "u\xe9\ti1\t1\t1\n").encode("latin-1"), "line 38", "UTF-8", "encoding"),
    "byte order mark": (b"\xef\xbb\xbf" + GOOD.encode(), "byte order mark", "UTF-8 without one"),
    "quotation mark": (GOOD + '"u1\ti1\t1\t1\nu2\ti2\t1\t1\n', "line 38", "quotation mark"),
}


class Attack:
    """What runs a command in everyone who unpickles it."""

    def __reduce__(self):
        return os.system, ("touch attacked",)


ATTACK = {"state_dict": {}, "config": Attack()}


def foreign_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("word/document.xml", "<w/>")


# name: (what is done to the good checkpoint, arguments, words)
RESUME = {
    "missing": (None, "--resume=runs/nowhere", "runs/nowhere", "check the path"),
    "directory without one": (None, "--resume=dataset", "'dataset'", "path of a .pth file"),
    "empty": (lambda p: p.write_bytes(b""), "", "it is empty"),
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-999]), "", "cut short", "another copy"),
    "text": (lambda p: p.write_text("epoch 3\n"), "", "it is no checkpoint"),
    "another torch file": (lambda p: torch.save({"weight": 1}, p), "", "'state_dict'", "weight"),
    "weights alone": (lambda p: torch.save({"state_dict": {}}, p), "", "no configuration", "write"),
    "another zip": (foreign_zip, "", "another program's zip file"),
    "malicious": (lambda p: torch.save(ATTACK, p), "", "posix.system"),
    "malicious pickle": (lambda p: p.write_bytes(pickle.dumps(ATTACK, 2)), "", "cannot be loaded"),
    "other size": (None, "--embedding_size=8", "last.pth does not fit this model", "size mismatch"),
    "other backbone": (None, "--backbone=NeuMF", "backbone 'BPR', got 'NeuMF'", "leave it out"),
    "other model": (None, "-m IRM", "model 'EIIL', got 'IRM'", "leave it out"),
    "other dataset": (None, "-d ml-100k", "'tiny'", "'ml-100k'", "leave it out"),
    "typo": (None, "--max_intervall=3", "'max_intervall'", "max_interval?"),
    "key without =": (None, "--epochs 3", "'--epochs'", "write --epochs=3"),
}


def write_dataset(name: str, inter: str | bytes | None) -> None:
    folder = Path("dataset") / name
    folder.mkdir(parents=True)
    if inter is not None:
        data = inter.encode() if isinstance(inter, str) else inter
        (folder / f"{name}.inter").write_bytes(data)


@pytest.fixture(autouse=True)
def directory(monkeypatch, tmp_path):
    """An empty working directory with the data set ``tiny`` and a few files."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    write_dataset("tiny", GOOD)
    Path("broken.yaml").write_text("topk: [1, 2\nepochs: }")
    Path("list.yaml").write_text("- 1\n- 2\n")
    Path("noise.yaml").write_bytes(b"\xff\xfe\x00\x80" * 9)
    Path("typo.yaml").write_text("max_intervall: 3\n")
    Path("mine.py").write_text("class Mine:\n    pass\n")
    Path("wrong.py").write_text("class Mine(:\n    pass\n")
    return tmp_path


def listing() -> dict[str, bytes | None]:
    """Every file and folder here and what it holds; a log may grow."""
    return {
        str(path): path.read_bytes() if path.is_file() and path.name != "run.log" else None
        for path in Path().rglob("*")
    }


def arguments_of(text: str) -> list[str]:
    """The arguments that follow ``run``; quotes are Python's, as they reach a program."""
    base = "" if re.search(r"(^| )-[md]( |$)", text) or "--resume" in text else ON_TINY
    return [*shlex.split(base), *text.split()]


def check_refused(arguments: list[str], words: tuple[str, ...], capsys) -> None:
    """The command fails as a user's mistake should."""
    before = listing()
    capsys.readouterr()
    code = main(["run", *arguments])
    shown = capsys.readouterr().err
    assert code == 2, shown
    check_sentence(shown, words)
    assert listing() == before


def check_sentence(shown: str, words: tuple[str, ...]) -> None:
    assert shown.startswith("recbole-adv: ")
    assert shown.endswith("\n")
    assert shown.count("\n") == 1, shown
    assert "Traceback" not in shown
    for word in words:
        assert word in shown


def test_the_good_command_trains(capsys):
    """Else the cases below would show nothing."""
    assert main(["run", *shlex.split(ON_TINY), *FAST]) == 0, capsys.readouterr().err
    assert len(list(Path("runs").glob("*/result.json"))) == 1


@pytest.mark.parametrize("name", CONFIGURATION)
def test_configuration(name, capsys):
    arguments, *words = CONFIGURATION[name]
    check_refused(arguments_of(arguments), words, capsys)


@pytest.mark.parametrize("name", LATE)
def test_what_data_or_model_show(name, capsys):
    arguments, *words = LATE[name]
    given = arguments_of(arguments)
    keys = {argument.partition("=")[0] for argument in given}
    fast = [argument for argument in FAST if argument.partition("=")[0] not in keys]
    check_refused([*given, *fast], words, capsys)


@pytest.mark.parametrize("name", DATA)
def test_data(name, capsys):
    inter, *words = DATA[name]
    write_dataset("bad", inter)
    check_refused(arguments_of(ALL_COLUMNS), words, capsys)


@pytest.mark.parametrize("name", RESUME)
def test_resume(name, capsys):
    damage, arguments, *words = RESUME[name]
    assert main(["run", *shlex.split(ON_TINY), *FAST, "--run_dir=run"]) == 0
    if damage is not None:
        damage(Path("run/last.pth"))
        words = ["run/last.pth", *words]
    given = arguments if "--resume" in arguments else f"--resume=run {arguments}"
    check_refused(given.split(), words, capsys)
    assert not Path("attacked").exists()


@pytest.mark.parametrize("command", ["rnu", "models extra", "config -m EIIL -d tiny --topk=x"])
def test_other_commands(command, capsys):
    before = listing()
    assert main(command.split()) == 2
    check_sentence(capsys.readouterr().err, ())
    assert listing() == before


def test_the_log_goes_before_the_sentence(capsys):
    """A mistake that shows only in the data, with the log on: the last line is the sentence."""
    before = listing()
    assert main(["run", *shlex.split(ON_TINY)]) == 2
    *log, last = capsys.readouterr().err.splitlines()
    assert log
    check_sentence(last + "\n", ("topk", "[10]", "[8]"))
    assert listing() == before


def test_what_was_there_before_is_kept(capsys):
    """A run_dir that the user had made, with a file, stays with that file alone."""
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("keep")
    arguments = ["--backbone=EASE", "--run_dir=mine", "--checkpoint_dir=kept/here"]
    check_refused([*shlex.split(ON_TINY), *arguments, *FAST], ("EASE",), capsys)


def test_a_fault_of_ours_is_one_line_too(capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("a fault\nof ours")

    monkeypatch.setattr("recbole_adv.quick_start.run_recbole_adv", fail)
    assert main(["run", *shlex.split(ON_TINY)]) == 1
    check_sentence(capsys.readouterr().err, ("RuntimeError: a fault of ours", "--debug"))
    with pytest.raises(RuntimeError):
        main(["run", "--debug", *shlex.split(ON_TINY)])


def process(*arguments: str) -> subprocess.CompletedProcess:
    """``run_recbole_adv.py`` as a user starts it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONWARNINGS", None)
    command = [sys.executable, str(ROOT / "run_recbole_adv.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--backbone=NCL " + " ".join(FAST), ("NCLTrainer", "another backbone")),
        ("--resume=attack.pth", ("attack.pth", "cannot be loaded")),
    ],
)
def test_process(arguments, words):
    Path("attack.pth").write_bytes(pickle.dumps(ATTACK, 2))
    before = listing()
    done = process(*arguments_of(arguments))
    assert done.returncode == 2
    check_sentence(done.stderr, words)
    assert done.stdout == ""
    assert listing() == before


def test_process_debug_shows_the_traceback():
    before = listing()
    done = process("--debug", *shlex.split(ON_TINY), "--max_intervall=3")
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.splitlines()[-1].startswith("recbole_adv.errors.ConfigError: ")
    assert listing() == before


@pytest.mark.parametrize("place", ["__init__", "calculate_loss"])
def test_a_package_that_a_model_imports_by_itself(place, capsys):
    """As RecBole's NCL does with faiss, and its graph models with dgl."""
    arguments = "self, config, dataset" if place == "__init__" else "self, interaction"
    Path("wants.py").write_text(
        "from recbole.model.general_recommender import BPR\n\n"
        f"class Wants(BPR):\n    def {place}({arguments}):\n        import no_such_package\n"
    )
    given = ["-m", "wants.py:Wants", "-d", "tiny", *FAST]
    assert main(["run", *given]) == 2
    words = ("Wants needs the package 'no_such_package', which is not installed; install it",)
    check_sentence(capsys.readouterr().err, words)
