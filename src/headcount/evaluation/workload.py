"""How much work questions are, and parts of it that each take about a minute: what an interruption costs at most."""

from collections.abc import Sequence
from dataclasses import dataclass

#: Batches' worth of tokens in a part: on two slow cores about a minute of the demo model, on a GPU of a model that fills it.
PART_BATCHES = 8
#: A token that is generated takes as long as this many that are read.
GENERATED = 12


@dataclass(frozen=True, kw_only=True)
class Workload:
    """How much some questions are.

    Attributes:
        tokens: that each question makes the model read under one policy; a generated one counts for several.
        at_once: tokens of a part at most, all its policies together, unless a single question has more.
        together: questions that are answered in one batch whatever their length, and are not parted.
    """

    tokens: tuple[int, ...]
    at_once: int
    together: int = 1

    def parts(self, questions: Sequence[int], *, policies: int, most: int) -> list[range]:
        """Parts of ``questions``, by their places, of at most ``most`` questions (or one batch that stays together).

        None goes beyond a multiple of ``most``.

        They depend on these numbers alone: an interrupted run has the parts of an uninterrupted one.
        """
        parts: list[range] = []
        most = max(most, self.together)
        for start in range(0, len(questions), most):
            end = min(start + most, len(questions))
            size, first = 0, start
            for place in range(start, end, self.together):
                batch = questions[place : min(place + self.together, end)]
                more = policies * sum(self.tokens[question] for question in batch)
                if place > first and size + more > self.at_once:
                    parts.append(range(first, place))
                    size, first = 0, place
                size += more
            parts.append(range(first, end))
        return parts


def even_size(tokens: Sequence[int], *, at_once: int, most: int) -> int:
    """How many inputs of these lengths make a part where all parts have one size: ``most``, or a half, a quarter, … of it.

    One part in ten may have more tokens than ``at_once``, so that one long text among a million does not make a million parts.
    """
    size = most
    while size > 1:
        parts = [sum(tokens[first : first + size]) for first in range(0, len(tokens), size)]
        if sum(part > at_once for part in parts) * 10 <= len(parts):
            break
        size //= 2
    return size
