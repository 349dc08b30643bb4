"""``headcount analyse``: every table of the paper from saved runs."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headcount.cli import app, options
from headcount.cli.console import output
from headcount.errors import InputError, RunError

if TYPE_CHECKING:
    from headcount.analysis import Saved
    from headcount.store import Run


@app.command()
def analyse(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN…", help="Folders of runs, or folders that hold runs.", show_default=False),
    ],
    output_folder: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write every table, in full, as CSV into this folder.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="lm-eval metric for accuracy. [default: acc, or the task's first]")
    ] = None,
    share: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of heads at which to print agreement, frequencies and thresholds."),
    ] = 0.10,
    published: Annotated[
        bool, typer.Option("--published/--no-published", help="Put the paper's 14 models beside these.")
    ] = True,
    scores_from: options.ScoresFrom = None,
) -> None:
    """Make every table of the paper from runs: how many heads can go, by which score, and whether one can rely on it.

    Prints removable shares with intervals, ranks, heads always and never inactive, agreement between scores and, for
    several runs, how thresholds carry over. Nothing is run: what a run does not hold is left out.
    """
    from headcount.analysis import all_tables
    from headcount.published import published_curves, published_table
    from headcount.report.overview import print_overview
    from headcount.report.tables import Table
    from headcount.store import write_atomically

    saved = list(_saved(runs))
    curves = None
    if published:
        curves = published_curves()
        curves["model"] += " (published)"  # a model of one's own may have the same name
    tables = all_tables(saved, metric=metric, published=curves)
    if not tables:
        raise RunError(
            f"{', '.join(map(str, runs))} hold neither scores nor outcomes. Run `headcount measure` or `evaluate` first."
        )
    print_overview(
        output, tables, share=share, published=published_table() if published and "by_score" in tables else None
    )
    if output_folder is not None:
        for name, frame in tables.items():
            content = Table(id=name, title=name, note="", columns=[], frame=frame).csv()
            write_atomically(output_folder / f"{name}.csv", content.encode())
        output.print(f"\nTables: {output_folder} ({', '.join(tables)})", highlight=False, soft_wrap=True, markup=False)


def _saved(paths: list[Path]) -> "Iterator[Saved]":
    """What the runs hold; where several hold the same of a model, it is named with each run's folder."""
    from headcount.store import open_run

    opened = [open_run(folder) for folder in dict.fromkeys(run for path in paths for run in _run_folders(path))]
    held = [{(_model(run), name) for name in (_data(run), *_tasks(run))} for run in opened]
    times = Counter(name for names in held for name in names)
    for run, names in zip(opened, held, strict=True):
        alone = all(times[name] == 1 for name in names)
        yield _read(run, _model(run) if alone else f"{_model(run)} ({run.path})")


def _run_folders(path: Path) -> list[Path]:
    from headcount.store import is_run

    if is_run(path):
        return [path]
    found = sorted(file.parent for file in path.rglob("run.json"))
    if not found:
        raise InputError(f"{str(path)!r} holds no run (no run.json). Make one with `headcount measure … -o {path}`.")
    return found


def _model(run: "Run") -> str:
    return str(run.manifest.get("model", {}).get("name", "unnamed model"))


def _tasks(run: "Run") -> list[str]:
    return [str(task) for task in run.manifest.get("data", {}).get("tasks") or ()]


def _data(run: "Run") -> str:
    texts = run.manifest.get("data", {}).get("texts") or ["unnamed data"]
    return "+".join(_tasks(run) or [Path(str(text)).stem for text in texts])


def _read(run: "Run", model: str) -> "Saved":
    from headcount.analysis import Saved
    from headcount.heads import HeadGeometry, LayerHeads
    from headcount.thresholding import thresholds

    scores, cuts = run.measurements(), run.thresholds()
    if cuts is None and scores is not None:
        cuts = thresholds(scores)
    layers = run.manifest.get("model", {}).get("layers")
    return Saved(
        model=model,
        data=_data(run),
        tasks=_tasks(run),
        outcomes=run.outcomes(),
        scores=scores,
        thresholds=cuts,
        geometry=HeadGeometry(layers=tuple(LayerHeads(**layer) for layer in layers)) if layers else None,
    )
