"""``headcount status``: what of a run or study is done, running and left."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headcount.cli.app import app
from headcount.cli.console import output
from headcount.whole_table import WholeTable

if TYPE_CHECKING:
    from headcount.study.folder import StudyFolder
    from headcount.study.progress import RunProgress


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run or of a study.", show_default=False)],
    check: Annotated[
        bool, typer.Option("--check", help="Read every file and name those that are damaged or gone.")
    ] = False,
) -> None:
    """Show what is measured and answered, what is left, and who works on it."""
    from headcount.store.files import Damaged
    from headcount.study.folder import find_faults

    faults = find_faults(folder) if check else None
    early = False
    try:
        early = _show(folder)
    except Damaged:
        if faults is None or not any(faults):
            raise
    if faults is None:
        return
    for said, files in zip(("Damaged", "Missing"), faults, strict=True):
        for file in files:
            output.say(f"{said}: {file}")
    if early:
        output.print(
            "An earlier headcount, which kept checksums of shards alone, made some of it: what else was altered there, or "
            "lost, cannot be told. The next command that works on it puts everything under a checksum."
        )
    whole = "Every shard is whole." if early else "Every file is whole."
    output.print("The command that made the run makes these anew." if any(faults) else whole)
    if any(faults):
        raise typer.Exit(1)


def _show(folder: Path) -> bool:
    """Print what is there; gives whether some run in it is of an earlier format."""
    from headcount.store import is_run, open_run
    from headcount.study.folder import holds_runs, is_study, open_study
    from headcount.study.progress import run_progress, study_progress

    study: StudyFolder | None = None
    if is_study(folder) or (not is_run(folder) and holds_runs(folder)):
        study = open_study(folder)
        runs, holder = study.runs(), study.holder()
        rows: Mapping[tuple[str, str], RunProgress | None] = study_progress(study)
    else:
        run = open_run(folder)
        holder = run.holder()
        labels = run.manifest.model.name or "?", ", ".join(run.manifest.data.tasks)
        runs, rows = {labels: run}, {labels: run_progress(run)}
    table = WholeTable(box=None, header_style="bold")
    for heading in ("model", "data", "inputs measured", "thresholds", "policies", "answers", "left"):
        justify, counts = "left" if heading in ("model", "data") else "right", heading in ("answers", "left")
        table.add_column(heading, justify=justify, overflow="fold", no_wrap=counts)
    for labels, known in rows.items():
        table.add_row(*labels, *_cells(known, running=labels in runs and runs[labels].holder() is not None))
    output.print(table)
    for labels, known in rows.items():
        for policy, count in (known.stopped if known else {}).items():
            if known is not None and count < known.num_questions:
                said = f"{policy} stopped after {count:,} of {known.num_questions:,} questions"
                output.say(f"Decided: {said}, {' on '.join(labels)}")
        for policy, why in (known.failures if known else {}).items():
            output.say(f"Given up: {policy} of {' on '.join(labels)}: {why}")
        if known is not None and known.undecidable:
            output.say(f"Not decided: {' on '.join(labels)}: {known.undecidable}")
    if study is not None:
        output.say(_tables(study))
    output.say(_holder(holder))
    return any(run.manifest.format < run.manifest.formats[1] for run in runs.values())


def _tables(study: "StudyFolder") -> str:
    names = ", ".join(study.tables())
    return f"Tables: {study.path / 'tables'} ({names})" if names else "Tables are made when nothing else is left."


def _cells(known: "RunProgress | None", *, running: bool) -> list[str]:
    if known is None:
        return ["–", "–", "–", "–", "all"]
    inputs = "–" if known.num_inputs is None else f"{known.inputs_done:,} of {known.num_inputs:,}"
    asked = known.num_questions * known.num_policies
    left = [
        f"{known.inputs_left:,} inputs" if known.inputs_left else "",
        f"{'at most ' * bool(known.stopped)}{known.answers_left:,} answers" if known.answers_left else "",
        f"search for {len(known.searching)}" if known.searching else "",
    ]
    said = (", ".join(filter(None, left)) or "nothing") + ", running" * running
    answers = f"{known.answers_done:,} of {asked:,}" if asked else "–"
    return [inputs, str(known.num_thresholds or "–"), str(known.num_policies or "–"), answers, said]


def _holder(holder: dict[str, Any] | None) -> str:
    if holder is None:
        return "Nobody works on it just now."
    if not holder:
        return "A process works on it just now."
    return "Process {pid} on {host} works on it since {since}: {command}".format_map(
        {name: holder.get(name, "?") for name in ("pid", "host", "since", "command")}
    )
