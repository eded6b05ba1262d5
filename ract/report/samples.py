"""What the nodes of a run write: the same prompts before and after aggregation and healing, and by the baseline."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ract.checkpoint.lineage import read_lineage
from ract.plan.shapes import model_settings
from ract.report.schema import Record, Sample
from ract.tree.job import node_keys

if TYPE_CHECKING:
    from ract.tree.build import Run

_PROMPTS = 2
_PROMPT_TOKENS, _PROMPT_WORDS, _PROMPT_CHARACTERS = 48, 8, 48


def samples_of(run: Run, record: Record, earlier: Sequence[Sample] = ()) -> list[Sample]:
    """Continuations of every prompt by each of :func:`sampled_nodes`; those in *earlier* are taken from there.

    A sample is known by the content key of its node and its prompt, so models are loaded only for what is new.
    """
    known = {(sample.key, sample.prompt): sample.text for sample in earlier}
    prompts = list(dict.fromkeys(run.plan.prompts or default_prompts(run)))
    found = []
    for name in sampled_nodes(record):
        key = record[name].key
        missing = [prompt for prompt in prompts if (key, prompt) not in known]
        known |= {(key, prompt): text for prompt, text in _generate(run, record, name, missing).items()}
        found += [Sample(node=name, key=key, prompt=prompt, text=known[key, prompt]) for prompt in prompts]
    return found


def sampled_nodes(record: Record) -> list[str]:
    """The first leaf, the last aggregated node before it was healed, the final node, and the baseline."""
    final = record[record.final]
    before = final.parents if final.method == "heal" else [final.name]
    names = [record.leaves[0].name, *before, final.name, *([record.baseline] if record.baseline else [])]
    return list(dict.fromkeys(names))


def default_prompts(run: Run) -> list[str]:
    """The first words of two documents of the test split; an empty prompt (a new text) where there is no corpus."""
    folder = find_data(run)
    if folder is None:
        return [""]
    import numpy as np

    from ract.data.tokenizer import load_tokenizer
    from ract.data.tokens import open_corpus

    corpus = open_corpus(folder)
    tokens = corpus.tokens["test"] if len(corpus.tokens["test"]) > 1 else corpus.tokens["valid"]
    tokenizer = load_tokenizer(corpus.tokenizer_dir)
    found: list[str] = []
    for start in np.flatnonzero(tokens == corpus.separator).tolist():
        text = tokenizer.decode(tokens[start + 1 : start + 1 + _PROMPT_TOKENS].tolist(), skip_special_tokens=True)
        prompt = beginning(text)
        if prompt and prompt not in found:
            found.append(prompt)
        if len(found) == _PROMPTS:
            break
    return found or [""]


def find_data(run: Run) -> Path | None:
    """The prepared data that the nodes of *run* were made from, or None where it has been deleted.

    A run whose plan was edited may hold several; the right one is that whose digest gives the nodes their names.
    """
    final = read_lineage(run.final)
    for file in sorted((run.path / "data").glob("*/*.json")):
        if file.name not in ("corpus.json", "examples.json"):
            continue
        digest = json.loads(file.read_text(encoding="utf-8")).get("digest", "")
        keys = node_keys(run.graph, digest, model_settings(run.plan))
        if final is not None and final.node == keys[run.graph.final]:
            return file.parent
    return None


def beginning(text: str) -> str:
    """The first words of the first line of *text* that has any; of a script without spaces, the first characters."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return " ".join(line.split()[:_PROMPT_WORDS])[:_PROMPT_CHARACTERS].rstrip("\ufffd ")


def _generate(run: Run, record: Record, name: str, prompts: Sequence[str]) -> dict[str, str]:
    if not prompts:
        return {}
    from ract.runtime.generate import TextGenerator

    generator = TextGenerator(run.directories[name])
    how = record.sampling.model_dump()
    return {prompt: "".join(generator.stream(prompt, **how)) for prompt in prompts}
