"""How many questions a model's table of removable shares costs, by the published curves.

The paper asks MMLU's 14,042 questions for every score and share. This asks simulated ones, in random order, until the fall
is known to be within or beyond a point at 95%, on each of the 14 × 14 × 6 published points, and then looks for each removable
share itself instead of asking at fixed shares.

How many answers change is not published, only accuracies. ``--gained`` is the assumed share of questions that turn right
under a policy; the share that turns wrong is that plus the published fall.

    python benchmarks/questions.py --gained 0.01 --gained 0.03 --gained 0.05 --json questions.json
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from headcount.analysis import Look, SequentialTest, find_removable_share
from headcount.published import published_points

QUESTIONS = 14_042
BATCH = (
    250  # questions between two looks: what is asked after the verdict was possible, to the end of the batch, counts
)
MARGIN, CONFIDENCE = 0.01, 0.95


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Means over the 14 models; passes are forward passes over one question each.

    ``wrong`` verdicts are over all points, ``error`` is how far searches end from the removable share of the curve.
    """

    gained: float
    part_asked: float
    wrong: float
    table_passes: float
    looks: float
    search_passes: float
    error: float


def ask(change: float, gained: float, rng: np.random.Generator) -> tuple[SequentialTest, int]:
    """A simulated evaluation of one policy, and how many questions it asks until it is decided, to the end of a batch."""
    turned_right = round(QUESTIONS * (gained + max(change, 0)))
    turned_wrong = round(QUESTIONS * (gained - min(change, 0)))
    differences = np.repeat([1.0, -1.0, 0.0], [turned_right, turned_wrong, QUESTIONS - turned_right - turned_wrong])
    differences = rng.permutation(differences)
    test = SequentialTest(total=QUESTIONS, margin=MARGIN, confidence=CONFIDENCE)
    test.update(differences[:-1])  # the verdict stays as it was first reached
    if test.verdict is None:
        test.update(differences[-1:])
    assert test.decided_after is not None
    return test, min(-(-test.decided_after // BATCH) * BATCH, QUESTIONS)


def table(points: pd.DataFrame, gained: float, rng: np.random.Generator) -> tuple[list[int], int]:
    """Questions asked at each point, and wrong verdicts."""
    asked, wrong = [], 0
    for change in points["accuracy"] - points["baseline"]:
        test, questions = ask(change, gained, rng)
        asked.append(questions)
        within = round(QUESTIONS * change) >= -MARGIN * QUESTIONS
        wrong += test.verdict != ("within" if within else "beyond")
    return asked, wrong


def searches(points: pd.DataFrame, gained: float, rng: np.random.Generator) -> tuple[list[int], list[int], list[float]]:
    """For each curve: looks, questions asked, distance of the interval's middle from the curve's own crossing."""
    looks, questions, errors = [], [], []
    for _, curve in points.groupby(["model", "curve"], sort=False):
        curve = curve.sort_values("share_asked")
        shares, changes = curve["share_asked"].to_numpy(), (curve["accuracy"] - curve["baseline"]).to_numpy()
        spent = 0

        def look(share: float, shares: np.ndarray = shares, changes: np.ndarray = changes) -> Look:
            nonlocal spent
            test, asked = ask(float(np.interp(share, shares, changes)), gained, rng)
            spent += asked
            return Look(change=float(test.differences[:asked].mean()), verdict=test.verdict, share_realised=share)

        found = find_removable_share(look, margin=MARGIN)
        fine = np.linspace(0, 0.3, 3001)
        heights = np.interp(fine, shares, changes)
        crossings = fine[1:][(heights[:-1] >= -MARGIN) & (heights[1:] < -MARGIN)]
        middle = (found.within + (found.beyond or found.within)) / 2
        looks.append(len(found.looks))
        questions.append(spent)
        errors.append(float(np.abs(crossings - middle).min(initial=0.3)))
    return looks, questions, errors


def costs(gained: float, seed: int) -> Costs:
    rng = np.random.default_rng(seed)
    points = published_points()
    models = points["model"].nunique()
    asked, wrong = table(points[points["share_asked"] > 0], gained, rng)
    looks, questions, errors = searches(points, gained, rng)
    return Costs(
        gained=gained,
        part_asked=float(np.mean(asked)) / QUESTIONS,
        wrong=wrong / len(asked),
        table_passes=QUESTIONS + sum(asked) / models,
        looks=float(np.mean(looks)),
        search_passes=QUESTIONS + sum(questions) / models,
        error=float(np.mean(errors)),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--gained", type=float, action="append", help="share of questions that turn right; repeat")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    authors = (15 + 98) * QUESTIONS
    fixed = (1 + 14 * 6) * QUESTIONS
    print(f"the authors' protocol           {authors:>10,} passes a model   1.00")
    print(f"one pass for scores and baseline {fixed:>9,}                  {fixed / authors:.2f}")
    found = [costs(gained, options.seed) for gained in options.gained or [0.03]]
    for cost in found:
        print(
            f"gained {cost.gained:.0%}: until decided         {cost.table_passes:>9,.0f}                  "
            f"{cost.table_passes / authors:.2f}   {cost.part_asked:.0%} of the questions, {cost.wrong:.1%} of verdicts wrong\n"
            f"           searched as well      {cost.search_passes:>9,.0f}                  "
            f"{cost.search_passes / authors:.2f}   {cost.looks:.1f} looks a curve, off by {100 * cost.error:.1f} points of share"
        )
    if options.json:
        options.json.write_text(json.dumps([asdict(cost) for cost in found], indent=1))


if __name__ == "__main__":
    main()
