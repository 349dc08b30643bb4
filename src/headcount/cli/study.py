"""``headcount study``: models × data × scores × shares, from one file."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headcount.cli import options
from headcount.cli.app import app
from headcount.cli.console import Steps, output, said_bytes, steps
from headcount.errors import InputError
from headcount.whole_table import WholeTable

if TYPE_CHECKING:
    from headcount.study.cost import Cost
    from headcount.study.running import Workers
    from headcount.study.spec import Study

_SHARE = 0.10  # of heads, at which tables that hold several shares are printed


@app.command()
def study(
    file: Annotated[
        str,
        typer.Argument(
            metavar="STUDY",
            help="YAML file, or one that comes with headcount: demo, paper, cross_dataset, fineweb_edu.",
            show_default=False,
        ),
    ],
    folder: Annotated[
        Path | None, options.path_option("--output", "-o", help="Folder of the study. [default: runs/NAME]")
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Check everything and say what it would cost; load no model, run no file of scores."
        ),
    ] = False,
    engine: Annotated[str, typer.Option(help="local: this process; ray: the workers of a Ray cluster.")] = "local",
    ray_address: Annotated[
        str | None,
        typer.Option(
            help="Of the cluster: auto for the one this machine belongs to. [default: start one on this machine]",
            rich_help_panel="Ray",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Models loaded at a time. [default: as many as there is room for]", rich_help_panel="Ray"
        ),
    ] = None,
    gpus: Annotated[
        float | None,
        typer.Option(
            "--gpus-per-worker", min=0, help="[default: 1 where the cluster has any, else 0]", rich_help_panel="Ray"
        ),
    ] = None,
    cpus: Annotated[
        int, typer.Option("--cpus-per-worker", min=1, help="And threads, without a GPU.", rich_help_panel="Ray")
    ] = 1,
) -> None:
    """Measure, find thresholds, ask under policies and analyse: every model on all data. The same command continues."""
    from headcount.study.spec import Study

    if engine not in ("local", "ray"):
        raise InputError(f"Unknown engine {engine!r}. Use local or ray.")
    asked = Study.read(file)
    from headcount.cli.runs import command_line, keep_offline

    keep_offline(asked.offline)
    with steps() as progress:
        from headcount.study.progress import announced
        from headcount.study.running import LocalWorkers, check_study, run_study

        with announced(progress.start, "Checking the study"):
            check_study(asked)
        if dry_run:
            _count(asked, progress)
            return
        asked = asked.with_own_scores()  # what is wrong with them is said before a cluster is joined
        working: Workers = LocalWorkers()
        if engine == "ray":
            from headcount.study.cluster import RayWorkers

            with announced(progress.start, "Joining the cluster"):
                working = RayWorkers(address=ray_address, workers=workers, gpus=gpus, cpus=cpus)
        place = folder or Path("runs") / asked.name
        progress.keep_in(place, place)
        done = run_study(asked, place, workers=working, announce=progress.start, command=command_line())
    from headcount.report.overview import print_overview
    from headcount.units import KINDS

    tables = done.tables()
    print_overview(
        output,
        tables,
        share=_SHARE,
        published="by_curve" in tables and asked.unit == "head",
        units=KINDS[asked.unit].short,
    )
    output.print()
    output.say(f"Study:  {done.path}")
    output.say(f"Tables: {done.path / 'tables'} ({', '.join(tables)})")


def _count(asked: "Study", progress: Steps) -> None:
    """What the study would cost."""
    from headcount.study.cost import machine_rate, study_costs
    from headcount.study.progress import announced

    with announced(progress.start, "Counting"):
        costs, rate = study_costs(asked), machine_rate(asked.models[0], asked)
    _print_costs(costs, rate)
    if asked.scores_from and asked.scores == ("all",):
        files = ", ".join(asked.scores_from)
        output.say(
            f"A dry run runs no code: scores that {files} adds are not counted. Name them under scores: to count them."
        )


def _print_costs(costs: "dict[tuple[str, str], Cost]", rate: float) -> None:
    table = WholeTable(box=None, header_style="bold")
    for heading in ("model", "data", "inputs", "tokens", "passes", "forwards", "on disk", "hours"):
        name = heading in ("model", "data")
        table.add_column(heading, justify="left" if name else "right", overflow="fold", no_wrap=not name)
    for labels, cost in costs.items():
        table.add_row(
            *labels, f"{cost.inputs:,}", f"{cost.tokens:,}", str(cost.passes), f"{cost.forwards:,}",
            said_bytes(cost.score_bytes + cost.outcome_bytes), f"{cost.hours(rate):.2g}",
        )  # fmt: skip
    output.print(table)
    total = sum(cost.hours(rate) for cost in costs.values())
    output.print(
        f"\nTokens are those of one pass over the inputs. In all {sum(cost.forwards for cost in costs.values()):,} forward "
        f"passes, {sum(cost.operations for cost in costs.values()):.2g} operations, and at most about {total:.2g} hours on this "
        f"machine ({rate / 1e9:,.0f} GFLOP/s, from a matrix product just now; expect a factor of 2)."
    )
