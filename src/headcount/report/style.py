"""How a score is drawn, the same on the page and on paper: a colour and a marker a family, a dash a normalisation."""

from dataclasses import dataclass

from headcount.policies import is_random
from headcount.scores import all_scores

# Families are told apart by marker and dash as well, never by colour alone. Contrast is 3:1 or more on the page's paper.
_LIGHT = ("#b8460e", "#00796b", "#2185c5", "#9a6a00", "#a83f8a", "#1f4e9c", "#5f6f1d")
_DARK = ("#f28a52", "#45c4ab", "#7cc7f2", "#e3b341", "#e48fcd", "#6ea8ff", "#b9c76a")
_SYMBOLS = ("square", "diamond", "triangle-up", "triangle-down", "pentagon", "circle", "star")
_DASHES = {"": "solid", "ln": "dash", "hn": "dot"}
ACCENT = "#1f4e9c"  # what a figure is about, where it is not about one score
RUNS = (ACCENT, "#b8460e", "#00796b", "#a83f8a", "#9a6a00")  # runs beside one another
GREY = "#7c8288"  # the random baseline, on light and on dark


@dataclass(frozen=True, kw_only=True)
class ScoreStyle:
    """Colours as hexadecimal RGB; ``dash`` and ``symbol`` by plotly's names."""

    light: str
    dark: str
    dash: str
    symbol: str


def score_style(score: str) -> ScoreStyle:
    """The style of a score or curve; one that is not registered gets that of a family of its own."""
    if is_random(score):
        return ScoreStyle(light=GREY, dark=GREY, dash="solid", symbol="x")
    family, suffix = _family(score)
    families = list(dict.fromkeys(_family(known.id)[0] for known in all_scores() if not is_random(known.id)))
    at = families.index(family) if family in families else len(families)
    turn = at % len(_LIGHT)
    return ScoreStyle(light=_LIGHT[turn], dark=_DARK[turn], dash=_DASHES[suffix], symbol=_SYMBOLS[turn])


def _family(score: str) -> tuple[str, str]:
    """("ahon", "ln") of "ahon_ln": the quantity, and what it is normalised by."""
    stem, _, suffix = score.rpartition("_")
    return (stem, suffix) if stem and suffix in _DASHES else (score, "")
