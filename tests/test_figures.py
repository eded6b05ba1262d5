"""Figures: every text readable, none over another, for small and for large trees, with short and with long names."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Annotation, Text
from matplotlib.transforms import Bbox

from ract.report.figures import NARROW, WIDE, draw_all, loss_figure, quality_figure
from ract.report.labels import Label, place_labels
from ract.report.layout import spread, tree_layout
from ract.report.record import describe
from ract.report.schema import Record
from ract.report.style import COLORS, MARKERS, axes_at, color_of, figure_style, marker_of, new_figure
from ract.report.tree_figure import edge_label, taught_by, tree_figure
from tests.report_runs import SIXTEEN_LEAVES, SMALL, TFIDF, synthetic_record, task_run, with_long_names


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Record]:
    folder = tmp_path_factory.mktemp("records")
    small = synthetic_record(folder / "small", SMALL)
    return {
        "small": small,
        "long": with_long_names(small),
        "sixteen": synthetic_record(folder / "sixteen", SIXTEEN_LEAVES),
        "leaf": synthetic_record(folder / "leaf", ""),
        "classifier": describe(task_run(folder / "classifier", "classification", domains=True)),
        "translator": describe(task_run(folder / "translator", "translation", SMALL)),
    }


def drawn_ticks(axis: Axis) -> list[Text]:
    """The labels of the ticks within the limits; matplotlib keeps some beyond them, which it does not draw."""
    low, high = sorted(axis.get_view_interval())
    return [
        tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high and tick.label1.get_visible()
    ]


def boxes(figure: Figure) -> dict[str, Bbox]:
    """The pixels of every text that is drawn, tick labels too."""
    figure.canvas.draw()
    found = {}
    for number, axes in enumerate(figure.axes):
        ticks = [*drawn_ticks(axes.xaxis), *drawn_ticks(axes.yaxis)] if axes.axison else []
        names = [axes.xaxis.label, axes.yaxis.label] if axes.axison else []
        for index, text in enumerate([*axes.texts, *ticks, *names]):
            if text.get_text() and text.get_visible():
                found[f"{number}.{index}: {text.get_text()}"] = text.get_window_extent()
    return found


def assert_readable(figure: Figure) -> None:
    """No two texts overlap, and none is cut by the figure's edge."""
    texts = boxes(figure)
    assert texts
    for (a, first), (b, second) in combinations(texts.items(), 2):
        assert not first.padded(-0.5).overlaps(second.padded(-0.5)), (a, b)
    for name, box in texts.items():
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, name
        assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, name


@pytest.mark.parametrize("name", ["small", "long", "sixteen", "leaf"])
def test_the_tree_has_a_box_per_node_and_nothing_overlaps(records: dict[str, Record], name: str) -> None:
    record = records[name]
    with figure_style():
        figure = tree_figure(record)
        assert_readable(figure)
        axes = figure.axes[0]
        frames = [p for p in axes.patches if isinstance(p, FancyBboxPatch) and p.get_edgecolor()[3] > 0]
        assert len(frames) == len(record.nodes)
        extents = [frame.get_window_extent() for frame in frames]
        for first, second in combinations(extents, 2):
            assert not first.overlaps(second)
        for text in axes.texts:  # α and the names of levels stand outside the boxes, all other texts inside one
            inside = [e for e in extents if e.overlaps(text.get_window_extent().padded(-0.5))]
            words = text.get_text()
            assert len(inside) == (0 if words.startswith(("α", "×", "level ")) else 1), words
            if inside:
                box = text.get_window_extent()
                assert inside[0].x0 <= box.x0 and box.x1 <= inside[0].x1, words
        words = " ".join(text.get_text() for text in axes.texts)
        for node in record.nodes:
            assert f"{node.quality:.3f} bits/byte" in words


def test_parents_stand_below_and_the_baseline_beside_the_final_node(records: dict[str, Record]) -> None:
    record = records["sixteen"]
    place = tree_layout({node.name: node.parents for node in record.tree})
    for node in record.tree:
        assert all(place[parent][1] < place[node.name][1] for parent in node.parents)
    leaves = [place[leaf.name] for leaf in record.leaves]
    assert {row for _, row in leaves} == {0}
    assert [column for column, _ in leaves] == pytest.approx(list(range(16)))
    assert place[record.final][0] == pytest.approx(7.5)


def test_edges_say_alpha_or_how_many_copies(records: dict[str, Record]) -> None:
    record = records["small"]
    assert [edge_label(record["level-1-merge"], i) for i in (0, 1)] == ["α 0.50", "α 0.50"]
    assert edge_label(record["level-2-stack"], 0) == "× 2"
    assert edge_label(record["level-2-heal"], 0) == ""
    by_group = record["level-1-merge"].model_copy(update={"weights": {"head": [0.25, 0.75], "embeddings": [0.5, 0.5]}})
    assert [edge_label(by_group, i) for i in (0, 1)] == ["α 0.25–0.50", "α 0.50–0.75"]


@pytest.mark.parametrize("width", [WIDE, NARROW])
@pytest.mark.parametrize("draw", [loss_figure, quality_figure])
@pytest.mark.parametrize("name", ["small", "long", "sixteen", "leaf"])
def test_labels_in_charts_overlap_nothing_and_none_is_left_out(
    records: dict[str, Record], name: str, draw: type, width: float
) -> None:
    record = records[name]
    with figure_style():
        figure = draw(record, width)
        assert figure.get_size_inches()[0] == pytest.approx(width)
        assert_readable(figure)
    for axes in figure.axes:
        labels = [text for text in axes.texts if isinstance(text, Annotation)]
        written = " ".join(label.get_text().replace("\n", "") for label in labels)
        if name == "sixteen":
            assert "16 × leaf,level 0" in written and "level-4-heal" in written and "baseline" in written
        else:
            named = [node for node in record.nodes if draw is quality_figure or node.history]
            assert len(labels) == len(named) and all(node.name in written for node in named)
        points = [axes.transData.transform((x, y)) for x, y in (label.xy for label in labels)]
        for label in labels:
            box = label.get_window_extent()
            assert not any(box.contains(*point) for point in points), label.get_text()


def test_each_curve_begins_at_the_flops_of_what_lies_below_it(records: dict[str, Record]) -> None:
    record = records["small"]
    with figure_style():
        axes = loss_figure(record).axes[0]
    curves = [line for line in axes.lines if line.get_linewidth() > 1]
    trained = [node for node in record.nodes if node.history]
    assert len(curves) == len(trained) == 5
    for line, node in zip(curves, trained, strict=True):
        below = node.train_flops - node.own_flops
        x = np.asarray(line.get_xdata())
        assert x[0] == pytest.approx(below + node.own_flops / 8) and x[-1] == pytest.approx(node.train_flops)
        assert np.asarray(line.get_ydata()).tolist() == [point.valid_loss for point in node.history]


def test_every_node_is_a_point_against_size_and_against_flops(records: dict[str, Record]) -> None:
    record = records["sixteen"]
    with figure_style():
        size, flops = quality_figure(record).axes
    for axes, values in ((size, "size_bytes"), (flops, "train_flops")):
        points = [tuple(np.concatenate(line.get_data())) for line in axes.lines if line.get_linestyle() == "None"]
        assert points == [(getattr(node, values), node.quality) for node in record.nodes]


def test_a_label_without_room_is_said_and_left_out() -> None:
    with figure_style():
        axes = axes_at(new_figure(1.0, 0.5), 0, 0, 1.0, 0.5)
        axes.set(xlim=(0, 1), ylim=(0, 1))
        assert not place_labels(axes, [Label("far too long for this", 0.5, 0.5)], size=8, color="k", line_color="k")
        assert not axes.texts
        assert place_labels(axes, [Label("ok", 0.5, 0.5)], size=8, color="k", line_color="k") and len(axes.texts) == 1


def test_a_label_whose_place_an_earlier_one_took_goes_first() -> None:
    """Where metrics are equal, as accuracies of few texts often are, the given order leaves no place for the last."""
    levels = [0.861, 0.876, 0.861, 0.878, 0.872, 0.878]
    names = ["leaf", "level-1-branch-1", "level-1-branch-2", "level-1-ensemble", "level-2-distill", "baseline"]
    flops = [0.53, 0.66, 0.66, 0.80, 1.24, 1.04]
    with figure_style():
        axes = axes_at(new_figure(3.2, 2.6), 0, 0, 3.2, 2.6)
        axes.set(xlim=(0, 1.38), ylim=(0.854, 0.926))
        axes.axis("off")
        labels = [Label(*one) for one in zip(names, flops, levels, strict=True)]
        line = np.array([[0, 0.878], [1.38, 0.878]])
        assert place_labels(axes, labels, lines=[line], size=8, color="k", line_color="k")
        assert [text.get_text() for text in axes.texts] == names
        assert_readable(axes.figure)


@pytest.mark.parametrize("name", ["classifier", "translator"])
@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_charts_of_every_task_are_readable_and_name_every_model_and_reference(
    records: dict[str, Record], name: str, width: float
) -> None:
    record = records[name]
    with figure_style():
        figure = quality_figure(record, width)
        assert_readable(figure)
        assert_readable(loss_figure(record, width))
    for number, axes in enumerate(figure.axes):
        labels = [text.get_text().replace("\n", " ") for text in axes.texts if isinstance(text, Annotation)]
        wanted = [*(n.name for n in record.measured), *(r.name for r in record.references if number == 0)]
        assert sorted(labels) == sorted(wanted)


def test_the_reference_is_a_line_of_its_own_and_pre_training_no_point(records: dict[str, Record]) -> None:
    record = records["classifier"]
    with figure_style():
        axes = quality_figure(record).axes[0]
        lines = [line for line in axes.lines if line.get_linestyle() == "--" and len(set(line.get_ydata())) == 1]
    assert [line.get_ydata()[0] for line in lines] == [record["baseline"].quality, record.references[0].quality]
    points = [float(line.get_ydata()[0]) for line in axes.lines if line.get_linestyle() == "None"]
    assert points == [node.quality for node in record.measured] and len(points) == len(record.nodes) - 1
    assert record.references[0].name == TFIDF


def test_translators_of_next_to_nothing_are_not_spread_over_a_logarithm(records: dict[str, Record]) -> None:
    record = records["translator"]
    tiny = [n.model_copy(update={"quality": 0.01 * 2**i}) for i, n in enumerate(record.nodes)]
    with figure_style():
        axes = quality_figure(record.model_copy(update={"nodes": tiny})).axes[0]
    assert axes.get_yscale() == "linear"


def test_losses_of_masked_tokens_are_not_drawn_among_those_of_the_task(records: dict[str, Record]) -> None:
    record = records["classifier"]
    with figure_style():
        axes = loss_figure(record).axes[0]
    curves = [line for line in axes.lines if line.get_linewidth() > 1]
    trained = [node for node in record.nodes if node.history and node.method != "pretrain"]
    assert record["pretrain"].history and len(curves) == len(trained)
    for line, node in zip(curves, trained, strict=True):
        assert np.asarray(line.get_xdata())[-1] == pytest.approx(node.train_flops)
    assert axes.texts[0].get_text() == "valid loss, nats per text"


def test_a_student_stands_above_its_teacher_and_pre_training_shows_its_own_loss(records: dict[str, Record]) -> None:
    record = records["classifier"]
    student, (teacher,) = record["level-2-distill"], taught_by(record["level-2-distill"])
    with figure_style():
        figure = tree_figure(record)
        assert_readable(figure)
    texts = {text.get_text(): text.get_position() for text in figure.axes[0].texts}
    assert texts[student.name][1] > texts["teaches"][1] > texts[teacher][1] > texts["pretrain"][1]
    assert f"{record['pretrain'].history[-1].valid_loss:.3f} nats/token" in texts
    assert f"{student.quality:.2%} accuracy" in texts


def test_every_method_has_a_marker_and_students_are_not_taken_for_aggregates() -> None:
    assert len(set(MARKERS.values())) == len(MARKERS)
    assert {marker_of(method) for method in ("pretrain", "base", "distill")} & {"X"} == set()
    assert color_of("distill") != color_of("merge") == color_of("ensemble")
    assert color_of("pretrain") == color_of("base") == color_of("leaf")


def test_each_task_has_its_figures(records: dict[str, Record], tmp_path: Path) -> None:
    always = {"tree", "loss", "quality"}
    for name, more in (("classifier", {"confusion", "domains"}), ("translator", set())):
        (tmp_path / name).mkdir()
        draw_all(records[name], tmp_path / name)
        drawn = sorted(file.name for file in (tmp_path / name).iterdir())
        assert drawn == sorted(f"{figure}{suffix}" for figure in always | more for suffix in (".png", ".svg"))


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20).map(sorted), st.floats(0.1, 3))
def test_spread_keeps_order_and_gaps_and_moves_nothing_that_fits(wanted: list[float], gap: float) -> None:
    found = np.array(spread(wanted, gap))
    assert np.all(np.diff(found) >= gap - 1e-9)
    if np.all(np.diff(wanted) >= gap):
        assert found == pytest.approx(wanted)
    assert found.mean() == pytest.approx(np.mean(wanted))


def test_drawing_leaves_no_trace_in_matplotlib_and_is_the_same_twice(
    records: dict[str, Record], tmp_path: Path
) -> None:
    import matplotlib._pylab_helpers as registry

    before = dict(matplotlib.rcParams)
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        draw_all(records["small"], tmp_path / folder)
    assert dict(matplotlib.rcParams) == before and not registry.Gcf.figs
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_names_in_any_script_and_with_dollar_signs_are_drawn_as_they_are(records: dict[str, Record]) -> None:
    node = records["leaf"].nodes[0].model_copy(update={"name": "叶子 $x^2"})
    record = records["leaf"].model_copy(update={"nodes": [node], "final": node.name})
    with figure_style():
        for figure in (tree_figure(record), quality_figure(record), loss_figure(record)):
            figure.canvas.draw()
            assert any("$x^2" in text.get_text() for text in figure.axes[0].texts)


def test_every_colour_has_a_value_of_its_own() -> None:
    assert len(set(COLORS.values())) == len(COLORS)
