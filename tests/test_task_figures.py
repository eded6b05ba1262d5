"""Confusion matrix and domains: right numbers in the right cells, every name readable, the best of a column darkest."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.figure import Figure
from matplotlib.text import Text

from ract.report.record import describe
from ract.report.schema import ClassRecord, Record
from ract.report.style import figure_style
from ract.report.task_figures import column_shades, confusion_figure, domains_figure
from tests.report_runs import CLASSES, DOMAINS, SMALL, TFIDF, task_run


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return describe(task_run(tmp_path_factory.mktemp("c") / "run", "classification", domains=True))


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Record:
    return describe(task_run(tmp_path_factory.mktemp("t") / "run", "translation", SMALL, domains=True))


def with_classes(record: Record, names: list[str]) -> Record:
    """*record* with a confusion matrix whose cells all differ."""
    count = len(names)
    confusion = [[i * count + j for j in range(count)] for i in range(count)]
    classes = [ClassRecord(label=name, precision=0.5, recall=0.5, f1=0.5, support=sum(row))
               for name, row in zip(names, confusion, strict=True)]  # fmt: skip
    return record.model_copy(update={"confusion": confusion, "classes": classes})


def names_of(figure: Figure) -> tuple[list[Text], list[Text]]:
    figure.canvas.draw()
    axes = figure.axes[0]
    return axes.get_yticklabels(), axes.get_xticklabels()


def cells(figure: Figure) -> dict[tuple[int, int], str]:
    """Row and column → what the cell says."""
    return {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in figure.axes[0].texts}


def test_the_confusion_matrix_has_true_classes_in_rows(classifier: Record) -> None:
    record = with_classes(classifier, ["a", "b", "c"])
    with figure_style():
        figure = confusion_figure(record)
        rows, columns = names_of(figure)
    assert cells(figure) == {(i, j): str(3 * i + j) for i in range(3) for j in range(3)}
    assert [t.get_text() for t in rows] == [t.get_text() for t in columns] == ["a", "b", "c"]
    assert figure.axes[0].get_ylim() == (3, 0)  # the first row on top
    assert figure.texts[0].get_text() == "true class ↓   predicted class →"


def test_a_cell_is_as_dark_as_its_share_of_the_row(classifier: Record) -> None:
    with figure_style():
        patches = confusion_figure(classifier).axes[0].patches
    shades = np.array([patch.get_alpha() for patch in patches]).reshape(3, 3)
    counts = np.array(classifier.confusion)
    assert shades / shades.max() == pytest.approx(counts / counts.max())
    assert shades.max() < 1  # ink is read on it


@pytest.mark.parametrize(
    "names",
    [
        ["正面", "负面"],
        list(CLASSES),
        ["one class with a long name", "another class with a long name"],
        [f"class number {i}" for i in range(12)],
        [f"number {i}" for i in range(20)],
        pytest.param([f"card_payment_{i}" for i in range(77)], marks=pytest.mark.slow),
    ],
    ids=["two", "three", "long", "twelve", "twenty", "seventy-seven"],
)
def test_names_overlap_nothing_and_nothing_is_cut(classifier: Record, names: list[str]) -> None:
    with figure_style():
        figure = confusion_figure(with_classes(classifier, names))
        rows, columns = names_of(figure)
        inside = [*figure.axes[0].texts, *figure.texts]
        assert len(figure.axes[0].texts) == (len(names) ** 2 if len(names) <= 20 else 0)
        slanted = columns[0].get_rotation() not in (0, 90)
        level = [*rows, *inside, *([] if slanted else columns)]
        extents = {id(text): text.get_window_extent() for text in level}
        for first, second in combinations(level, 2) if len(names) < 20 else combinations([*rows, *columns], 2):
            if id(first) in extents and id(second) in extents:
                a, b = extents[id(first)].padded(-0.5), extents[id(second)].padded(-0.5)
                assert not a.overlaps(b), (first.get_text(), second.get_text())
        for text in [*level, *columns]:
            box = text.get_window_extent()
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, text.get_text()
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, text.get_text()
        if slanted:  # their lines are farther apart than they are high
            pitch = figure.axes[0].get_window_extent().width / len(names)
            assert pitch * np.sin(np.radians(columns[0].get_rotation())) > columns[0].get_fontsize() / 72 * figure.dpi


def test_domains_have_a_row_for_every_model_that_does_the_task_and_the_reference(classifier: Record) -> None:
    assert classifier.domains == list(DOMAINS)
    with figure_style():
        figure = domains_figure(classifier)
        rows, columns = names_of(figure)
    written = [text.get_text() for text in rows]
    assert written == [*(node.name for node in classifier.measured), TFIDF] and "pretrain" not in written
    assert [text.get_text() for text in columns] == ["no domain", *DOMAINS[1:]]
    says = cells(figure)
    for i, node in enumerate(classifier.measured):
        for j, domain in enumerate(DOMAINS):
            assert says[i, j] == f"{node.by_domain[domain]:.2%}"


def test_translations_by_domain_are_in_bleu(translator: Record) -> None:
    with figure_style():
        says = cells(domains_figure(translator))
    assert says[0, 0] == f"{translator.nodes[0].by_domain['']:.2f}"
    assert len(says) == len(DOMAINS) * len(translator.measured)


@given(arrays.arrays(float, st.tuples(st.integers(1, 6), st.integers(1, 4)), elements=st.floats(0, 100)))
def test_the_best_of_every_column_is_darkest_and_the_order_is_kept(table: np.ndarray) -> None:
    shades = column_shades(table)
    assert shades.shape == table.shape and shades.min() >= 0 and shades.max() <= 1
    assert np.all(shades[table.argmax(0), range(table.shape[1])] == 1)
    for values, dark in zip(table.T, shades.T, strict=True):
        order = values.argsort()
        assert np.all(np.diff(dark[order]) >= 0)


def test_one_bad_model_does_not_take_the_whole_range() -> None:
    shades = column_shades(np.array([[0.10], [0.80], [0.85], [0.90]]))[:, 0]
    assert shades == pytest.approx([0, 1 / 3, 2 / 3, 1])  # the median, 0.825, is half as dark as the best
    assert column_shades(np.array([[0.9], [0.9], [0.9], [0.1]]))[:, 0].tolist() == [1, 1, 1, 0]
