"""What the README shows works as it stands there."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).resolve().parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_python_blocks_run(code):
    scope = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["result"]["test_result"]["recall@10"] > 0


def test_every_model_has_a_row():
    from recbole_adv.discovery import own_model_names

    for name in own_model_names():
        assert f"| `{name}` |" in README, name


def test_every_key_in_the_tables_exists():
    from recbole_adv.options import overall_options

    keys = re.findall(r"`((?:max|game)_\w+)`", README.partition("| key |")[2].partition("\n\n")[0])
    assert len(keys) > 10
    assert set(keys) <= set(overall_options())
