"""Answer a plan's requests under several policies, computing once what they share.

Three things are shared, none of them an approximation:

- Inputs that begin alike (the choices of a question, the few-shot examples of a subject) read that beginning once, as
  long as what is off there does not depend on the rest of the input: for the untouched model, ``Fixed`` policies, and
  those that decide per token.
- Policies decide layer by layer, from what earlier layers produced. Until a policy switches its first head off on an input,
  its pass *is* the untouched model's; that one pass, where it is made, measures for all policies. Where a policy leaves it,
  its own pass starts at that layer from the hidden states kept there; policies that still agree go on together, and part in
  the same way.
- A policy under which nothing is off on an input has the untouched model's answer, to the last bit.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor
from transformers import PreTrainedModel

from headcount.attention.measurements import RAW_TENSORS
from headcount.calibration import Calibration
from headcount.errors import InputError
from headcount.evaluation.ledger import Ledger, Reading, Scored
from headcount.evaluation.plan import ScoringPlan
from headcount.evaluation.recorded import Recorded
from headcount.models.act import Act, Draws, Needs, always_off
from headcount.models.batching import Progress, batch_tokens_for, batches, check_tokens, no_progress
from headcount.models.calibrated import calibration_for
from headcount.models.capabilities import can_pack, can_restart, can_share_prefixes
from headcount.models.draws import draw_rows
from headcount.models.observe import scores_of, units_of
from headcount.models.prefixes import Segment, segment_tree
from headcount.models.segments import SegmentReader, Segments
from headcount.policies import Policy, check_policy
from headcount.scores import Score
from headcount.summaries import ScoreSummary
from headcount.units import KindId, checked_kind

#: A token of a prefix takes this fraction of the memory and time of a row's own token.
_PREFIX_DISCOUNT = 8
#: Policies from which on the untouched model's pass, a third of one of theirs where inputs begin alike, spares more than it
#: takes: what comes before their first head that is off, a fifteenth of a pass each on average, all of it where none is.
_MANY = 5
#: Batches' worth of tokens that wait for passes of their own before those passes are made.
_WAITING_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class ScoredPlan:
    """What running a ScoringPlan gave, for each policy, and the scores recorded of the untouched model."""

    of_policies: list[Scored]
    scores: xr.Dataset
    summaries: dict[str, ScoreSummary]  # of the scores of tokens, or of all


def run_plan(
    model: PreTrainedModel,
    plan: ScoringPlan,
    policies: Sequence[Policy | None] = (None,),
    *,
    scores: str | Iterable[str] = (),
    batch_tokens: int | None = None,
    seed: int = 0,
    calibration: Calibration | None = None,
    times: Sequence[int] = (),
    summarise: bool = False,
    unit: KindId = "head",
    progress: Progress = no_progress,
) -> ScoredPlan:
    """Score the plan's requests under every policy, in float32; None is the untouched model.

    Args:
        model: any model that headcount can measure.
        plan: what to read.
        policies: which heads are off.
        scores: ids to record of the untouched model, one example an input; those of tokens are summarised.
        batch_tokens: tokens in a batch, padding included; None for as many as suit the memory.
        seed: of the ``random`` score.
        calibration: for scores that need one; None for the policies'.
        times: how often each input counts in summaries; once, if not given.
        summarise: summarise the scores of inputs too, batch by batch.
        unit: what is measured and off.
        progress: called with (inputs answered, inputs in all), each input once a policy.

    Raises:
        InputError: a policy names heads or layers that the model lacks, token ids are none of the model's, or the untouched
            model's logits are NaN.
    """
    check_tokens([*plan.inputs, *plan.continuations], model)
    chosen = scores_of(model, scores, checked_kind(unit)) if scores else []
    run = _Run(
        model, plan, policies, chosen, batch_tokens, seed, calibration, times or [1] * len(plan.inputs), summarise, unit,
        progress,
    )  # fmt: skip
    with run.reader.reading():
        run.read()
    return ScoredPlan(
        of_policies=run.ledger.results(), scores=run.recorded.scores(), summaries=run.recorded.summaries()
    )


@dataclass(frozen=True, kw_only=True)
class _Waiting:
    """An input that some policies read in a pass of their own, from the decoder layer on where a head is first off."""

    input: int
    policies: tuple[int, ...]
    hidden: Tensor | None  # [token, hidden_size], what enters that layer; None where the pass starts with the first
    off: np.ndarray  # bool [layer, unit], what was off before it


class _Run:
    def __init__(
        self,
        model: PreTrainedModel,
        plan: ScoringPlan,
        policies: Sequence[Policy | None],
        scores: list[Score],
        batch_tokens: int | None,
        seed: int,
        calibration: Calibration | None,
        times: Sequence[int],
        summarise: bool,
        unit: KindId,
        progress: Progress,
    ) -> None:
        self._units, acting = units_of(model, unit), [policy for policy in policies if policy is not None]
        for policy in acting:
            check_policy(policy, self._units)
        self.reader = SegmentReader(
            model, packed=can_pack(model), calibration=calibration_for(model, acting, scores, calibration),
            needs=Needs.of(acting, scores), kind=unit,
        )  # fmt: skip
        self.ledger = Ledger(plan, len(policies), progress)
        self.recorded = Recorded(self._units, scores, plan.inputs, times, summarise=summarise)
        self._plan, self._scores, self._seed = plan, scores, seed
        self._batch_tokens = batch_tokens_for(model, batch_tokens)
        self._waiting: dict[int, list[_Waiting]] = defaultdict(list)
        self._num_read = 0
        self._nothing = np.zeros((len(self._units.layers), self._units.most_units), bool)
        self._pairs_before: dict[tuple[int, int], int] = {}  # policy, id of a segment → pairs off in what it continues

        self._names = ["no policy" if policy is None else policy.label for policy in policies]
        self._untouched = [p for p, policy in enumerate(policies) if policy is None]
        self._policies = {p: policy for p, policy in enumerate(policies) if policy is not None}
        always = {p: always_off(policy, self._units) for p, policy in self._policies.items()}
        #: What policies switch off that decide the same on every input, bool [layer, unit].
        self._fixed = {p: off for p, off in always.items() if off is not None}
        #: Those whose decisions look at nothing later, so that inputs share what they begin with.
        self._onward = [p for p, policy in self._policies.items() if p in self._fixed or policy.per == "token"]
        self._deciding = {p: policy for p, policy in self._policies.items() if p not in self._onward}
        self._restartable, self._sharing = can_restart(model), can_share_prefixes(model)
        # The untouched model's pass serves whoever has nothing off yet. Few policies start with a pass of their own.
        many = self._restartable and len(self._deciding) >= _MANY
        self._has_trunk = bool(self._untouched or scores or many)
        self._riding = self._deciding if self._has_trunk and self._restartable else {}
        if self._has_trunk:
            self._untouched += [p for p, off in self._fixed.items() if not off.any()]
        own = (self._first_off(p) for p in self._onward if p not in self._untouched)
        self._keep_hidden = self._restartable and (bool(self._riding) or any(own))

    def read(self) -> None:
        """Read every input under every policy."""
        inputs = self._plan.inputs
        if self._has_trunk or self._onward:
            whole = Needs.of(self._riding.values(), self._scores).of_rows & RAW_TENSORS
            self._read_segments(segment_tree(inputs, share=self._sharing and not whole), {}, {})
        self._read_waiting()
        alone = tuple(p for p in self._deciding if p not in self._riding)
        for policies in [alone] if alone and self._restartable else [(p,) for p in alone]:
            tokens = 0
            for i, row in enumerate(inputs):
                self._waiting[0].append(_Waiting(input=i, policies=policies, hidden=None, off=self._nothing))
                tokens += len(row)
                if len(policies) > 1 and tokens > _WAITING_BATCHES * self._batch_tokens:
                    self._read_waiting()
                    tokens = 0
            self._read_waiting()

    # Passes that inputs share: the untouched model's, and those of fixed policies beside it

    def _read_segments(self, segments: list[Segment], parent_of: dict[int, int], parents: dict[int, Segments]) -> None:
        """Read segments that continue those of one batch, then what continues them, depth first.

        Args:
            segments: which to read.
            parent_of: the row of each segment's parent in that batch, by ``id``; empty at the roots.
            parents: that batch as the untouched model and each fixed policy read it, by their rows in the ledger.
        """
        sizes = [segment.length + segment.start // _PREFIX_DISCOUNT for segment in segments]

        def run(batch: list[int]) -> dict[int, Segments]:
            return self._read_batch([segments[i] for i in batch], parent_of, parents)

        for batch, read in batches(sizes, self._batch_tokens, run, packed=self.reader.packed):
            chosen = [segments[i] for i in batch]
            if children := [child for segment in chosen for child in segment.children]:
                rows = {id(child): row for row, segment in enumerate(chosen) for child in segment.children}
                self._read_segments(children, rows, read)
            waiting = sum(len(self._plan.inputs[row.input]) for rows in self._waiting.values() for row in rows)
            if waiting > _WAITING_BATCHES * self._batch_tokens:
                self._read_waiting()

    def _read_batch(
        self, segments: list[Segment], parent_of: dict[int, int], parents: dict[int, Segments]
    ) -> dict[int, Segments]:
        texts = [None if segment.input is None else self._plan.inputs[segment.input] for segment in segments]
        rows = [self._plan.inputs[segment.inputs[0]][segment.start : segment.end] for segment in segments]
        wanted = [entry for row, segment in enumerate(segments) for entry in self.ledger.wanted(row, segment)]
        prefix_rows = [parent_of[id(segment)] for segment in segments] if parents else None
        keep_states = any(segment.children for segment in segments)
        read: dict[int, Segments] = {}
        trunk = None
        if self._has_trunk:
            act = Act(
                self._units, [*self._riding.values()], scores=self.recorded.kept, rows=len(rows), draws=self._draws(texts),
                seed=self._seed, sink=self.recorded.sink(segments),
            )  # fmt: skip
            trunk = self._forward(
                [self.ledger.untouched], rows, wanted, prefix=parents.get(self.ledger.untouched), parents=prefix_rows,
                act=act, keep_states=keep_states, keep_hidden=self._keep_hidden,
            )  # fmt: skip
            read[self.ledger.untouched] = trunk
            self.recorded.note(act, segments, trunk.layout)
            decided = act.decided()
            for row, segment in enumerate(segments):
                if (input := segment.input) is not None:
                    of_row = dict(zip(self._riding, decided[:, row], strict=True))
                    staying = self._part(input, of_row, self._nothing, self._nothing, partial(trunk.hidden_of, row))
                    for p in (*self._untouched, *staying):
                        self.ledger.settle(p, input, 0.0, like=self.ledger.untouched)
        for p in self._onward:
            if p in self._untouched:
                continue
            place = self._first_off(p) if trunk and self._restartable else 0
            act = Act(
                self._units, [self._policies[p]], rows=len(rows), draws=self._draws(texts), seed=self._seed, obeyed=0
            )  # fmt: skip
            read[p] = self._forward(
                [p], rows, wanted, prefix=parents.get(p), parents=prefix_rows, start=place,
                hidden=trunk.hidden_rows(place) if trunk and place else None, act=act, keep_states=keep_states,
            )  # fmt: skip
            self._settle_onward(p, act, segments)
        self._num_read += sum(segment.input is not None for segment in segments)
        self.ledger.report(self._num_read)
        return read

    def _first_off(self, p: int) -> int:
        """The place of the first decoder layer where a policy may switch something off."""
        off, units = self._fixed.get(p), self._units
        may = [i not in self._policies[p].exclude_layers for i in units.layer_indices] if off is None else off.any(1)
        return self.reader.place_of(units.layer_indices[int(np.argmax(may))])

    def _settle_onward(self, p: int, act: Act, segments: list[Segment]) -> None:
        """Inputs that end with a segment are answered under a policy that they share with others up to there."""
        off, heads, pairs = self._fixed.get(p), self._units.num_units, act.pairs_off()[0]
        for row, segment in enumerate(segments):
            so_far = int(pairs[row]) + self._pairs_before.pop((p, id(segment)), 0)
            self._pairs_before |= {(p, id(child)): so_far for child in segment.children}
            if segment.input is not None:
                share = so_far / (heads * segment.end) if off is None else off.sum() / heads
                self.ledger.settle(p, segment.input, share)

    def _part(
        self,
        input: int,
        decided: dict[int, np.ndarray],
        carried_out: np.ndarray,
        before: np.ndarray,
        hidden: Callable[[int], Tensor],
    ) -> list[int]:
        """Let policies that decided otherwise than was carried out wait for passes of their own; the rest agree.

        Args:
            input: which input was read.
            decided: bool [layer, head] of each policy.
            carried_out: bool [layer, head], what was off in the layers that ran.
            before: bool [layer, head], what was off in the layers before.
            hidden: from the place of a decoder layer to what entered it.
        """
        agreeing: list[int] = []
        groups: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        for p, of_policy in decided.items():
            differs = (of_policy != carried_out).any(axis=1)
            if differs.any():
                layer = int(differs.argmax())
                groups[layer, of_policy[layer].tobytes()].append(p)
            else:
                agreeing.append(p)
        for (layer, _), group in groups.items():
            place = self.reader.place_of(self._units.layer_indices[layer])
            off = before.copy()
            off[:layer] |= carried_out[:layer]
            self._waiting[place].append(
                _Waiting(input=input, policies=tuple(group), hidden=hidden(place) if place else None, off=off)
            )
        return agreeing

    # Passes of inputs that policies read on their own

    def _read_waiting(self) -> None:
        """Make the passes that wait, from the first decoder layer to the last; those they give rise to included."""
        while self._waiting:
            place = min(self._waiting)
            waiting = self._waiting.pop(place)
            lengths = [len(self._plan.inputs[row.input]) for row in waiting]
            for _, parting in batches(
                lengths,
                self._batch_tokens,
                lambda b, rows=waiting, place=place: self._read_rows([rows[i] for i in b], place),
                packed=self.reader.packed,
            ):
                for part in parting:
                    part()
                self.ledger.report()

    def _read_rows(self, waiting: list[_Waiting], place: int) -> list[Callable[[], Any]]:
        """One pass over whole inputs. What remains to be done when it has succeeded, for each row."""
        alive = [row for row in waiting if any(p not in self.ledger.failures for p in row.policies)]
        if not alive:
            return []
        policies = {p: self._deciding[p] for row in alive for p in row.policies}
        texts = [self._plan.inputs[row.input] for row in alive]
        obeyed = [row.policies[0] for row in alive]
        at = {p: number for number, p in enumerate(policies)}
        act = Act(
            self._units, [*policies.values()], rows=len(texts), draws=self._draws(texts), seed=self._seed,
            obeyed=[at[p] for p in obeyed],
        )  # fmt: skip
        wanted = [
            entry
            for i, row in enumerate(alive)
            for entry in self.ledger.wanted(i, Segment.whole(row.input, len(texts[i])))
        ]
        hidden = [row.hidden for row in alive if row.hidden is not None]
        states = self._forward(
            obeyed, texts, wanted, start=place, hidden=hidden if place else None, act=act,
            keep_hidden=any(len(row.policies) > 1 for row in alive),
        )  # fmt: skip
        decided = act.decided()  # [policy, row, layer, unit]

        def finish(i: int, row: _Waiting) -> None:
            carried_out = decided[at[obeyed[i]], i]
            of_policies = {p: decided[at[p], i] for p in row.policies}
            share = (row.off | carried_out).sum() / self._units.num_units
            like = obeyed[i] if share or not self._has_trunk else self.ledger.untouched
            for p in self._part(row.input, of_policies, carried_out, row.off, partial(states.hidden_of, i)):
                self.ledger.settle(p, row.input, share, like=None if p == like else like)

        return [lambda i=i, row=row: finish(i, row) for i, row in enumerate(alive)]

    def _forward(
        self,
        leads: Sequence[int],
        rows: Sequence[Sequence[int]],
        wanted: Sequence[tuple[int, int, int, int]],
        **options: Any,
    ) -> Segments:
        """Read rows and enter what was wanted of them into the ledger: all for one lead, or each row for its own.

        Raises:
            InputError: logits are NaN, and no policy is to blame that could be given up.
        """
        reading = Reading([entry[:3] for entry in wanted])
        logits, states = self.reader.read(rows, reading.places, **options)
        nats, greedy = reading.loglikelihoods(logits)
        lead_of = np.array([leads[row] if len(leads) > 1 else leads[0] for row, *_ in wanted], dtype=np.int64)
        slots = np.array([slot for *_, slot in wanted], dtype=np.int64)
        self.ledger.write(lead_of, slots, nats, greedy)
        if np.isnan(nats).any():
            row = wanted[int(np.isnan(nats).argmax())][0]
            again: dict[str, Any] = {**options, "keep_hidden": True}
            self._give_up(lead_of[np.isnan(nats)], self.reader.read(rows, **again)[1], row)
        return states

    def _give_up(self, leads: np.ndarray, states: Segments, row: int) -> None:
        where = "after the last layer"
        for place, hidden in enumerate(states.hidden[1:], start=states.start):
            if bool(states.layout.row(hidden, row).isnan().any()):
                where = f"first in decoder layer {place}"
                break
        for lead in set(leads.tolist()):
            name = "no policy" if lead == self.ledger.untouched else self._names[lead]
            message = f"The model's logits are NaN under {name}, {where}. Use float32 or bfloat16, or another policy."
            if lead == self.ledger.untouched:
                raise InputError(message)
            self.ledger.failures.setdefault(lead, message)

    def _draws(self, texts: Sequence[Sequence[int] | None]) -> Draws:
        """Random numbers for each row's whole text; None where the text goes on."""
        return lambda seed: draw_rows(texts, self._seed if seed is None else seed, self._nothing.shape)
