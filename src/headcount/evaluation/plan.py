"""Log-likelihood requests reduced to the distinct inputs that answering them takes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from headcount.errors import InputError


@dataclass(frozen=True, kw_only=True)
class ScoringPlan:
    """Requests reduced to the distinct inputs that the model must read.

    A request asks for the log-likelihood of a continuation after a context. The model reads context and continuation
    without the last token; requests that share this input share its forward pass.
    """

    inputs: list[list[int]]
    input_of: list[int]
    """For each request, its input."""
    continuations: list[list[int]]
    """For each request, the tokens that the last positions of its input predict."""
    num_truncated: int
    """Inputs whose start was cut because they were longer than the model's positions, as lm-eval does."""

    @classmethod
    def from_requests(cls, requests: Iterable[tuple[Sequence[int], Sequence[int]]], max_length: int) -> "ScoringPlan":
        """From (context, continuation) token ids.

        Raises:
            InputError: a continuation is empty or longer than ``max_length``.
        """
        found: dict[tuple[int, ...], int] = {}
        input_of, continuations, truncated = [], [], set()
        for context, continuation in requests:
            if not 0 < len(continuation) <= max_length:
                raise InputError(
                    f"A continuation of {len(continuation)} tokens cannot be scored: it must have between 1 and {max_length} "
                    "tokens, the model's positions."
                )
            whole = (*context, *continuation)
            row = whole[-(max_length + 1) :][:-1]
            index = found.setdefault(row, len(found))
            if len(whole) > max_length + 1:
                truncated.add(index)
            input_of.append(index)
            continuations.append(list(continuation))
        return cls(
            inputs=[list(row) for row in found], input_of=input_of, continuations=continuations, num_truncated=len(truncated)
        )  # fmt: skip

    def targets(self) -> list[dict[int, list[tuple[int, int, int]]]]:
        """For each input, what its positions predict: position → (token, request, place in the continuation)."""
        wanted: list[dict[int, list[tuple[int, int, int]]]] = [{} for _ in self.inputs]
        for request, (index, continuation) in enumerate(zip(self.input_of, self.continuations, strict=True)):
            first = len(self.inputs[index]) - len(continuation)
            for place, token in enumerate(continuation):
                wanted[index].setdefault(first + place, []).append((token, request, place))
        return wanted
