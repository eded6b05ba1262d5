"""The shape of the package: its public names, what importing it costs, which way imports point."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ract
from ract.errors import BadInput

ROOT = Path(__file__).resolve().parents[1]


def test_public_names_exist_and_are_documented() -> None:
    for name in ract.__all__:
        value = getattr(ract, name)
        assert name == "__version__" or value.__doc__, name


def test_verbs_can_be_called_after_the_packages_of_their_names_are_imported() -> None:
    import ract.aggregate.run
    import ract.evaluate.tasks
    import ract.train.node

    for name in set(ract.__all__) - {"__version__"}:
        assert callable(getattr(ract, name)) and getattr(ract, name) is getattr(ract, name), name
    with pytest.raises(BadInput, match="absent"):
        ract.evaluate("absent", ["absent.txt"])
    assert ract.aggregate.run.aggregate is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(ract, "no_such_thing")


def test_looking_does_not_import_torch() -> None:
    code = """
import sys
import ract, ract.cli, ract.plan.schema, ract.tree.check, ract.aggregate.methods
from ract.cli.app import app
for heavy in ("torch", "transformers", "datasets", "matplotlib", "accelerate"):
    assert heavy not in sys.modules, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_imports_point_one_way() -> None:
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None) == 0


def test_the_reference_pages_are_what_the_code_says() -> None:
    code = "import sys; from ract.cli.reference import main; sys.exit(main(['--check', 'docs']))"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_source_stays_readable() -> None:
    """A file is read in one sitting."""
    long = {p.name: n for p in (ROOT / "ract").rglob("*.py") if (n := len(p.read_text("utf-8").splitlines())) > 350}
    assert not long, long
