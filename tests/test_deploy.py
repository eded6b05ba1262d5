"""The code of docs/deploy.md: the C and C++ programs are compiled and tell the known story; the Python code runs."""

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


@pytest.fixture(scope="module")
def executorch_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    package = find_spec("executorch")
    compiler = shutil.which("c++")
    if package is None or not package.submodule_search_locations or compiler is None:
        pytest.skip("a C++ compiler and executorch are needed")
    root = Path(next(iter(package.submodule_search_locations)))
    out = tmp_path_factory.mktemp("deploy") / "complete"
    command = re.search(r"^c\+\+ .*? -o complete$", (ROOT / "docs/deploy.md").read_text(), re.DOTALL | re.MULTILINE)
    assert command is not None
    words = command[0].replace("\\\n", " ").replace("$ET", str(root)).split()
    words[words.index("complete.cpp")] = str(ROOT / "examples" / "deploy" / "complete.cpp")
    subprocess.run([compiler, *words[1:-1], str(out), "-Wall", "-Wextra"], check=True)
    return out


@pytest.mark.filterwarnings("ignore")  # the exporter warns of itself
def test_the_cpp_program_tells_the_known_story(executorch_program: Path, shared_data: Path, tmp_path: Path) -> None:
    from ract.export.export import export
    from ract.runtime.tokens import Tokens

    made = export(shared_data / "checkpoints" / "stories260k", tmp_path / "out", format="executorch")
    tokens = Tokens(made.path)
    prompt = tokens.encode(PROMPT)
    command = [str(executorch_program), str(made.path / "model.pte"), "20"]
    given = "\n".join(map(str, prompt))
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True, timeout=60)
    written = [int(line) for line in done.stdout.split()]
    assert len(written) == 20 and tokens.decode([*prompt, *written]).startswith(PROMPT + STORY)


@pytest.mark.parametrize("arguments", [[], ["nowhere.pte", "3"]])
def test_the_cpp_program_says_what_is_wrong(executorch_program: Path, arguments: list[str]) -> None:
    command = [str(executorch_program), *arguments]
    done = subprocess.run(command, input="1", capture_output=True, text=True, check=False, timeout=60)
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
