"""The two files of a report: of real runs, of many, of odd ones; and one sentence for a mistake."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from recbole_adv.cli import main
from recbole_adv.report.blocks import Chart, Line
from recbole_adv.report.chart import svg, ticks
from recbole_adv.seeds import run_seeds

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that what is opened is closed, and gathers what is in the page."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.captions, self.ids = [], [], [], [], []
        self.words = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attributes]
        self.ids += [value for key, value in attributes if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words += data
        if self.open and self.open[-1] == "caption":
            self.captions.append(data)


def read(file="report.html"):
    """The page, checked for what every page must be."""
    text = Path(file).read_text(encoding="utf-8")
    page = Page(text)
    assert not re.search(r"(?i)https?:|//[a-z]|@import|url\(", text)
    assert not {"script", "link", "iframe", "img", "object", "form"} & set(page.tags)
    assert not [
        key for _, key, _ in page.attributes if key in ("src", "srcset", "style") or key[:2] == "on"
    ]
    assert all(value.startswith("#") for _, key, value in page.attributes if key == "href")
    assert len(set(page.ids)) == len(page.ids)
    anchors = {value[1:] for _, key, value in page.attributes if key == "href"}
    labels = [v for _, key, v in page.attributes if key == "aria-labelledby"]
    assert anchors | {i for label in labels for i in label.split()} <= set(page.ids)
    assert page.tags.count("table") == len(page.captions)
    assert page.tags.count("svg") == page.tags.count("title") - 1 + page.words.count("\0") + sum(
        key == "aria-hidden" for _, key, _ in page.attributes
    )
    return page


@pytest.fixture
def runs(settings_of):
    """BPR and EIIL on a shifted split, two seeds each."""
    settings = {"shift_split": "popularity", "shift_seed": 1, "save_user_metrics": True}
    settings |= {"eval_groups": ["item_popularity"], "show_progress": False}
    for model, rate in (("BPR", 0.01), ("EIIL", 0.02)):
        settings |= {
            "learning_rate": rate,
            "run_dir": f"runs/{model.lower()}",
            "max_start_epoch": 0,
        }
        own = settings_of(model, epochs=2, **settings)
        run_seeds("2", model, "checkerboard", config_dict=own)
    return Path("runs")


def test_real_runs(runs, capsys):
    assert main(["report", "runs/bpr", "runs/eiil"]) == 0
    written = capsys.readouterr().out.split()
    assert [Path(w) for w in written] == [
        Path("runs/report.html").resolve(),
        Path("runs/report.md").resolve(),
    ]
    page, text = read("runs/report.html"), Path("runs/report.md").read_text()
    results = [json.loads(f.read_text()) for f in sorted(runs.glob("bpr/seed-*/result.json"))]
    for name in ("mrr@10", "test_id/ndcg@10", "item_popularity/worst/mrr@10"):
        # Of two values the standard error is half their distance.
        a, b = (result["test_result"][name] for result in results)
        assert f"{(a + b) / 2:.4f} ± {abs(a - b) / 2:.4f}" in text
        assert f"{(a + b) / 2:.4f} ± {abs(a - b) / 2:.4f}" in page.words
    rows = [line for line in text.splitlines() if line.startswith("| EIIL | mrr@10 | ")]
    assert len(rows) == 1 and " users | " in rows[0]
    assert "Holm's correction is for all 2 comparisons" in text
    assert main(["report", *map(str, runs.iterdir())]) == 0  # as of runs/*, the report included
    assert Path("runs/report.md").read_text().count("\n") == text.count("\n")
    for title in ("min loss", "max objective", "validation mrr@10"):
        assert title in page.words
    assert "test_shifted" in text and "KL to train" in text and "Leak check" in text
    assert "| seed | 2020, 2021 | 2020, 2021 |" in text
    assert not list(runs.glob("**/.*.tmp"))


def test_one_run(run, capsys):
    folder = run("alone", {"mrr@10": 0.25})
    assert main(["report", str(folder)]) == 0
    page = read(folder / "report.html")
    assert "0.2500" in page.words and "Comparison" not in page.words
    assert "±" not in (folder / "report.md").read_text().partition("| BPR |")[2]
    assert "2 of 8" not in page.words and "25.0 %" in page.words  # the leak


def test_twelve_runs(run):
    folders = [run(f"r{k}", {"mrr@10": k / 100}, learning_rate=k / 10) for k in range(12)]
    assert main(["report", *map(str, folders), "--output", "twelve.html"]) == 0
    page = read("twelve.html")
    assert page.words.count("BPR, learning_rate=1.1") >= 4
    drawn = {
        (k, v)
        for t, k, v in page.attributes
        if t == "polyline" and k in ("class", "stroke-dasharray")
    }
    assert len(drawn) == 7  # six colours, and one kind of dashes for the other six
    best = [line for line in Path("twelve.md").read_text().splitlines() if "**0.1100**" in line]
    assert len(best) == 1 and best[0].startswith("| BPR, learning_rate=1.1 |")


def test_everything_is_escaped(run):
    bad = "<script>alert(1)</script>&\"'|*`"
    folder = run(bad.replace("/", ""), {f"mrr@10{bad}": 0.1}, model=f"M{bad}", dataset=bad)
    other = run("other", {f"mrr@10{bad}": 0.2}, model=f"M{bad}", dataset=bad, **{bad: [bad]})
    for each in (folder, other):
        lines = [json.dumps({"epoch": e, f"min/{bad}": 1.0 + e, f"{bad}": 1.0}) for e in range(2)]
        (each / "metrics.jsonl").write_text("\n".join(lines) + "\n")
        split = json.loads((each / "split.json").read_text())
        split["parts"][bad] = split["parts"]["test"]
        (each / "split.json").write_text(json.dumps(split))
    assert main(["report", str(folder), str(other), "--output", "out.html"]) == 0
    page = read("out.html")
    assert page.words.count("<script>") > 5 and bad in page.words
    markdown = Path("out.md").read_text()
    assert "<script" not in markdown and "\\|\\*\\`" in markdown


def test_an_unfinished_run_is_marked_and_in_no_mean(run, capsys):
    folders = [
        run("a", {"mrr@10": 0.1}, seed=1),
        run("b", {"mrr@10": 0.3}, seed=2),
        run("c", seed=3),
    ]
    assert main(["report", *map(str, folders), "--output", "out.html"]) == 0
    text = Path("out.md").read_text()
    assert "**Note:** Unfinished, and in no mean or comparison: c." in text
    assert "| BPR | 2 | 0.2000 ± 0.1000 |" in text
    assert "| c | BPR | 3 | unfinished | 3 | 2 | 0.2000 | 0.50 |" in text
    read("out.html")


def test_runs_of_other_data_stand_in_tables_of_their_own(run):
    folders = [run("a", {"mrr@10": 0.1}), run("b", {"mrr@10": 0.3}, dataset="another")]
    assert main(["report", *map(str, folders), "--output", "out.html"]) == 0
    text = Path("out.md").read_text()
    assert (
        "Only methods of one letter can be compared: [A] BPR, dataset=made; [B] BPR, dataset=another"
        in text
    )
    assert "## Comparison" not in text and "**0." not in text
    assert "test of made [A]" in text and "test of another [B]" in text


def test_metric_chooses_what_is_compared(run, capsys):
    test = {"mrr@10": 0.1, "recall@10": 0.2, "g/worst/recall@10": 0.05, "test_id/recall@10": 0.3}
    folders = [
        run(
            f"{e}-{s}",
            {k: v * e + s / 100 for k, v in test.items()},
            seed=s,
            epochs=e,
            eval_groups=["g"],
        )
        for e in (1, 2)
        for s in (1, 2)
    ]
    arguments = ["report", *map(str, folders), "--output", "out.html", "--metric"]
    assert main([*arguments, "Recall@10", "--metric", "g/worst/recall@10"]) == 0
    text = Path("out.md").read_text().partition("## Comparison")[2].partition("## Groups")[0]
    names = [line.split(" | ")[1] for line in text.splitlines() if line.startswith("| BPR")]
    assert names == ["recall@10", "g/worst/recall@10", "test_id/recall@10"]
    assert main([*arguments, "recal@10"]) == 2
    assert (
        "no run was tested by --metric 'recal@10'; did you mean recall@10"
        in capsys.readouterr().err
    )


def test_a_sweep_stands_for_its_repetitions_or_its_best_trials(run, tmp_path):
    def trial(name, score, **keys):
        folder = run(name, **keys)
        record = {"status": "done", "score": score, "valid": {"mrr@10": score}}
        record["test"] = {"mrr@10": score / 2} if "seeds" in name else None
        (folder / "trial.json").write_text(json.dumps(record))

    for k in range(14):
        trial(f"sweep/trials/{k:x}", k / 100, learning_rate=k)
    (tmp_path / "sweep" / "sweep.json").write_text(json.dumps({"metric": "mrr@10"}))
    assert main(["report", "sweep"]) == 0
    text = (tmp_path / "sweep" / "report.md").read_text()
    assert "the best 12 of 14 trials" in text and "learning_rate=13" in text
    assert "learning_rate=1 |" not in text and "No run has test metrics yet" in text
    read("sweep/report.html")
    trial("sweep/seeds/d-1", 0.12, seed=1)
    trial("sweep/seeds/d-2", 0.16, seed=2)
    assert main(["report", "sweep"]) == 0
    assert "| BPR | 2 | 0.0700 ± 0.0100 |" in (tmp_path / "sweep" / "report.md").read_text()
    trial("sweep/seeds/e-1", 0.22, seed=1, epochs=9)
    trial("sweep/seeds/e-2", 0.10, seed=2, epochs=9)
    assert main(["report", "sweep"]) == 0  # 0.16 is a better mean than 0.14: it is the baseline
    assert "Difference to BPR, epochs=9, paired" in (tmp_path / "sweep" / "report.md").read_text()


def broken(name, text):
    def make(folder):
        (folder / name).write_text(text)

    return make


@pytest.mark.parametrize(
    "make, words",
    [
        (broken("result.json", "{"), "result.json cannot be read: Expecting"),
        (broken("result.json", "[1]"), "result.json must hold figures by name, got '\\[1\\]'"),
        (broken("result.json", '{"test_result": [1]}'), "result.json holds no results by name"),
        (broken("split.json", "nothing"), "split.json cannot be read"),
        (broken("config.yaml", "a: ["), "config.yaml cannot be read"),
        (broken("config.yaml", "- a"), "config.yaml holds no settings"),
        (broken("metrics.jsonl", '{"epoch": 0}\n{"ep'), "metrics.jsonl, line 2: no JSON"),
        (broken("user_metrics.npz", "x"), "user_metrics.npz holds no metrics of users"),
        (lambda folder: (folder / "config.yaml").unlink(), "is no directory of a run"),
        (broken("seeds.json", "[]"), "seeds.json must hold figures by name"),
        (broken("seeds.json", '{"seeds": [7]}'), "none of the seeds of .* has begun"),
        (broken("sweep.json", "{}"), "has no trial that ended"),
    ],
)
def test_one_sentence_for_a_broken_directory(make, words, run, capsys):
    other, folder = run("other", {"mrr@10": 0.1}, epochs=9), run("bad", {"mrr@10": 0.1})
    make(folder)
    assert main(["report", str(other), str(folder), "--output", "out.html"]) == 2
    sentence = capsys.readouterr().err
    assert re.search(words, sentence) and sentence.count("\n") == 1
    assert not Path("out.html").exists() and not Path("out.md").exists()


def test_mistakes_on_the_command_line(run, capsys, tmp_path):
    folder = str(run("runs/a", {"mrr@10": 0.1}))
    for arguments, words in [
        (["nowhere"], "there is no run nowhere"),
        ([str(tmp_path / "runs")], "name the runs in it, such as"),
        ([folder, "--epochs=3"], "'report' takes no argument"),
        (
            [folder, "--output", "out.pdf"],
            "--output must be a file such as report.html, got 'out.pdf'",
        ),
        ([folder, "--output", f"{folder}/config.yaml/x.html"], "cannot be written"),
    ]:
        assert main(["report", *arguments]) == 2
        assert words in capsys.readouterr().err


# --- charts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0.0, 1.0, [0, 0.25, 0.5, 0.75, 1.0]),
        (0.12, 0.38, [0.1, 0.2, 0.3, 0.4]),
        (-3.0, 5.0, [-4, -2, 0, 2, 4, 6]),
        (5.0, 5.0, [4.5, 4.75, 5.0, 5.25, 5.5]),
        (0.0, 0.0, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round_and_enclose(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_points_are_where_the_values_are_and_gaps_stay_gaps():
    """The plot is 52..350 wide and 10..186 high; values from 0 to 1, epochs from 0 to 4."""
    nan = float("nan")
    text = svg(Chart("t", [Line(0, "a", range(5), [0.0, 1.0, nan, 0.5, 0.5])]), "c")
    assert re.findall(r'points="([^"]*)"', text) == [
        "52.0,186.0 126.5,10.0",
        "275.5,98.0 350.0,98.0",
    ]
    assert "a: 0 in epoch 0, 0.5 in epoch 4" in text
    alone = svg(Chart("t", [Line(1, "a", [0, 1, 2], [nan, 3.0, nan])]), "c")
    assert alone.count("<circle") == 1 and "<polyline" not in alone
