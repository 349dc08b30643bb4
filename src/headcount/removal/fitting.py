"""The texts that heads are chosen, replaced and trained on, and how."""

from collections.abc import Sequence
from dataclasses import dataclass

from headcount.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What removal learns from, and how it is read.

    Attributes:
        rows: token ids of each text. Its first token does not count: attention sinks live there, and their outputs are
            like no others'.
        ridge: of predictions by the heads that stay: added to the diagonal of their covariance, in units of its mean.
        batch_tokens: tokens in a batch, padding included.
        seed: of the ``random`` score, and of the order of texts in training.

    Raises:
        InputError: an unusable ridge.
    """

    rows: Sequence[Sequence[int]] = ()
    ridge: float = 0.01
    batch_tokens: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.ridge > 0:
            raise InputError(f"ridge is greater than 0, not {self.ridge}.")

    @property
    def texts(self) -> list[Sequence[int]]:
        """The rows of which a token counts."""
        return [row for row in self.rows if len(row) > 1]


#: For what needs no texts.
NO_TEXTS = Fitting()


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """How to train what replaces removed heads; see ``distill``.

    Attributes:
        epochs: passes over the texts.
        learning_rate: of AdamW, at its highest.
        step_tokens: tokens in a step, padding included.
    """

    epochs: int = 3
    learning_rate: float = 3e-4
    step_tokens: int = 1024

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InputError(f"Distilling takes 1 pass over the texts or more, not {self.epochs}.")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"The learning rate lies between 0 and 1, not {self.learning_rate}; 3e-4 is the default.")
