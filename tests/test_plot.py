"""Curves of real runs as PNG, and one sentence where there is nothing to draw."""

import json
import math
import struct
import sys
from pathlib import Path

import pytest

from recbole_adv import run_recbole_adv
from recbole_adv.cli import main
from recbole_adv.errors import ConfigError, DataError
from recbole_adv.plot.draw import _fill, draw_runs
from recbole_adv.plot.metrics import Place, Run, pages_of, place_of, read_run

EIIL = {
    "epochs": 4,
    "max_start_epoch": 1,
    "penalty_start": 1,
    "selection_start_epoch": 0,
    "monitor_interval": 1,
    "techniques": ["monitor", "divergence_guard", "embedding_attack"],
    "embedding_attack_start_epoch": 2,
    "monitor_every": 1,
    "monitor_sharpness_interval": 2,
    "monitor_sharpness_iterations": 2,
}
PAGES = ["losses", "validation", "norms", "sharpness", "techniques", "model"]


@pytest.fixture
def game(settings_of):
    """The directory of a real run of a game."""
    return Path(
        run_recbole_adv("EIIL", "checkerboard", config_dict=settings_of("EIIL", **EIIL))["run_dir"]
    )


def size_of(file):
    """Width and height of a PNG, from its header."""
    head = file.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def written(folder):
    return {file.stem for file in folder.glob("*.png")}


# --- real runs ------------------------------------------------------------------------------------


def test_a_game_is_drawn_into_its_directory(game, capsys):
    pytest.importorskip("matplotlib")
    assert main(["plot", str(game)]) == 0
    assert capsys.readouterr().out.split() == [
        str(game / f"{page}.png") for page in pages_of([read_run(game)])
    ]
    assert written(game) == set(PAGES)
    assert all(min(size_of(game / f"{page}.png")) > 300 for page in PAGES)
    assert not list(game.glob("*.tmp")) and not list(game.glob(".*.tmp"))


def test_curves_are_what_the_run_wrote(game):
    lines = [json.loads(line) for line in (game / "metrics.jsonl").read_text().splitlines()]
    run = read_run(game)
    assert run.epochs == [0, 1, 2, 3] and run.name == game.name
    losses = [line["min/loss"] for line in lines]
    assert run.curves["min/loss"] == ([0, 1, 2, 3], losses)
    assert run.curves["max/objective"] == ([1, 2, 3], [x["max/objective"] for x in lines[1:]])
    assert run.curves["valid/mrr@10"][1] == [line["valid"]["mrr@10"] for line in lines]
    assert run.curves["environment_mass[1]"][1] == [x["environment_mass"][1] for x in lines]
    pages = pages_of([run])
    assert set(pages) == set(PAGES)
    assert pages["losses"]["min"] == {
        "loss": "min/loss",
        "loss1": "min/loss1",
        "loss2": "min/loss2",
    }
    assert set(pages["losses"]) == {"min", "max", "max gain"}
    assert "valid_score" not in str(pages) and "train_seconds" not in str(pages)


def test_several_runs_share_the_axes(game, settings_of, capsys):
    matplotlib = pytest.importorskip("matplotlib.figure")
    other = run_recbole_adv("BPR", "checkerboard", config_dict=settings_of("BPR", epochs=2))
    assert main(["plot", str(game), other["run_dir"]]) == 2
    assert "write --output DIR" in capsys.readouterr().err
    out = Path("a/b")
    assert main(["plot", str(game), other["run_dir"], "--output", str(out)]) == 0
    assert written(out) == set(PAGES) and not written(game)
    runs = [read_run(game), read_run(Path(other["run_dir"]))]
    figure = matplotlib.Figure()
    _fill(figure, runs, "validation", pages_of(runs))
    axis = next(axis for axis in figure.axes if axis.get_title() == "mrr@10")
    drawn = {line.get_label(): list(line.get_ydata()) for line in axis.get_lines()}
    assert drawn == {run.name: run.curves["valid/mrr@10"][1] for run in runs}


def test_runs_of_one_name_are_told_apart_by_their_paths(monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    for folder in ("a/run", "b/run"):
        Path(folder).mkdir(parents=True)
        Path(folder, "metrics.jsonl").write_text('{"epoch": 0, "min/loss": 1.0}\n')
    labels = []
    save = figure.Figure.savefig

    def noted(self, *arguments, **keys):
        labels.extend(line.get_label() for axis in self.axes for line in axis.get_lines())
        save(self, *arguments, **keys)

    monkeypatch.setattr(figure.Figure, "savefig", noted)
    assert main(["plot", "a/run", "b/run/metrics.jsonl", "--output", "out"]) == 0
    assert labels == ["a/run", "b/run/metrics.jsonl"]


# --- pages ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, place",
    [
        ("min/loss", Place("losses", "min", "loss")),
        ("max/objective2", Place("losses", "max", "objective2")),
        ("max/gain", Place("losses", "max gain", "gain")),
        ("min/gradient_norm", Place("norms", "min gradient_norm", "all")),
        ("min/monitor_update_ratio/a.tables", Place("norms", "min update_ratio", "a.tables")),
        ("min/monitor_nonfinite", Place("norms", "min nonfinite", "monitor_nonfinite")),
        ("min/monitor_rise_0.05", Place("sharpness", "min rise", "rise_0.05")),
        (
            "min/monitor_sharpness_residual",
            Place("sharpness", "min sharpness", "sharpness_residual"),
        ),
        ("min/divergence_guard_full", Place("techniques", "min divergence_guard: events", "full")),
        (
            "min/divergence_guard_rate_factor",
            Place("techniques", "min divergence_guard: rate_factor", "rate_factor"),
        ),
        ("max/my_noise_size", Place("techniques", "max my_noise_size", "my_noise_size")),
        ("valid/ndcg@10", Place("validation", "ndcg@10", "ndcg@10")),
        ("environment_mass[2]", Place("model", "environment_mass", "environment_mass[2]")),
        ("penalty_weight", Place("model", "penalty_weight", "penalty_weight")),
        ("valid_score", None),
        ("train_seconds", None),
        ("min/turns", None),
        ("min/monitor_loss2", None),
    ],
)
def test_where_a_figure_is_drawn(name, place):
    assert place_of(name) == place


def test_rollbacks_are_marked_and_gaps_stay_gaps():
    matplotlib = pytest.importorskip("matplotlib.figure")
    run = Run("r", [0, 1, 2])
    run.curves = {
        "min/loss": ([0, 1, 2], [1.0, math.nan, 0.5]),
        "min/divergence_guard_rollback": ([0, 1, 2], [0.0, 2.0, 0.0]),
    }
    figure = matplotlib.Figure()
    _fill(figure, [run], "losses", pages_of([run]))
    (axis,) = figure.axes
    loss, mark = axis.get_lines()
    assert math.isnan(loss.get_ydata()[1]) and list(mark.get_xdata()) == [1, 1]
    assert mark.get_label() == "rollback"


def test_of_an_epoch_written_twice_the_later_counts(tmp_path):
    """A run that went on from an older checkpoint wrote the epochs after it again."""
    lines = [{"epoch": e, "min/loss": v} for e, v in ((0, 3.0), (1, 2.0), (1, 1.0), (2, None))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    epochs, values = read_run(tmp_path).curves["min/loss"]
    assert epochs == [0, 1, 2] and values[:2] == [3.0, 1.0] and math.isnan(values[2])


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        (None, "holds no metrics.jsonl, which a run writes from its first epoch on"),
        ("", "is empty"),
        ('{"epoch": 0}\n{"epoch": 1, "min/lo', "line 2: no JSON"),
        ('{"epoch": 0}\n[1, 2]\n', "line 2: no figures of an epoch, got '\\[1, 2\\]'"),
        ('{"loss": 1.0}\n', "line 1: no figures of an epoch"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_one_sentence_for_a_broken_file(text, words, tmp_path):
    if isinstance(text, bytes):
        (tmp_path / "metrics.jsonl").write_bytes(text)
    elif text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(DataError, match=words):
        read_run(tmp_path)


def test_a_folder_of_runs_names_one_of_them(tmp_path):
    (tmp_path / "seed-1").mkdir()
    (tmp_path / "seed-1" / "metrics.jsonl").write_text('{"epoch": 0, "min/loss": 1.0}\n')
    with pytest.raises(DataError, match="name one of the runs in it, such as .*seed-1"):
        read_run(tmp_path)


def test_mistakes_on_the_command_line(tmp_path, capsys, monkeypatch):
    assert main(["plot", "nowhere"]) == 2
    assert "there is no run nowhere" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0, "min/loss": 1.0}\n')
    assert main(["plot", str(tmp_path), "--epochs=3"]) == 2
    assert "'plot' takes no argument, got '--epochs=3'" in capsys.readouterr().err
    pytest.importorskip("matplotlib")
    (tmp_path / "file").write_text("")
    assert main(["plot", str(tmp_path), "--output", str(tmp_path / "file" / "x")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 0, "train_seconds": 1.0}\n')
    assert main(["plot", str(tmp_path)]) == 2
    assert "no figure that could be drawn" in capsys.readouterr().err


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    run = Run("r", [0], {"min/loss": ([0], [1.0])})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ConfigError, match=r"pip install 'recbole_adv\[plot\]'"):
        draw_runs([run], tmp_path)
    assert not list(tmp_path.iterdir())
