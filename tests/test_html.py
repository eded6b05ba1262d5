"""The HTML report: escapes what it shows, loads nothing, says who won whoever it was."""

from __future__ import annotations

import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ract.report.html import _DARK, commands, render, verdict
from ract.report.record import describe
from ract.report.schema import ClassRecord, NodeRecord, Record, Sample, Translated
from ract.report.style import COLORS
from tests.report_runs import CLASSES, SIXTEEN_LEAVES, SMALL, TFIDF, synthetic_record, synthetic_run, task_run

HOSTILE = "</pre><script>alert(1)</script><img src=http://example.org/x onerror=alert(1)> & \"quoted\" 'too' {{ 7*7 }}"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, the text, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if "style" in self.open else data


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    found = describe(synthetic_run(tmp_path_factory.mktemp("html") / "run"))
    samples = [
        Sample(node=name, key=found[name].key, prompt=prompt, text=f"{HOSTILE} by {name}")
        for name in ("leaf", "level-2-stack", "level-2-heal", "baseline")
        for prompt in ("once", "def f(<x>):")
    ]
    return found.model_copy(update={"samples": samples, "plan": f"# {HOSTILE}\n"})


@pytest.fixture(scope="module")
def html(record: Record) -> str:
    return render(record)


def test_hostile_text_is_shown_not_run(html: str, record: Record) -> None:
    page = Page(html)
    assert not page.open
    assert {tag for tag, _ in page.tags} & {"script", "img", "iframe", "object", "embed", "link", "base"} == set()
    assert page.text.count(HOSTILE) == len(record.samples) + 1
    assert "def f(<x>):" in page.text
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag


def test_a_hostile_node_name_is_escaped_in_the_figures_too(tmp_path: Path) -> None:
    leaf = synthetic_record(tmp_path / "run", "")
    node: NodeRecord = leaf.nodes[0].model_copy(update={"name": "--><script>x</script>", "path": "nodes/a; rm -r b"})
    found = leaf.model_copy(update={"nodes": [node], "final": node.name})
    page = Page(render(found))
    assert "script" not in {tag for tag, _ in page.tags} and not page.open
    assert "ract inspect 'nodes/a; rm -r b'" in page.text


def test_it_loads_nothing(html: str, record: Record) -> None:
    harmless = render(record.model_copy(update={"samples": [], "plan": ""}))
    assert not re.search(r"https?://|@import|//\w+\.\w+/", harmless)
    for tag, attributes in Page(html).tags:
        for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)
        assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", attributes.get("clip-path") or ""))


def test_ids_are_unique_and_every_reference_within_the_page_meets_one(html: str) -> None:
    tags = Page(html).tags
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = {(a.get("xlink:href") or "#")[1:] for _, a in tags} | {a.get("aria-labelledby") or "" for _, a in tags}
    used |= set(re.findall(r"url\(#(.*?)\)", html))
    narrow = {f"{name}-narrow-caption" for name in ("loss", "quality")}
    assert used - {""} - narrow <= set(ids)


def test_it_is_english_fits_a_phone_and_knows_the_dark(html: str) -> None:
    assert '<html lang="en">' in html
    assert 'content="width=device-width, initial-scale=1"' in html
    assert "prefers-color-scheme: dark" in html and set(_DARK) == set(COLORS)
    figures = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.S))
    assert not re.search(r"(fill|stroke): #", figures) and "var(--ink)" in figures


def test_every_node_has_its_row_in_order(html: str, record: Record) -> None:
    rows = re.findall(r'<th scope="row"><span class="dot".*?></span>(.*?)</th>\s*<td>(.*?)</td>', html, flags=re.S)
    assert rows == [(node.name, f"{node.quality:.4f}") for node in record.nodes]


def test_the_verdict_names_figures_and_flops_whoever_wins(tmp_path: Path) -> None:
    won = describe(synthetic_run(tmp_path / "won"))
    lost = describe(synthetic_run(tmp_path / "lost", better_baseline=True))
    for record in (won, lost):
        first, against_baseline, against_leaf, caution = verdict(record)
        final, baseline = record[record.final], record["baseline"]
        assert f"{final.quality:.4f}" in first and f"{baseline.quality:.4f}" in against_baseline
        difference = abs(final.quality / baseline.quality - 1)
        assert f"{difference:.1%}" in against_baseline and "FLOPs" in against_baseline
        assert "fewer bits than its leaf" in against_leaf and "one seed" in caution
    assert "fewer bits than the baseline" in list(verdict(won))[1]
    text = list(verdict(lost))[1]
    assert "more bits than the baseline" in text and "the single model is the better one" in text


def test_a_tie_is_called_one_and_several_leaves_are_compared_by_the_best(tmp_path: Path) -> None:
    record = describe(synthetic_run(tmp_path / "run", SIXTEEN_LEAVES))
    final = record[record.final]
    tied = record["baseline"].model_copy(update={"quality": final.quality * 1.0001})
    record = record.model_copy(update={"nodes": [*record.tree, tied]})
    _, against_baseline, against_leaves, _ = verdict(record)
    assert against_baseline.startswith("It needs as many bits as the baseline")
    best = min(record.leaves, key=lambda leaf: leaf.quality)
    assert f"the best of its 16 leaves, {best.name} " in against_leaves


def test_shares_by_group_and_the_search_for_them_are_tabled(record: Record) -> None:
    groups = {"embeddings": [0.25, 0.75], "decoder.0": [0.125, 0.875]}
    nodes = [n.model_copy(update={"weights": groups}) if n.method == "merge" else n for n in record.nodes]
    text = Page(render(record.model_copy(update={"nodes": nodes, "samples": []}))).text
    assert "0.125 to 0.250" in text and "decoder.0" in text and "chosen (learned)" in text
    search = record["level-1-merge"].weights_search
    assert search is not None
    one = record["level-1-merge"].model_copy(update={"weights_search": search.model_copy(update={"chosen": "child 1"})})
    nodes = [one if n.name == one.name else n for n in record.nodes]
    assert "chosen (level-1-branch-2)" in Page(render(record.model_copy(update={"nodes": nodes}))).text
    assert f"{search.loss_uniform:.4f}" in text


def test_a_report_without_baseline_samples_history_or_corpus_is_whole(tmp_path: Path) -> None:
    leaf = synthetic_record(tmp_path / "run", "")
    bare = leaf.nodes[0].model_copy(update={"history": [], "measures": {}})
    page = Page(render(leaf.model_copy(update={"nodes": [bare], "corpus": None})))
    assert not page.open and "baseline" not in page.text and "Loss against compute" not in page.text
    assert "ract generate nodes/leaf-" in page.text


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return describe(task_run(tmp_path_factory.mktemp("c") / "run", "classification", domains=True))


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return describe(task_run(tmp_path_factory.mktemp("t") / "run", "translation", SMALL))


def with_quality(record: Record, **quality: float) -> Record:
    nodes = [n.model_copy(update={"quality": quality[n.name]}) if n.name in quality else n for n in record.nodes]
    return record.model_copy(update={"nodes": nodes})


def test_a_classifier_is_compared_in_points_with_all_there_is(classifier: Record) -> None:
    won = with_quality(classifier, **{"level-2-distill": 0.93, "baseline": 0.905, "leaf": 0.8})
    first, baseline, leaf, reference, caution = verdict(won)
    assert "93.00% accuracy on 300 test examples" in first and "one seed" in caution
    assert baseline.startswith("It is 2.5 points above the baseline") and "better one" not in baseline
    assert leaf.startswith("It is 13.0 points above its leaf (80.00% accuracy")
    assert reference == f"{TFIDF}, which needs no transformer at all, reaches 90.00% on the same examples."
    lost = list(verdict(with_quality(won, **{"level-2-distill": 0.85})))
    assert lost[1].startswith("It is 5.5 points below") and lost[1].endswith("here the single model is the better one.")
    assert lost[3].endswith("it is the better one here.")


def test_a_tie_has_no_winner(classifier: Record, translator: Record) -> None:
    tied = list(verdict(with_quality(classifier, **{"level-2-distill": 0.9, "baseline": 0.9003})))
    assert tied[1].startswith("It is as good as the baseline") and "better" not in tied[1] + tied[3]
    nearly = list(verdict(with_quality(translator, **{"level-2-heal": 20.0, "baseline": 20.004})))
    assert nearly[1].startswith("It is as good as the baseline") and "better" not in nearly[1]
    bleu = list(verdict(with_quality(translator, **{"level-2-heal": 20.0, "baseline": 20.4})))
    assert bleu[1].startswith("It is 0.40 BLEU below the baseline") and bleu[1].endswith("the better one.")


def test_branches_are_compared_each_on_its_own_domain(classifier: Record) -> None:
    domain, own = "books", {"books": 0.9, "": 0.1}
    branch = classifier["level-1-branch-1"].model_copy(update={"domain": domain, "by_domain": own})
    nodes = [branch if n.name == branch.name else n for n in classifier.nodes]

    def said(final: float) -> str:
        changed = [n.model_copy(update={"by_domain": {"books": final}}) if n.name == classifier.final else n
                   for n in nodes]  # fmt: skip
        return list(verdict(classifier.model_copy(update={"nodes": changed})))[2]

    assert said(0.8).endswith("on average, each on its own domain; the final node 80.00% on the same: "
                              "here the specialists are better.")  # fmt: skip
    assert "90.00% on average" in said(0.95) and "specialists" not in said(0.95) + said(0.9)
    assert not any("specialists" in text or "own domain" in text for text in verdict(classifier))


def test_a_classifiers_page_has_classes_domains_the_reference_and_latency(classifier: Record) -> None:
    html = render(classifier)
    text = Page(html).text
    for heading in ("Where it errs", "By domain", "macro-F1", "calibration error", "ms a text", "Higher"):
        assert heading in text
    assert "bits" not in text and "What it translates" not in text and 'id="domains-caption"' in html
    rows = re.findall(r'<tr[^>]*>\s*<th scope="row">(?:<span.*?</span>)?(.*?)</th>(.*?)</tr>', html, flags=re.S)
    found = {name: re.findall(r"<td>(.*?)</td>", cells) for name, cells in rows}
    assert found["pretrain"][:2] == ["–", "–"] and found["pretrain"][-4:] == ["–"] * 4
    final = classifier[classifier.final]
    assert found[final.name][0] == f"{final.quality:.2%}" and found[final.name][-1] == "1.25"
    assert found[TFIDF][0] == "90.00%" and len(found[TFIDF]) == len(found["leaf"])
    for one in classifier.classes:
        assert found[one.label] == [f"{one.precision:.1%}", f"{one.recall:.1%}", f"{one.f1:.1%}", str(one.support)]
    assert [name for name in found if name in CLASSES] == list(CLASSES)


def test_a_translators_page_has_its_translations_in_order_and_what_goes_wrong(translator: Record) -> None:
    record = translator.model_copy(update={"failures": {"empty": 3, "repeated": 7}})
    html = render(record)
    rows = re.findall(
        r'<tr><td dir="auto">(.*?)</td><td dir="auto">(.*?)</td><td dir="auto" class="quiet">(.*?)</td>', html
    )
    assert [row[1] for row in rows] == [one.output for one in record.translations] and len(rows) == 20
    assert rows[0][0] == "&lt;b&gt;one&lt;/b&gt; 0"
    text = Page(html).text
    assert "3 are empty" in text and "7 are ending in a loop" in text and "ms a sentence" in text and "bits" not in text
    assert "nrefs:1" in text and "Where it errs" not in text and "By domain" not in text


def test_hostile_classes_domains_references_and_translations_are_shown_not_run(
    classifier: Record, translator: Record
) -> None:
    classes = [
        ClassRecord(**{**one.model_dump(), "label": f"{HOSTILE}{i}"}) for i, one in enumerate(classifier.classes)
    ]
    reference = classifier.references[0].model_copy(update={"name": HOSTILE, "note": HOSTILE})
    evil = classifier.model_copy(update={"classes": classes, "references": [reference], "data": HOSTILE})
    texts = [Translated(source=HOSTILE, reference=HOSTILE, output=HOSTILE)]
    for record, count in ((evil, 8), (translator.model_copy(update={"translations": texts, "signature": HOSTILE}), 4)):
        page = Page(render(record))
        assert not page.open and not {tag for tag, _ in page.tags} & {"script", "img"}
        assert page.text.count(HOSTILE) >= count - 1


def test_each_task_has_its_commands(classifier: Record, translator: Record) -> None:
    final = classifier[classifier.final].path
    assert [command for _, command in commands(classifier)] == [
        f"ract classify {final} 'A TEXT OF YOURS'", f"ract classify {final} --file FILE", f"ract inspect {final}",
    ]  # fmt: skip
    assert commands(translator)[0][1] == f"ract translate {translator[translator.final].path} 'A TEXT OF YOURS'"


def test_commands_quote_the_prompt(record: Record) -> None:
    shown = commands(record)
    assert shown[0][1] == f"ract generate {record['level-2-heal'].path} once"
    quoted = record.model_copy(update={"samples": [record.samples[0].model_copy(update={"prompt": "it's $HOME"})]})
    assert commands(quoted)[0][1].endswith("""'it'"'"'s $HOME'""")


def test_the_template_goes_into_the_wheel() -> None:
    """Hatchling packs every file below a package folder that version control does not ignore."""
    root = Path(__file__).parents[1]
    build = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["hatch"]["build"]
    assert build["targets"]["wheel"]["packages"] == ["ract"] and not {"exclude", "only-include"} & set(build)
    assert (root / "ract" / "report" / "template.html").is_file()
