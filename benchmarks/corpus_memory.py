"""Does memory grow with the corpus? Prepare 10 MB, 100 MB and 1 GB of text and watch the process's anonymous memory.

    python benchmarks/corpus_memory.py [--megabytes 10 100 1000] [--out benchmarks/results/corpus_memory.json]

The text is the running Python's standard library over and over, with its identifiers changed from copy to copy, so that
no two documents are equal and the vocabulary of words grows as it does in real text. Each size is prepared in a process
of its own, in a temporary folder that is deleted afterwards. ``RssAnon`` is what the process allocated; pages of mapped
or cached files, which the system can drop at any time, are not in it. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ract.data.corpus import documents
from ract.machine import processor_name

PREPARE = """
import sys
from pathlib import Path
from ract.data.corpus import CorpusSpec
from ract.data.tokenizer import load_tokenizer
from ract.data.tokens import prepare
import transformers.models.auto.tokenization_auto
print("imported", flush=True)
sys.stdin.readline()
corpus = prepare(CorpusSpec(train=(sys.argv[1],)), Path(sys.argv[2]))
print(sum(len(stream) for stream in corpus.tokens.values()), sum(corpus.documents.values()), flush=True)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "corpus_memory.json")
    arguments = parser.parse_args()
    rows = []
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(megabytes, Path(folder)))
        print(json.dumps(rows[-1]), flush=True)
    result = {
        "what": "peak anonymous memory of ract.data.tokens.prepare, vocabulary 4,096",
        "machine": f"{processor_name()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measure(megabytes: int, folder: Path) -> dict[str, Any]:
    """Prepare that much text and return sizes, seconds and the peak."""
    text = folder / "text"
    text.mkdir()
    size = write_text(text, megabytes * 1_000_000)
    command = [sys.executable, "-c", PREPARE, str(text), str(folder / "cache")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        imported = anonymous_bytes(process.pid)
        begin = time.perf_counter()
        process.stdin.write("go\n")
        process.stdin.flush()
        peak = imported
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.02)
        tokens, number = map(int, process.stdout.read().split())
    return {
        "text_bytes": size,
        "documents": number,
        "tokens": tokens,
        "seconds": round(time.perf_counter() - begin, 1),
        "imported_rss_anon_bytes": imported,
        "peak_rss_anon_bytes": peak,
        "above_imported_bytes": peak - imported,
    }


def write_text(folder: Path, size: int) -> int:
    """Files of changed standard library below *folder*, *size* bytes in all or a little more."""
    written = 0
    for number, text in enumerate(changed_library()):
        if written >= size:
            break
        part = folder / f"{number // 1000:04}"
        part.mkdir(exist_ok=True)
        written += (part / f"{number:07}.py").write_bytes(text.encode("utf-8"))
    return written


def changed_library() -> Iterator[str]:
    """The standard library without end; in the n-th copy every seventh longer name ends in n."""
    copy = 0
    while True:
        for text in documents(["stdlib"]):
            yield re.sub(r"\b[a-z_]{6,}\b", lambda m: m[0] if hash_of(m[0]) % 7 else f"{m[0]}_{copy}", text)  # noqa: B023
        copy += 1


def hash_of(word: str) -> int:
    return int.from_bytes(word.encode()[-4:], "big")


def anonymous_bytes(pid: int) -> int:
    """RssAnon of a process; 0 once it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
