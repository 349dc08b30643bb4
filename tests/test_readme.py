"""The README says what the code does."""

import re
from pathlib import Path

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.models.families import FAMILIES

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- supported families: written by `python -m tests.test_readme` -->", "<!-- end -->"


def supported_families() -> str:
    """The README's list of tested families: model_type and class."""
    classes = [f"`{family}` {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family]}" for family in sorted(FAMILIES)]
    rows = [" | ".join(classes[i : i + 3] + [""] * (3 - len(classes[i : i + 3]))) for i in range(0, len(classes), 3)]
    return "\n".join(["| | | |", "|---|---|---|", *(f"| {row} |" for row in rows)])


def _parts() -> tuple[str, str, str]:
    match = re.fullmatch(rf"(.*{re.escape(START)}\n)(.*?)(\n{re.escape(END)}.*)", README.read_text("utf-8"), re.DOTALL)
    assert match is not None
    return match[1], match[2], match[3]


def test_supported_families_are_those_tested():
    assert _parts()[1] == supported_families(), "run `python -m tests.test_readme`"


if __name__ == "__main__":
    before, _, after = _parts()
    README.write_text(before + supported_families() + after, "utf-8")
