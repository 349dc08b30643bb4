"""Scores of the untouched model, kept as passes find them: of each input, and of tokens as summaries."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

from headcount.models.act import Act
from headcount.models.layout import Layout
from headcount.models.prefixes import Segment
from headcount.scores import Score
from headcount.summaries import ScoreSummary
from headcount.units import UnitMap


class Recorded:
    """What some scores said of a plan's inputs.

    Args:
        units: the model's.
        scores: of inputs and of tokens.
        inputs: what is read.
        times: how often each input counts in summaries of tokens.

    Attributes:
        of_tokens: the summaries, by score.
    """

    def __init__(
        self, units: UnitMap, scores: Sequence[Score], inputs: Sequence[Sequence[int]], times: Sequence[int]
    ) -> None:
        self._units, self._times = units, times
        self._lengths = np.array([len(row) for row in inputs], dtype=np.int64)
        self._of_inputs = [score.id for score in scores if score.per == "input"]
        self._of_tokens = [score.id for score in scores if score.per == "token"]
        shape = len(self._of_inputs), len(inputs), len(units.layers), units.most_units
        self._values = np.full(shape, np.nan, np.float32)
        self.of_tokens: dict[str, ScoreSummary] = {}

    def note(self, act: Act, segments: Sequence[Segment], layout: Layout) -> None:
        """Keep what was found in one pass over a batch of segments."""
        if self._of_inputs:
            values = act.values()
            for row, segment in enumerate(segments):
                if segment.input is not None:
                    self._values[:, segment.input] = values[:, row]
        if self._of_tokens:
            self._summarise(act, segments, layout)

    def scores(self) -> xr.Dataset:
        """Those of inputs, in the form of ``Probe.scores``."""
        dims = ("example", "layer", "head")
        return xr.Dataset(
            {name: (dims, values) for name, values in zip(self._of_inputs, self._values, strict=True)},
            coords={
                "layer": self._units.layer_indices,
                "head": np.arange(self._units.most_units),
                "num_tokens": ("example", self._lengths),
            },
            attrs={"num_units": self._units.counts},
        )

    def _summarise(self, act: Act, segments: Sequence[Segment], layout: Layout) -> None:
        """Add the scores of a batch's tokens to their summaries, each as often as inputs have it."""
        real = layout.real.cpu().numpy()
        values = act.values_of_tokens(real)  # [score, token, layer, unit]
        times = np.array([sum(self._times[input] for input in segment.ending()) for segment in segments])
        of_token = np.repeat(times, real.sum(1))
        for name, of_score in zip(self._of_tokens, values, strict=True):
            for often in np.unique(of_token):
                found = ScoreSummary.of(of_score[of_token == often]).times(int(often))
                self.of_tokens[name] = self.of_tokens[name] + found if name in self.of_tokens else found
