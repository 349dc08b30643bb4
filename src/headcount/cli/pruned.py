"""A pruned checkpoint beside the model that it was made from, on the same questions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headcount.cli.console import Steps
from headcount.errors import InputError

if TYPE_CHECKING:
    from headcount.cli.runs import LoadedModel
    from headcount.evaluation.benchmark import Benchmark
    from headcount.store import Run


def ask_pruned_into(
    run: "Run", folder: Path, loaded: "LoadedModel", benchmark: "Benchmark", progress: Steps, **options: Any
) -> None:
    """Ask the benchmark's questions of a pruned checkpoint, and keep the answers as those of a policy, ``pruned:FOLDER``.

    Args:
        run: holds the untouched model's answers to these questions.
        folder: of the checkpoint, with the selection that ``headcount prune`` left there.
        loaded: the untouched model.
        benchmark: its questions.
        progress: where to report.
        options: of ``load``.

    Raises:
        InputError: no pruned checkpoint.
        ModelError: it was made from another model.
    """
    import pandas as pd

    from headcount.evaluation.benchmark import Benchmark
    from headcount.evaluation.outcomes import BASELINE, with_divergences
    from headcount.models.instrument import head_geometry
    from headcount.models.loading import default_name, load
    from headcount.removal.selection import Selection

    label = f"pruned:{folder.name}"
    if label in run.policies():
        return
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{str(folder)!r} holds no checkpoint of transformers. Make one with `headcount prune … -o {folder}`."
        )
    selection = Selection.load(folder / "selection.json")
    selection.check(loaded.model, default_name(loaded.name))
    pruned, _ = load(folder, **options)
    # Zero-filled checkpoints still have the heads, so the share is what was selected where no head is gone.
    before, after = head_geometry(loaded.model).num_heads, head_geometry(pruned).num_heads
    share = (before - after) / before if after < before else len(selection.heads) / before
    facts = benchmark.facts()
    of_pruned = Benchmark(
        pruned, benchmark.task_set, tokenizer=loaded.tokenizer, limit=facts["limit"], chat_template=facts["chat_template"],
        batch_tokens=benchmark.lm.batch_tokens,
    )  # fmt: skip
    answers = of_pruned.ask(progress=progress.start(label, of_pruned.num_inputs)).outcomes
    answers = answers.assign(policy=label, score="pruned", share_asked=share, share_zeroed=share)
    outcomes = run.outcomes()
    assert outcomes is not None
    both = with_divergences(pd.concat([outcomes.loc[outcomes["policy"] == BASELINE], answers], ignore_index=True))
    answers = both.loc[both["policy"] == label]
    run.add_outcomes(label, answers, benchmark.metrics(answers))
