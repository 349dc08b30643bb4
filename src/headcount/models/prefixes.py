"""Which inputs begin alike: a tree of token segments, so that what they share can be read once."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

#: A shared beginning shorter than this many tokens, or that spares fewer, is not worth a segment of its own.
MIN_SHARED = 8
MIN_SPARED = 16


@dataclass(kw_only=True, eq=False)
class Segment:
    """Tokens ``start`` to ``end`` of ``inputs``, which agree in them, though some may read them in a segment of their own.

    ``input`` is the one of them that ends here, None where all go on.
    """

    start: int
    end: int
    inputs: list[int]
    input: int | None = None
    children: list["Segment"] = field(default_factory=list)

    @classmethod
    def whole(cls, input: int, length: int) -> "Segment":
        """All of one input."""
        return cls(start=0, end=length, inputs=[input], input=input)

    @property
    def length(self) -> int:
        return self.end - self.start

    def ending(self) -> list[int]:
        """The inputs that end here, or in a segment that continues this one."""
        own = [] if self.input is None else [self.input]
        return own + [input for child in self.children for input in child.ending()]


def segment_tree(inputs: Sequence[Sequence[int]], *, share: bool = True) -> list[Segment]:
    """The segments that distinct ``inputs`` begin with, each with those that continue it.

    Inputs are the paths from a root to a segment with ``input``. A stretch of at least ``MIN_SHARED`` tokens that several
    inputs share is a segment of its own if that spares reading ``MIN_SPARED`` tokens. Without ``share`` every input is one
    segment.

    >>> [root] = segment_tree([[*range(20), 50], [*range(20), 60, 70]])
    >>> root.end, [(child.start, child.end, child.input) for child in root.children]
    (20, [(20, 21, 0), (20, 22, 1)])
    """
    if not share:
        return [Segment.whole(i, len(row)) for i, row in enumerate(inputs)]
    order = sorted(range(len(inputs)), key=lambda i: tuple(inputs[i]))
    shared = [_shared(inputs[a], inputs[b]) for a, b in pairwise(order)]
    return _split(inputs, order, shared, 0)


def _split(inputs: Sequence[Sequence[int]], order: list[int], shared: list[int], start: int) -> list[Segment]:
    """Segments of sorted inputs that agree up to ``start``; ``shared`` are the common lengths of neighbours."""
    segments: list[Segment] = []
    i = 0
    while i < len(order):
        stop = i + 1
        while stop < len(order) and shared[stop - 1] - start >= MIN_SHARED:
            stop += 1
        group = order[i:stop]
        end = min(shared[i : stop - 1], default=len(inputs[group[0]]))
        segment = Segment(start=start, end=end, inputs=group)
        shortest = len(inputs[group[0]]) == end  # it comes first
        if shortest:
            segment.input = group[0]
        rest = slice(i + shortest, stop)
        segment.children = _split(inputs, order[rest], shared[rest.start : max(rest.start, stop - 1)], end)
        if segment.children and (len(segment.children) + shortest - 1) * segment.length < MIN_SPARED:
            for child in segment.children:
                child.start = start
            segments += segment.children
            segment.children = []
            if not shortest:
                i = stop
                continue
        segments.append(segment)
        i = stop
    return segments


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two inputs begin with alike."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))
