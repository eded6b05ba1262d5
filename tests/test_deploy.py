"""The code of docs/deploy.md: the C program is compiled and tells the known story; the Python code runs."""

from __future__ import annotations

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROMPT = "Once upon a time, there was a little girl"
STORY = " named Lily. She loved to play outside in the park."

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = find_spec("llama_cpp")
    compiler = shutil.which("cc")
    if package is None or package.origin is None or compiler is None:
        pytest.skip("a C compiler and llama-cpp-python are needed")
    lib = Path(package.origin).parent / "lib"
    include = Path(package.origin).parents[1] / "include"
    out = tmp_path_factory.mktemp("deploy") / "complete"
    source = ROOT / "examples" / "deploy" / "complete.c"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror", f"-I{include}", f"-L{lib}", f"-Wl,-rpath,{lib}"]
    libraries = ["-lllama", "-lggml", "-lggml-base"]
    subprocess.run([compiler, *flags, str(source), *libraries, "-o", str(out)], check=True)
    return out


def test_the_c_program_tells_the_known_story(program: Path, shared_data: Path, tmp_path: Path) -> None:
    from ract.export.export import export

    made = export(shared_data / "checkpoints" / "stories260k", tmp_path / "out", format="gguf")
    command = [str(program), str(made.path / "model.gguf"), PROMPT, "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith(STORY)


@pytest.mark.parametrize("arguments", [[], ["nowhere.gguf", "a", "3"]])
def test_the_c_program_says_what_is_wrong(program: Path, arguments: list[str]) -> None:
    done = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1 and "complete: " in done.stderr and not done.stdout


def test_the_python_code_runs_in_both_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ract.export.export import export_source
    from ract.export.source import load_source
    from ract.export.verify import Sample, sample
    from tests.text_models import byte_level_model

    blocks = [
        re.findall(r"```python\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL)
        for name in ("deploy.md", "deploy.zh-CN.md")
    ]
    assert blocks[0] == blocks[1] and blocks[0]
    source = load_source(byte_level_model(tmp_path / "model"))
    given = Sample(sample(source).batches, held_out=True)
    for precision in ("fp32", "int8"):
        folder = tmp_path / "exported" / "tree" / precision
        export_source(source, folder, "onnx", precision, given, data="x", node="leaf")  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for code in blocks[0]:
        exec(compile(code.replace("100e6", "1e9"), "deploy.md", "exec"), {})
