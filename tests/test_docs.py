"""What the documentation says is run as it stands there; the two languages say the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import examples
from tests.plans import write_text_corpus

ROOT = Path(__file__).resolve().parents[1]
_BLOCK = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)

TASKS = {
    "sentiment": """
[data]
task = "classification"
train = ["reviews.jsonl"]
label_names = { 0 = "negative", 1 = "positive" }
max_tokens = 32
""",
    "translation": """
[data]
task = "translation"
source_language = "en"
target_language = "zh"
train = ["pairs.en", "pairs.zh"]
max_tokens = 48
""",
}
TREE = """valid_fraction = 0.2
test_fraction = 0.2
[tokenizer]
vocab_size = 400
[train]
batch_tokens = 256
[compact]
hidden_size = 32
num_hidden_layers = 1
train = { epochs = 1 }
[[level]]
method = "merge"
members = 2
branch = { epochs = 1, vary = ["seed"] }
"""


def commands(page: Path) -> list[str]:
    return [line for block in _BLOCK.findall(page.read_text("utf-8")) for line in block.splitlines() if line.strip()]


@pytest.mark.parametrize(
    ("english", "chinese"), [("README.md", "README.zh-CN.md"), ("docs/guide.md", "docs/guide.zh-CN.md")]
)
def test_both_languages_give_the_same_commands(english: str, chinese: str) -> None:
    assert commands(ROOT / english) == commands(ROOT / chinese) != []


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (ROOT / page).read_text("utf-8")):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), target


def test_the_examples_are_plans() -> None:
    from ract.plan.derive import build_graph
    from ract.plan.schema import load_plan

    for file in (ROOT / "examples").glob("*.toml"):
        assert build_graph(load_plan(file), 3_000_000).nodes


def _pico_quickstart(corpus: Path) -> str:
    """The tree of the quickstart, with its nodes' names, a thousand times smaller."""
    text = (ROOT / "examples" / "quickstart.toml").read_text(encoding="utf-8")
    for old, new in (
        ('"stdlib"', f'"{corpus}"'),
        ("test_tokens = .*", 'test_tokens = 1024\ndocument = "paragraph"'),
        ("vocab_size = .*", "vocab_size = 300"),
        ("batch_tokens = .*", "batch_tokens = 256"),
        ("block_size = .*", "block_size = 64"),
        ("hidden_size = .*", "hidden_size = 32"),
        ('(?<=[{ ])tokens = "[^"]*"', "tokens = 3072"),
        ('weights = "learned"', 'weights = "learned"\nweights_tokens = 1024'),
    ):
        text, count = re.subn(old, lambda _, new=new: new, text)
        assert count, old
    return text


@pytest.mark.slow
def test_every_command_of_the_guide_runs(tmp_path: Path) -> None:
    """In the order of the page, with pico plans in the place of the examples."""
    (tmp_path / "examples").mkdir()
    corpus = write_text_corpus(tmp_path / "notes.txt", documents=2000)
    (tmp_path / "examples" / "quickstart.toml").write_text(_pico_quickstart(corpus), encoding="utf-8")
    rows = [row | {"label": str(int(row["label"] == "good"))} for row in examples.reviews(200)]
    examples.write_rows(tmp_path / "reviews.jsonl", rows)
    examples.write_rows(tmp_path / "held-out.jsonl", rows[:40])
    write_text_corpus(tmp_path / "held-out.txt", documents=100)
    (tmp_path / "reviews.txt").write_text("".join(row["text"] + "\n" for row in rows), encoding="utf-8")
    for name, text in zip(("pairs.en", "pairs.zh"), zip(*examples.sentences(200), strict=True), strict=True):
        (tmp_path / name).write_text("\n".join(text) + "\n", encoding="utf-8")
    for name, data in TASKS.items():
        (tmp_path / "examples" / f"{name}.toml").write_text(f'name = "{name}"\n{data}{TREE}', encoding="utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for command in commands(ROOT / "docs" / "guide.md"):
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip(), command
