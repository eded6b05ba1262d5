"""The token cache: exact, named by content, finished or absent."""

from __future__ import annotations

import resource
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from ract.data.corpus import SPLITS, CorpusSpec
from ract.data.tokens import Corpus, open_corpus, prepare
from ract.errors import BadInput
from tests.text_models import TEXT, word_piece_model

OPTIONS = {"vocab_size": 300, "block_size": 16}


def text_file(path: Path, documents: int = 60) -> Path:
    path.write_text("\n\n".join(f"Document {n}.\n{TEXT[:300]}" for n in range(documents)), encoding="utf-8")
    return path


def spec_of(source: Path, **changes: object) -> CorpusSpec:
    return CorpusSpec(**{"train": (str(source),), "document": "paragraph", "valid_fraction": 0.2, **changes})


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return prepare(spec_of(text_file(tmp_path / "text.txt")), tmp_path / "cache", **OPTIONS)


def test_the_stream_is_every_document_of_the_split_with_separators(corpus: Corpus, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_dir, local_files_only=True)
    spec = spec_of(tmp_path / "text.txt")
    for split in SPLITS:
        texts = [text for where, text in spec.documents() if where == split]
        assert tokenizer.decode(corpus.tokens[split]) == "<|endoftext|>" + "".join(f"{t}<|endoftext|>" for t in texts)
        assert corpus.documents[split] == len(texts)
        assert corpus.bytes[split] == sum(len(text.encode()) for text in texts)
        assert corpus.token_bytes[corpus.tokens[split]].sum() == corpus.bytes[split]
    assert corpus.separator == tokenizer.eos_token_id
    assert corpus.vocab_size == len(tokenizer) <= 300
    assert isinstance(corpus.tokens["train"], np.memmap)
    assert corpus.tokens["train"].dtype == np.uint16


def test_a_second_call_opens_what_is_there(corpus: Corpus, tmp_path: Path) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in corpus.path.rglob("*")}
    moved = (tmp_path / "text.txt").rename(tmp_path / "moved.txt")
    again = prepare(spec_of(moved), tmp_path / "cache", **OPTIONS)
    assert (again.path, again.digest) == (corpus.path, corpus.digest)
    assert {path: path.stat().st_mtime_ns for path in corpus.path.rglob("*")} == stamps
    assert open_corpus(corpus.path).bytes == corpus.bytes


def test_what_changes_the_tokens_changes_the_name(corpus: Corpus, tmp_path: Path) -> None:
    source = tmp_path / "text.txt"
    others = [
        prepare(spec_of(source), tmp_path / "cache", vocab_size=290, block_size=16),
        prepare(spec_of(source, valid_fraction=0.3), tmp_path / "cache", **OPTIONS),
        prepare(spec_of(source, document="line"), tmp_path / "cache", **OPTIONS),
        prepare(spec_of(text_file(source, documents=61)), tmp_path / "cache", **OPTIONS),
    ]
    assert len({corpus.digest, *(other.digest for other in others)}) == 5


def test_equal_input_gives_equal_bytes(corpus: Corpus, tmp_path: Path) -> None:
    again = prepare(spec_of(tmp_path / "text.txt"), tmp_path / "elsewhere", **OPTIONS)
    for file in ("train.bin", "valid.bin", "test.bin", "tokenizer/tokenizer.json"):
        assert (again.path / file).read_bytes() == (corpus.path / file).read_bytes()


def test_a_tokenizer_from_a_model(tmp_path: Path) -> None:
    model = word_piece_model(tmp_path / "bert", "BERT, masked LM")
    corpus = prepare(spec_of(text_file(tmp_path / "text.txt")), tmp_path / "cache", tokenizer=model, block_size=16)
    tokenizer = AutoTokenizer.from_pretrained(model, local_files_only=True)
    assert corpus.separator == tokenizer.sep_token_id
    assert (corpus.tokenizer_dir / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()


def test_progress_counts_the_bytes(tmp_path: Path) -> None:
    source, seen = text_file(tmp_path / "text.txt"), []
    corpus = prepare(spec_of(source), tmp_path / "cache", progress=lambda *event: seen.append(event), **OPTIONS)
    assert {what for what, _, _ in seen} == {"train tokenizer", "tokenize"}
    what, done, total = seen[-1]
    assert (what, done, total) == ("tokenize", sum(corpus.bytes.values()), source.stat().st_size)


def test_too_little_text_names_the_file_and_the_numbers(tmp_path: Path) -> None:
    source = text_file(tmp_path / "short.txt", documents=3)
    with pytest.raises(BadInput, match=r"short.txt: the train split has \d+ tokens, and one block of 4096 needs 4097"):
        prepare(spec_of(source), tmp_path / "cache", vocab_size=300, block_size=4096)
    with pytest.raises(BadInput, match=r"short.txt: the valid split has 1 tokens"):
        prepare(spec_of(source, valid_fraction=0.0001), tmp_path / "cache", **OPTIONS)
    prepare(spec_of(source, valid_fraction=0.0), tmp_path / "cache", **OPTIONS)  # none is asked for


def test_a_bad_document_leaves_nothing_that_looks_finished(tmp_path: Path) -> None:
    source = text_file(tmp_path / "text.txt")
    source.write_bytes(source.read_bytes() + b"\n\n\xff\n")
    with pytest.raises(BadInput, match=r"text.txt is not UTF-8"):
        prepare(spec_of(source), tmp_path / "cache", **OPTIONS)
    assert not list((tmp_path / "cache").rglob("corpus.json"))


@pytest.mark.parametrize("harm", ["cut", "lost", "garbled"])
def test_a_harmed_cache_is_made_anew(corpus: Corpus, tmp_path: Path, harm: str) -> None:
    good = (corpus.path / "train.bin").read_bytes()
    if harm == "cut":
        (corpus.path / "train.bin").write_bytes(good[:-2])
    elif harm == "lost":
        (corpus.path / "valid.bin").unlink()
    else:
        (corpus.path / "corpus.json").write_text("{}")
    with pytest.raises(BadInput, match="holds no prepared corpus"):
        open_corpus(corpus.path)
    assert prepare(spec_of(tmp_path / "text.txt"), tmp_path / "cache", **OPTIONS).digest == corpus.digest
    assert (corpus.path / "train.bin").read_bytes() == good


PREPARE = """
import sys
from pathlib import Path
from ract.data.corpus import CorpusSpec
from ract.data.tokens import prepare
spec = CorpusSpec(train=(sys.argv[1],), document="paragraph", valid_fraction=0.2)
def progress(what, done, total):
    if what == "tokenize" and done > total // 2:
        print("halfway", flush=True)
        sys.stdin.readline()
print("started", flush=True)
prepare(spec, Path(sys.argv[2]), vocab_size=300, block_size=16, progress=progress)
"""


@pytest.mark.slow
def test_a_second_process_waits_and_takes_over_when_the_first_is_killed(tmp_path: Path) -> None:
    source = text_file(tmp_path / "text.txt")
    command = [sys.executable, "-c", PREPARE, str(source), str(tmp_path / "cache")]
    options = {"stdout": subprocess.PIPE, "text": True}
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, **options) as first,
        subprocess.Popen(command, stdin=subprocess.PIPE, **options) as second,
    ):
        working, waiting = (first, second) if _halfway(first, second) else (second, first)
        assert not list((tmp_path / "cache").rglob("corpus.json"))
        working.send_signal(signal.SIGKILL)
        _, rest = waiting.communicate(), working.wait()
        assert (waiting.returncode, rest) == (0, -signal.SIGKILL)
    undisturbed = prepare(spec_of(source), tmp_path / "other", **OPTIONS)
    (made,) = (path.parent for path in (tmp_path / "cache").rglob("corpus.json"))
    for split in SPLITS:
        assert (made / f"{split}.bin").read_bytes() == (undisturbed.path / f"{split}.bin").read_bytes()


def _halfway(first: subprocess.Popen[str], second: subprocess.Popen[str]) -> bool:
    """Wait until one of two is halfway, when the other can only have started; whether it is the first."""
    for process in (first, second):
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
    ready, _, _ = select.select([first.stdout, second.stdout], [], [], 60)
    assert len(ready) == 1
    assert ready[0].readline() == "halfway\n"
    return ready[0] is first.stdout


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    source = text_file(tmp_path / "text.txt", documents=400)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # a write beyond it fails as on a full disk
    try:
        with pytest.raises(BadInput, match="no space left on the disk"):
            prepare(spec_of(source), tmp_path / "cache", **OPTIONS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list((tmp_path / "cache").rglob("corpus.json"))


def test_real_chinese_text(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "lm" / "zh_wikipedia" / "train.txt"
    spec = CorpusSpec(train=(str(source),))
    text = tmp_path / "part.txt"
    text.write_bytes(source.read_bytes()[:400_000].rsplit(b"\n", 1)[0])
    corpus = prepare(CorpusSpec(train=(str(text),)), tmp_path / "cache", vocab_size=2000, block_size=64)
    tokenizer = AutoTokenizer.from_pretrained(corpus.tokenizer_dir, local_files_only=True)
    first = next(spec.training_documents())
    assert tokenizer.decode(tokenizer(first)["input_ids"]) == first
    assert corpus.bytes["train"] / len(corpus.tokens["train"]) > 2.5
