"""A pruned checkpoint beside the model that it was made from, on the same questions."""

import json
from pathlib import Path

from headcount.errors import InputError, ModelError
from headcount.evaluation.benchmark import Benchmark
from headcount.models.loading import load
from headcount.models.observe import units_of
from headcount.models.source import refuse_pipes
from headcount.policies import BASELINE, PRUNED, PolicyFacts
from headcount.removal.selection import Selection
from headcount.store import Run
from headcount.study.progress import Announce, silent
from headcount.study.stages import aggregate_run, compared, note_policies, parts_left
from headcount.study.subject import LoadedModel, Subject
from headcount.study.units import LocalEngine


def check_pruned(folder: Path, original: LoadedModel) -> None:
    """What can be known of a pruned checkpoint before any question is asked.

    Raises:
        InputError: no pruned checkpoint.
        ModelError: it was made from another model, or needs code that is not trusted.
    """
    if folder.is_file():
        raise InputError(f"{str(folder)!r} is a file; expected the folder that `headcount prune … -o FOLDER` made.")
    config = folder / "config.json"
    if not config.is_file():
        raise InputError(
            f"{str(folder)!r} holds no checkpoint of transformers. Make one with `headcount prune … -o {folder}`."
        )
    refuse_pipes(folder)
    Selection.load(folder / "selection.json").check(original.model, original.name)
    try:
        needs_code = "auto_map" in dict(json.loads(config.read_bytes()))
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{str(config)!r} is no configuration of transformers. Make the checkpoint again.") from error
    if needs_code and not original.spec.trust_remote_code:
        raise ModelError(
            f"{str(folder)!r} needs the modelling code that headcount prune wrote beside it. Give --trust-remote-code if you "
            "made it yourself or trust who did."
        )


def ask_pruned(run: Run, folder: Path, subject: Subject, announce: Announce = silent) -> None:
    """Ask a benchmark's questions of a pruned checkpoint, and keep the answers as those of a policy, ``pruned:FOLDER``.

    Args:
        run: holds the untouched model's answers to these questions.
        folder: of the checkpoint, as ``check_pruned`` accepts it.
        subject: the untouched model and its questions; the checkpoint is loaded as the model was.
        announce: begins a step of progress.
    """
    loaded, benchmark = subject.model, subject.benchmark
    assert benchmark is not None
    label = f"pruned:{folder.name}"
    answered = {BASELINE: run.answered().get(label, set())}  # asked like the untouched model
    left = parts_left([None], range(benchmark.num_questions), answered, benchmark.workload(), most=run.shard_size)
    if not left:
        return
    selection = Selection.load(folder / "selection.json")
    spec = loaded.spec
    pruned, _ = load(folder, dtype=spec.dtype or "auto", device=spec.device, trust_remote_code=spec.trust_remote_code)
    # Zero-filled checkpoints still have the heads, so the share is what was selected where no head is gone.
    before, after = (units_of(model, selection.part).num_units for model in (loaded.model, pruned))
    share = (before - after) / before if after < before else len(selection.heads) / before
    of_pruned = Benchmark(
        pruned, benchmark.task_set, tokenizer=loaded.tokenizer, limit=subject.data["limit"],
        chat_template=subject.data["chat_template"], batch_tokens=subject.batch_tokens,
    )  # fmt: skip
    facts = PolicyFacts(policy=label, curve=PRUNED, share_asked=share)
    note_policies(run, [facts])
    baseline = run.outcomes([BASELINE])
    assert baseline is not None
    told = announce(label)
    for shard in (part.questions for part in left):
        answers = of_pruned.ask(questions=shard).outcomes
        answers = answers.assign(**facts.columns(), share_off=share)
        run.add_outcomes([label], shard, compared(answers, baseline))
        told(shard[-1] + 1, benchmark.num_questions)
    aggregate_run(run, LocalEngine(subject))
