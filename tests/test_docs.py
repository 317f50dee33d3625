"""What docs/ shows works as it stands there."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from recbole_adv.cli import main

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").glob("*.md"))
TUTORIAL = ROOT / "docs" / "write-your-own.md"


def blocks(file, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def checkout(monkeypatch):
    """The reader's working directory, with the data and without a GPU."""
    Path("dataset").symlink_to(ROOT / "dataset")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_python_blocks_run_one_after_the_other(file, capsys):
    scope = {"__name__": "docs"}
    for code in blocks(file):
        exec(compile(code, file.name, "exec"), scope)
    for name in [name for name in scope if name.startswith("test_")]:
        scope[name]()
    if file == TUTORIAL:
        shown = capsys.readouterr().out
        assert shown.count("recall@10") == 2
        assert "self.average of KeepsAGraph keeps the graph of an earlier forward pass, " in shown


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_models_are_short(file):
    classes = [node for code in blocks(file) for node in ast.parse(code).body]
    lengths = {
        node.name: node.end_lineno - node.lineno + 1
        for node in classes
        if isinstance(node, ast.ClassDef)
    }
    assert all(length < 40 for length in lengths.values()), lengths
    assert len(lengths) >= 3 or file != TUTORIAL


def test_the_file_with_its_yaml_runs_from_the_command_line():
    (code,) = (code for code in blocks(TUTORIAL) if "class HiddenAttribute" in code)
    Path("my_models.py").write_text(code)
    Path("HiddenAttribute.yaml").write_text(blocks(TUTORIAL, "yaml")[0])
    (line,) = re.findall(r"recbole-adv (run .*my_models.*)", TUTORIAL.read_text(encoding="utf-8"))
    assert main([*shlex.split(line), "--state=error", "--show_progress=False"]) == 0


@pytest.mark.parametrize("file", DOCS, ids=lambda file: file.name)
def test_links_to_files_lead_somewhere(file):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text(encoding="utf-8")):
        assert (file.parent / target).exists(), target


def test_hooks_and_keys_exist():
    from recbole_adv.options import overall_options
    from recbole_adv.trainer import INVTrainer

    text = TUTORIAL.read_text(encoding="utf-8")
    hooks = re.findall(
        r"`(\w+)\(?[^`]*`", text.partition("## Hooks")[2].partition("With `needs")[0]
    )
    known = INVTrainer.__doc__
    own = {"Player", "min", "max", "Schedule", "method", "when"}
    for hook in set(hooks) - own:
        assert hook in known or hook in ("calculate_loss", "after_epoch"), hook
    keys = re.findall(r"`(_\w+)", text.partition("## When who moves")[2].partition("\n## ")[0])
    assert len(keys) >= 10
    assert {f"max{key}" for key in keys} <= set(overall_options())
