"""Which recipe wins: recipes and controls at equal FLOPs, on several corpora, with several seeds.

    python -m benchmarks.recipes --data FOLDER [--tune] [--work FOLDER] [--jobs N] [--only PATTERN …] [--scale X]
    python -m benchmarks.recipes --list            what there is to do, what is done, how long it takes
    python -m benchmarks.recipes --docs docs       the pages from the results that are there
    python -m benchmarks.recipes --quick           two seeds of the headline on this Python's standard library
    python -m benchmarks.recipes --data FOLDER --anew --only RUN …    a published run again, beside what is published

Every run may take the same FLOPs by construction (a single model may choose fewer passes on little text): branches,
teachers, the search for α and healing are counted, and a node that two recipes share is trained once and charged to
both. Not counted are the measurements on valid text during training. FOLDER holds ``lm/NAME/{train,valid,test}.txt``;
it is read in place. ``--tune`` first searches the values of both sides on valid text, with a seed of its own. Test
text is read once a run, after it. The results of the whole matrix go to ``benchmarks/results/recipes.json``, the runs
themselves to ``recipe-runs`` beside it, everything else to the work folder; ``--collect`` writes what is finished so
far. Stop it at will; the same command goes on, there or on another machine with what is published.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import recipe_records
from benchmarks.recipe_corpora import BUILT_IN
from benchmarks.recipe_matrix import (
    CORPORA,
    SEEDS,
    at_larger_scale,
    chosen,
    had_second_lap,
    matrix,
    published_tuning,
    read_tuning,
    searches,
    second_lap,
    tuned,
)
from ract.checkpoint.directory import write_text
from ract.errors import RactError
from ract.machine import processor_name

RESULTS = recipe_records.RESULTS / "recipes.json"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder with the corpora")
    parser.add_argument("--work", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--out", type=Path, help="default: the published results; of --only and --quick: in --work")
    parser.add_argument("--corpora", nargs="+", default=list(CORPORA), help="folders of --data, or stdlib")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--scale", type=float, default=1.0, help="times the budget; above 1 models grow with its root")
    parser.add_argument("--jobs", type=int, help="runs at a time; default: one a processor")
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="corpus/setting/recipe/seed, or *")
    parser.add_argument("--anew", action="store_true", help="make runs that are published again, publish none")
    parser.add_argument("--tune", nargs="*", metavar="PATTERN", help="search values first; corpus/setting/side, or all")
    parser.add_argument("--again", action="store_true", help="with --tune: a second lap from what the first one found")
    parser.add_argument("--tune-only", action="store_true", help="no runs after the search")
    parser.add_argument("--list", action="store_true", help="show the runs, make none")
    parser.add_argument("--collect", action="store_true", help="write the results of what is finished, make none")
    parser.add_argument("--quick", action="store_true", help="the built-in corpus, two seeds, nothing else needed")
    parser.add_argument("--docs", type=Path, metavar="FOLDER", help="write the pages from the results that are there")
    parser.add_argument("--nanogpt", type=Path, metavar="FOLDER", help="a checkout of nanoGPT to run side by side")
    parser.add_argument("--longer", action="store_true", help="with --nanogpt: one of ours has forty minutes besides")
    return parser


def main() -> int:
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # kill stops the runs under way as Ctrl-C does
    try:
        return _carry_out(options)
    except RactError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Stopped. The same command goes on where it stopped.", file=sys.stderr)
        return 130


def _carry_out(options: argparse.Namespace) -> int:
    from benchmarks import recipe_pages, recipe_results, recipe_schedule, recipe_tables, recipe_tuning

    if options.docs:
        recipe_pages.write_docs(options.out.parent if options.out else RESULTS.parent, options.docs)
        return 0
    if options.nanogpt:
        from benchmarks import recipe_nanogpt

        return recipe_nanogpt.side_by_side(
            options.nanogpt, options.data, options.work, RESULTS.parent, longer=options.longer
        )
    if options.quick:
        options.corpora, options.seeds = [BUILT_IN], options.seeds[:2]
    work, data, jobs = options.work, options.data, options.jobs
    if options.tune is not None and not options.list:
        wanted = [s for s in searches(options.corpora, options.scale) if _matches(s.key, options.tune)]
        known = None
        if options.again:
            known = read_tuning(work, _results_at(options.scale))
            begun = [s for s in wanted if s.key in known]
            wanted = [second_lap(s, known[s.key]) for s in begun if not had_second_lap(known[s.key])]
        recipe_tuning.tune(wanted, work, data, jobs, before=known)
        if options.tune_only:
            return 0
    tuning = read_tuning(work, _results_at(options.scale))
    values = tuning if options.scale == 1 else at_larger_scale(tuning, published_tuning(RESULTS))
    every = [tuned(spec, values) for spec in matrix(options.corpora, options.seeds, options.scale)]
    specs = [tuned(spec, values) for spec in chosen(every, options.only, options.scale)]
    if options.anew:
        specs = [replace(spec, anew=True) for spec in specs]
    if options.list:
        print(recipe_schedule.listing(specs, work, jobs))
        return 0
    failed = [] if options.collect else recipe_schedule.run_all(specs, work, data, jobs)
    if options.anew:
        before = recipe_records.published(recipe_records.folder_of(options.scale))
        print(recipe_tables.beside_published([record for _, record in recipe_schedule.results_of(specs, work)], before))
        return 1 if failed else 0
    known = {spec.name: spec for spec in [*every, *specs]}
    records = recipe_schedule.results_of(list(known.values()), work)
    found = recipe_results.results(records, tuning)
    found["scale"] = options.scale
    found["machine"] = {"processor": processor_name(), "cores": os.cpu_count()}
    out = options.out or _place(options)
    if out.parent == RESULTS.parent:
        recipe_records.publish([record for _, record in records], recipe_records.folder_of(options.scale))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(recipe_tables.short(found, "en"), recipe_tables.tables(found, "en"), sep="\n")
    return 1 if failed else 0


def _place(options: argparse.Namespace) -> Path:
    """Where results go by default: a part of the matrix never takes the place of what is published."""
    if options.only or options.quick:
        return options.work / "results.json"
    return _results_at(options.scale)


def _results_at(scale: float) -> Path:
    return RESULTS if scale == 1 else RESULTS.with_name(f"recipes-x{scale:g}.json")


def _matches(key: str, patterns: list[str]) -> bool:
    from fnmatch import fnmatchcase

    return not patterns or any(fnmatchcase(key, one) or fnmatchcase(key, f"{one}/*") for one in patterns)


if __name__ == "__main__":
    sys.exit(main())
