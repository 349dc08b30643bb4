"""The lists in README and docs are those of the code. `python -m tests.test_docs` writes them anew."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from headcount.scores import all_scores
from tests.models.families import FAMILIES

ROOT = Path(__file__).parents[1]


def supported_families() -> str:
    classes = [f"`{family}` {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]}" for family in sorted(FAMILIES)]
    rows = [" | ".join(classes[i : i + 3] + [""] * (3 - len(classes[i : i + 3]))) for i in range(0, len(classes), 3)]
    return "\n".join(["| | | |", "|---|---|---|", *(f"| {row} |" for row in rows)])


def score_table() -> str:
    rows = [
        "| id | name | value for one head and example | inactive when | unit | other names |",
        "|---|---|---|---|---|---|",
    ]
    for score in all_scores():
        if score.function.__module__.startswith("headcount."):
            definition = " ".join((score.function.__doc__ or "").split("\n\n")[0].split())
            names = ", ".join(f"`{alias}`" for alias in score.aliases)
            rows.append(
                f"| `{score.id}` | {score.name} | {definition} | {score.inactive_when} | {score.unit} | {names} |"
            )
    return "\n".join(rows)


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "supported families": ("README.md", supported_families),
    "scores": ("docs/scores.md", score_table),
}


def _split(part: str) -> tuple[Path, str, str, str]:
    file = ROOT / PARTS[part][0]
    start = re.escape(f"<!-- {part}: written by `python -m tests.test_docs` -->\n")
    match = re.fullmatch(rf"(.*{start})(.*?)(<!-- end -->.*)", file.read_text("utf-8"), re.DOTALL)
    assert match is not None, f"{file} has no place for {part}"
    return file, match[1], match[2], match[3]


@pytest.mark.parametrize("part", PARTS)
def test_list_is_that_of_the_code(part):
    assert _split(part)[2].strip() == PARTS[part][1](), "run `python -m tests.test_docs`"


if __name__ == "__main__":
    for part, (_, write) in PARTS.items():
        file, before, _, after = _split(part)
        file.write_text(f"{before}\n{write()}\n\n{after}", "utf-8")
