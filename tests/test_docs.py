"""The lists in README and docs are those of the code. `python -m tests.test_docs` writes them anew."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from headcount.scores import all_scores
from headcount.study.cost import ModelSize, run_cost
from tests.models.families import FAMILIES

ROOT = Path(__file__).parents[1]


def supported_families() -> str:
    classes = [f"`{family}` {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]}" for family in sorted(FAMILIES)]
    rows = [" | ".join(classes[i : i + 3] + [""] * (3 - len(classes[i : i + 3]))) for i in range(0, len(classes), 3)]
    return "\n".join(["| | | |", "|---|---|---|", *(f"| {row} |" for row in rows)])


def score_table() -> str:
    rows = [
        "| id | name | value for one unit and example | inactive when | unit | of | other names |",
        "|---|---|---|---|---|---|---|",
    ]
    for score in all_scores():
        if score.function.__module__.startswith("headcount."):
            definition = " ".join((score.function.__doc__ or "").split("\n\n")[0].split())
            names = ", ".join(f"`{alias}`" for alias in score.aliases)
            of = ", ".join(kind for kind in ("head", "neuron", "mlp") if score.is_of(kind))
            facts = (
                f"`{score.id}` | {score.name} | {definition} | {score.inactive_when} | {score.unit} | {of} | {names}"
            )
            rows.append(f"| {facts} |")
    return "\n".join(rows)


def llama_size(hidden: int, layers: int, heads: int, intermediate: int) -> ModelSize:
    """Of a Llama 3.1 with 8 key-value heads of 128 and 128,256 tokens."""
    attention = 2 * hidden * heads * 128 + 2 * hidden * 8 * 128
    return ModelSize(
        parameters=layers * (attention + 3 * hidden * intermediate + 2 * hidden) + hidden,
        projection=hidden * 128_256,
        attention=layers * heads * 128,
        heads=layers * heads,
    )


LLAMAS = {
    "Llama 3.1 8B": llama_size(4096, 32, 32, 14_336),
    "Llama 3.1 70B": llama_size(8192, 80, 64, 28_672),
    "Llama 3.1 405B": llama_size(16_384, 126, 128, 53_248),
}


def test_sizes_are_those_of_the_checkpoints():
    # As the checkpoints count: with the embedding and the vocabulary projection, which are not tied.
    whole = [round((size.parameters + 2 * size.projection) / 1e9, 2) for size in LLAMAS.values()]
    assert whole == [8.03, 70.55, 405.85]


def cost_table() -> str:
    rows = [
        "| model | study | passes | operations | H100 hours | scores on disk | outcomes |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, size in LLAMAS.items():
        for what, cost in (
            ("MMLU, 14 scores × 6 shares", run_cost(size, [686] * 14_042, questions=14_042, policies=84, scores=14)),
            (
                "1,000,000 texts of 1,024 tokens, measured",
                run_cost(size, [1024] * 10**6, questions=0, policies=0, scores=16),
            ),
        ):
            rows.append(
                f"| {model} | {what} | {cost.passes} | {cost.operations:.2g} | {cost.hours(400e12):,.0f} | "
                f"{cost.score_bytes / 1e9:,.1f} GB | {cost.outcome_bytes / 1e9:.2f} GB |"
            )
    return "\n".join(rows)


PARTS: dict[str, tuple[str, Callable[[], str]]] = {
    "supported families": ("docs/models.md", supported_families),
    "scores": ("docs/scores.md", score_table),
    "costs": ("docs/clusters.md", cost_table),
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
