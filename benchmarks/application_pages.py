"""The results of ``benchmarks/applications.py`` as tables, and as pages of the documentation in both languages."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRICS = {"classification": ("accuracy", "macro_f1"), "translation": ("bleu", "chrf")}
TFIDF = "TF-IDF + logistic regression"
OWN, MERGED, ALL = "branches, each on its own domain", "final, mean over domains", "trained on all, mean over domains"
Means = Mapping[str, float]


@dataclass(frozen=True)
class Claim:
    """What a row was built to reach: in both languages, and whether the means over seeds reach it."""

    english: str
    chinese: str
    holds: Callable[[Means], bool]


@dataclass(frozen=True)
class Row:
    """How a plan is introduced, and what is asked of it."""

    title: str
    chinese: str
    minutes: int  # how long a seed takes on two idle cores
    claims: tuple[Claim, ...]
    credit: str = ""  # whose sentences they are, where the licence lets some be shown; none are shown else


_ABOVE_TFIDF = Claim("above TF-IDF", "高于 TF-IDF", lambda m: m["final"] > m[TFIDF])
_ABOVE_MEAN = Claim("above the mean of its branches", "高于各分支的平均", lambda m: m["final"] > m["branches, mean"])
_ABOVE_BEST = Claim("above the best branch", "高于最好的分支", lambda m: m["final"] > m["branches, best"])
_ABOVE_SINGLE = Claim(
    "above one model of the same cost", "高于同等计算量的单个模型", lambda m: m["final"] > m["baseline"]
)
_ON_ITS_OWN = Claim(
    "one merged model ≥ the branches, each on its own domain",
    "一个合并模型 ≥ 各分支在各自领域上的平均",
    lambda m: m[MERGED] >= m[OWN],
)


def _at_least(value: float, unit: str = "%") -> Claim:
    scale = 100 if unit == "%" else 1
    return Claim(f"≥ {value:g}{unit}", f"≥ {value:g}{unit}", lambda m: m["final"] * scale >= value)


ROWS = {
    "sst2_minilm": Row(
        "SST-2 from MiniLM-L6, three branches merged", "SST-2，从 MiniLM-L6 出发，合并三个分支", 40,
        (_at_least(91.5), _ABOVE_MEAN, _ABOVE_BEST),
    ),
    "sst2_scratch": Row(
        "SST-2 with nothing pretrained, ≤ 5 M parameters", "SST-2，不用任何预训练，参数不超过 5 M", 8,
        (_at_least(84), _ABOVE_TFIDF, _ABOVE_SINGLE),
    ),
    "chnsenticorp": Row(
        "ChnSentiCorp (de-duplicated) with nothing pretrained", "ChnSentiCorp（去重），不用任何预训练", 12,
        (_ABOVE_TFIDF, _at_least(88), _ABOVE_SINGLE),
    ),
    "amazon": Row(
        "Amazon reviews, four domains, from MiniLM-L6", "亚马逊评论，四个领域，从 MiniLM-L6 出发", 25,
        (_ON_ITS_OWN, _ABOVE_TFIDF),
    ),
    "zh_shopping": Row(
        "Chinese shopping reviews, four domains, nothing pretrained", "中文购物评论，四个领域，不用任何预训练", 8,
        (_ON_ITS_OWN, _ABOVE_SINGLE, _ABOVE_TFIDF),
    ),
    "multi30k": Row(
        "Multi30k English → German, ≤ 8 M parameters", "Multi30k 英译德，参数不超过 8 M", 110,
        (_at_least(37, " BLEU"), _ABOVE_SINGLE),
    ),
    "tatoeba": Row("Tatoeba English → Chinese", "Tatoeba 英译中", 30, (_ABOVE_SINGLE,), "Tatoeba, CC BY 2.0 FR"),
}  # fmt: skip
_TFIDF_CHINESE = "TF-IDF + 逻辑回归"
_CHINESE = {
    "final": "**最终节点**", "branches, mean": "分支，平均", "branches, best": "分支，最好的", "leaf": "叶子，平均",
    OWN: "分支，各在自己的领域上", MERGED: "合并模型，各领域平均", ALL: "在所有领域上训练的单个模型，各领域平均",
    "ensemble": "集成", "merge": "合并", "stack": "堆叠", "baseline": "同等计算量的单个模型", TFIDF: _TFIDF_CHINESE,
}  # fmt: skip
_ENGLISH = {"final": "**final node**", "leaf": "leaves, mean", "baseline": "one model of the same cost"}


def summary(runs: list[dict[str, Any]], metric: str) -> dict[str, dict[str, float]]:
    """Mean and spread (standard deviation over seeds) of *metric*, by kind of node."""
    kinds: dict[str, list[float]] = {}
    for run in runs:
        for kind, value in _kinds(run, metric).items():
            kinds.setdefault(kind, []).append(value)
        for name, reference in run["references"].items():
            if metric in reference:
                kinds.setdefault(name, []).append(reference[metric])
    return {
        kind: {"mean": statistics.fmean(v), "spread": statistics.stdev(v) if len(v) > 1 else math.nan, "seeds": len(v)}
        for kind, v in kinds.items()
    }


def _kinds(run: dict[str, Any], metric: str) -> dict[str, float]:
    measured = {name: node for name, node in run["nodes"].items() if metric in node}
    found = {"final": measured[run["final"]][metric]}
    branches = [node for node in measured.values() if node["method"] == "branch"]
    if branches:
        found["branches, mean"] = statistics.fmean(node[metric] for node in branches)
        found["branches, best"] = max(node[metric] for node in branches)
    domains = [node for node in branches if node["domain"] and "by_domain" in node]
    if domains:
        found[OWN] = statistics.fmean(node["by_domain"][node["domain"]][metric] for node in domains)
        named = {MERGED: run["final"], **({ALL: run["baseline"]} if run["baseline"] else {})}
        for kind, name in named.items():
            own = measured[name]["by_domain"]
            found[kind] = statistics.fmean(own[node["domain"]][metric] for node in domains)
    for kind in ("leaf", "ensemble", "merge", "stack", "baseline"):
        values = [node[metric] for name, node in measured.items() if node["method"] == kind and name != run["final"]]
        if values:
            found[kind] = statistics.fmean(values)
    return found


def table(runs: list[dict[str, Any]], names: Mapping[str, str], head: str) -> str:
    """One row's results as Markdown: a line for each kind of node."""
    metrics = METRICS[runs[0]["task"]]
    scale = 100 if runs[0]["task"] == "classification" else 1
    found = {metric: summary(runs, metric) for metric in metrics}
    lines = [head, "|---|---|---|---|"]
    for kind in found[metrics[0]]:
        cells = [_cell(found[metric].get(kind), scale) for metric in metrics]
        seeds = int(found[metrics[0]][kind]["seeds"])
        lines.append(f"| {names.get(kind, kind)} | {cells[0]} | {cells[1]} | {seeds} |")
    return "\n".join(lines)


def _cell(value: dict[str, float] | None, scale: float) -> str:
    if value is None:
        return "–"
    spread = "" if math.isnan(value["spread"]) else f" ± {scale * value['spread']:.2f}"
    return f"{scale * value['mean']:.2f}{spread}"


def _section(row: str, runs: list[dict[str, Any]], chinese: bool) -> str:
    told, metrics = ROWS[row], METRICS[runs[0]["task"]]
    means = {kind: value["mean"] for kind, value in summary(runs, metrics[0]).items()}
    parts = [
        f"## {told.chinese if chinese else told.title}",
        _facts(row, runs, chinese),
        table(runs, _CHINESE if chinese else _ENGLISH, _header(metrics, chinese)),
        _marks(told, means, chinese),
        *_translations(runs, told, chinese),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _facts(row: str, runs: list[dict[str, Any]], chinese: bool) -> str:
    command = f"`python -m benchmarks.applications --data FOLDER --rows {row}`"
    size = f"{runs[0]['nodes'][runs[0]['final']]['parameters'] / 1e6:.1f} M"
    work = f"{statistics.fmean(_work(run) for run in runs) / 1e12:.0f} TFLOP"
    made = ", ".join(sorted({device for run in runs for device in run["devices"]}))
    if chinese:
        cost = f"连同对照每个种子 {work}，两个空闲核心上约 {ROWS[row].minutes} 分钟。机器：{made}。"
        return f"{command}。最终节点 {size} 参数；{cost}"
    cost = (
        f"a seed with its baseline costs {work}, about {ROWS[row].minutes} minutes on two idle cores. Made on: {made}."
    )
    return f"{command}. The final node has {size} parameters;\n{cost}"


def _work(run: dict[str, Any]) -> float:
    return sum(run["nodes"][name]["flops"] for name in (run["final"], run["baseline"]) if name)


def _header(metrics: tuple[str, ...], chinese: bool) -> str:
    titles = " | ".join(_TITLES[metric][chinese] for metric in metrics)
    return f"| 模型 | {titles} | 种子数 |" if chinese else f"| model | {titles} | seeds |"


def _marks(told: Row, means: Means, chinese: bool) -> str:
    if chinese:
        return "；".join(f"{c.chinese}：{'达到' if c.holds(means) else '**未达到**'}" for c in told.claims) + "。"
    return "; ".join(f"{c.english}: {'reached' if c.holds(means) else '**missed**'}" for c in told.claims) + "."


_TITLES = {
    "accuracy": ("accuracy, %", "准确率，%"), "macro_f1": ("macro-F1, %", "宏平均 F1，%"),
    "bleu": ("BLEU", "BLEU"), "chrf": ("chrF", "chrF"),
}  # fmt: skip


def _translations(runs: list[dict[str, Any]], told: Row, chinese: bool) -> Iterator[str]:
    """How BLEU was counted, and twenty translations of the first seed's final node, as they came."""
    final = runs[0]["nodes"][runs[0]["final"]]
    if "bleu_signature" in final:
        yield f"sacrebleu: `{final['bleu_signature']}`"
    if final.get("outputs") and told.credit:
        chosen = "二十条译文，未经挑选（句子：{}）：" if chinese else "Twenty translations, not chosen (sentences: {}):"
        yield chosen.format(told.credit)
        lines = ["| 原文 | 参考译文 | 模型译文 |" if chinese else "| source | reference | output |", "|---|---|---|"]
        clean = [{key: text.replace("|", "\\|").strip() for key, text in one.items()} for one in final["outputs"]]
        yield "\n".join([*lines, *(f"| {one['source']} | {one['reference']} | {one['output']} |" for one in clean)])


_HEAD = """# Sentiment analysis and translation: results

[中文](applications.zh-CN.md)

Made by `python -m benchmarks.applications` and written here by its `--docs docs`. Each section is one plan of
`benchmarks/applications/`; `--data FOLDER` is the folder with the data sets that it names. The command goes on where it
was stopped. Choices (α, early stopping, the strength of TF-IDF's regression) are made on each plan's valid data; the
numbers are of its test data, mean ± standard deviation over the seeds. "One model of the same cost" is trained by the
same plan with the FLOPs of all that went into the final node. What was tried on the way, with what did not help, stands
in [log.md](log.md).
"""
_KOPF = """# 情感分析与翻译：结果

[English](applications.md)

由 `python -m benchmarks.applications` 测得，用 `--docs docs` 写到这里。
每一节对应 `benchmarks/applications/` 中的一个计划；`--data FOLDER` 是其中所提数据集所在的文件夹。
命令中断后会从停下的地方继续。
选择（α、提前停止、TF-IDF 回归的强度）都在各计划的验证集上做出；数字是测试集上的，为各种子的平均 ± 标准差。
“同等计算量的单个模型”由同一个计划训练，其 FLOPs 等于最终节点的全部投入。
一路上试过的东西，包括没有用的，见 [log.md](log.md)。
"""


def write_docs(results: dict[str, Any], folder: Path) -> None:
    """``applications.md`` in both languages."""
    for name, head, chinese in (("applications.md", _HEAD, False), ("applications.zh-CN.md", _KOPF, True)):
        sections = [_section(row, results["rows"][row], chinese) for row in ROWS if results["rows"].get(row)]
        (folder / name).write_text("\n".join([head, *sections]), encoding="utf-8")
