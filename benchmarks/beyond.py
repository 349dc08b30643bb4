"""How many heads can be off at the same damage: ways to choose, to decide and to replace, on texts of several kinds.

    python benchmarks/beyond.py demo --texts web=c4.parquet:text maths=gsm8k/train.parquet:question+answer code=python \\
        --held-out novels=lambada.parquet:text law=mmlu/test.parquet:question:subject=professional_law --json beyond.json

Of each kind texts of ``--length`` tokens are cut out of the columns named, joined in their order; ``python`` is the standard
library that runs this. The first ones calibrate (of the kinds of ``--texts`` alone), the next give thresholds, and the last
are evaluated: the divergence KL(untouched ‖ changed) a token, and the rise of the loss, as means over a text's tokens but the
last. Of each curve every share is a policy; *static* curves have as many heads off on every text, those of the lowest mean
score. A curve's heads at equal damage are read off between its shares where it costs what the reference costs at 10 and at
20%; intervals (95%) resample texts within their kinds, the same for both curves.
"""

import argparse
import json
import sysconfig
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import headcount as hc
from headcount.calibration import Calibration
from headcount.models.instrument import instrument
from headcount.policies import Fixed, Policy, parse_policy, score_of
from headcount.summaries import Summary
from headcount.thresholding import thresholds

REFERENCE = "ahon_ln"
_LOW, _HIGH = (0.1, 0.2, 0.3, 0.4), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
#: Each curve, and the shares that are asked of it: up to where it costs more than the reference at 20%.
CURVES = {
    REFERENCE: (0.05, 0.1, 0.15, 0.2, 0.3),
    "ahon_ln+keep-first": _LOW[:3],
    "ahon_ln+mean+keep-first": _LOW[:3],
    "devg+mean+keep-first": _LOW,
    "static devg+mean+keep-first": _LOW,
    "ling+linear+keep-first": _HIGH[:6],
    "keptg+kept+keep-first": _HIGH,
    "static keptg+kept+keep-first": _HIGH,
    "jointg+kept+keep-first": _HIGH,
    "static jointg+kept+keep-first": _HIGH,
    "ahon_ln/token": _HIGH[1:6],
    "devg/token+mean+keep-first": _HIGH[1:6],
    "ling/token+linear+keep-first": (*_HIGH[2:], 0.8, 0.9),
    "keptg/token+kept+keep-first": (*_HIGH[2:], 0.8, 0.9),
    "random": (0.1,),
}
STATIC = "static "


def texts_of(source: str) -> Iterator[str]:
    """The texts of ``FILE:COLUMN+COLUMN:COLUMN=VALUE``, or of Python's standard library."""
    if source == "python":
        for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
            yield file.read_text(encoding="utf-8", errors="ignore")
        return
    path, columns, *where = source.split(":")
    frame = pd.read_parquet(path)
    for condition in where:
        name, _, value = condition.partition("=")
        frame = frame[frame[name] == value]
    yield from ("\n".join(map(str, row)) for row in frame[columns.split("+")].itertuples(index=False))


def rows_of(tokenizer: Any, texts: Iterable[str], number: int, length: int) -> list[list[int]]:
    """So many stretches of ``length`` tokens; each text begins one, and short ones are joined."""
    rows: list[list[int]] = []
    row: list[int] = []
    for text in texts:
        row = row or list(tokenizer("")["input_ids"])  # what every text begins with
        row += tokenizer(("\n\n" if len(row) > 1 else "") + text, add_special_tokens=False, verbose=False)["input_ids"]
        if len(row) >= length:
            rows.append(row[:length])
            row = []
        if len(rows) == number:
            return rows
    raise SystemExit(f"Only {len(rows)} texts of {length} tokens where {number} are needed.")


def policies_of(
    curves: Mapping[str, Sequence[float]], measured: Summary, calibration: Calibration
) -> dict[tuple[str, float], Policy]:
    """By curve and share."""
    found: dict[tuple[str, float], Policy] = {}
    for curve, shares in curves.items():
        name = curve.removeprefix(STATIC)
        for share in shares:
            policy = parse_policy(f"{name}:{share}").calibrated(calibration)
            if curve.startswith(STATIC):
                mean = measured.heads["mean"].sel(score=score_of(name))
                order = np.argsort(mean.values, axis=None)[: round(share * int(mean.notnull().sum()))]
                heads = [
                    (int(mean["layer"][place // mean.sizes["head"]]), int(place % mean.sizes["head"]))
                    for place in order
                ]
                policy = Fixed(heads, name=curve, instead=policy.instead, keep_first=policy.keep_first).calibrated(
                    calibration
                )
            elif policy.wants is not None:
                policy = policy.found(thresholds(measured[[score_of(name)]], [share]))
            found[curve, share] = policy
    return found


@torch.inference_mode()
def passed(model: Any, rows: Sequence[Sequence[int]], policy: Policy | None) -> tuple[Tensor, np.ndarray]:
    """Log-probabilities ``[row, token, vocabulary]`` and the share of heads (or of pairs) that was off, for each row."""
    with instrument(model, policy=policy) as probe:
        logits = model(torch.tensor(rows), use_cache=False).logits[:, :-1]
    return logits.float().log_softmax(-1), probe.share_off


def evaluate(
    model: Any, rows: Sequence[Sequence[int]], policies: dict[tuple[str, float], Policy], batch: int
) -> pd.DataFrame:
    """Columns text, curve, share_asked, share_off, kl, loss (its rise)."""
    found = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        before, _ = passed(model, part, None)
        targets = torch.tensor(part)[:, 1:, None]
        probability = before.exp()
        for (curve, share), policy in policies.items():
            after, off = passed(model, part, policy)
            kl = torch.einsum("rtv,rtv->rt", probability, before - after).double().mean(1)
            loss = (before.gather(-1, targets) - after.gather(-1, targets))[..., 0].double().mean(1)
            found += [
                {"text": start + i, "curve": curve, "share_asked": share, "share_off": off[i], "kl": kl[i].item(),
                 "loss": loss[i].item()} for i in range(len(part))
            ]  # fmt: skip
        print(f"{start + len(part)} of {len(rows)} texts", flush=True)
    return pd.DataFrame(found)


def at_equal_damage(shares: np.ndarray, kl: np.ndarray, damage: float) -> float:
    """The share at which a curve costs ``damage``, between its shares; its largest share where it never does."""
    order = np.argsort(shares)
    shares, kl = np.concatenate([[0], shares[order]]), np.maximum.accumulate(np.concatenate([[0], kl[order]]))
    return float(np.interp(damage, kl, shares))


def compare(table: pd.DataFrame, kinds: Sequence[str], *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
    """For each curve: times the reference's share at the reference's divergence at 10 and at 20%, with intervals."""
    wide = {
        name: table.pivot(index="text", columns=["curve", "share_asked"], values=name) for name in ("kl", "share_off")
    }
    columns, generator = wide["kl"].columns, np.random.default_rng(seed)
    curve_of, kinds_of = columns.get_level_values(0), np.array(kinds)
    of_kinds = [np.flatnonzero(kinds_of == kind) for kind in dict.fromkeys(kinds)]
    samples = [np.arange(len(kinds_of))] + [
        np.concatenate([generator.choice(texts, len(texts)) for texts in of_kinds]) for _ in range(draws)
    ]
    rows = []
    for curve in dict.fromkeys(curve_of):
        for reference_share in (0.1, 0.2):
            times = []
            for sample in samples:
                kl, off = wide["kl"].values[sample].mean(0), wide["share_off"].values[sample].mean(0)
                ours, theirs = curve_of == curve, curve_of == REFERENCE
                own = off[theirs]
                damage = np.interp(reference_share, np.concatenate([[0], own]), np.concatenate([[0], kl[theirs]]))
                times.append(at_equal_damage(off[ours], kl[ours], damage) / reference_share)
            low, high = np.quantile(times[1:], [0.025, 0.975])
            rows.append({"curve": curve, "at": reference_share, "times": times[0], "low": low, "high": high})
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--texts", nargs="+", required=True, metavar="KIND=SOURCE")
    parser.add_argument("--held-out", nargs="*", default=[], metavar="KIND=SOURCE", help="Never calibrated on.")
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--calibrate", type=int, default=128, help="Texts, in all.")
    parser.add_argument("--threshold", type=int, default=32, help="Texts that give thresholds, in all.")
    parser.add_argument("--evaluate", type=int, default=4, help="Texts of each kind.")
    parser.add_argument(
        "--curves", nargs="+", default=[*CURVES], help="Those of the list in this file; all, if not given."
    )
    parser.add_argument("--shares", nargs="+", type=float, help="Of each curve's shares these alone.")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--calibration", type=Path, help="A file to read instead, or to write.")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model, tokenizer = hc.load(args.model, dtype="float32")
    sources = dict(entry.split("=", 1) for entry in args.texts)
    held_out = dict(entry.split("=", 1) for entry in args.held_out)
    each, cut = -(-args.calibrate // len(sources)), -(-args.threshold // len(sources))
    rows: dict[str, list[list[int]]] = {}
    for kind, source in {**sources, **held_out}.items():
        before = (each + cut) if kind in sources else 0
        rows[kind] = rows_of(tokenizer, texts_of(source), before + args.evaluate, args.length)
    started = time.perf_counter()
    if args.calibration and args.calibration.exists():
        calibration = Calibration.load(args.calibration)
    else:
        calibration = hc.calibrate(model, [row for kind in sources for row in rows[kind][:each]])
        if args.calibration:
            calibration.save(args.calibration)
    print(f"calibrated in {time.perf_counter() - started:.0f} s", flush=True)
    scores = list(dict.fromkeys(score_of(curve.removeprefix(STATIC)) for curve in args.curves))
    measured = hc.summarise_heads(
        model,
        [row for kind in sources for row in rows[kind][each : each + cut]],
        scores=scores,
        calibration=calibration,
    )
    curves = {curve: [s for s in CURVES[curve] if s in (args.shares or CURVES[curve])] for curve in args.curves}
    policies = policies_of(curves, measured, calibration)
    texts = [row for kind in rows for row in rows[kind][-args.evaluate :]]
    kinds = [kind for kind in rows for _ in range(args.evaluate)]
    table = evaluate(model, texts, policies, args.batch)
    table["kind"] = [kinds[text] for text in table["text"]]
    found = compare(table, kinds)
    seen = {"calibrated": [kind in sources for kind in kinds]}
    print(table.groupby(["curve", "share_asked"], sort=False)[["share_off", "kl", "loss"]].mean().round(4).to_string())
    print(found.round(2).to_string())
    if args.json:
        facts = {
            **vars(args),
            "calibration": calibration.fingerprint,
            "model_fingerprint": calibration.facts.model_fingerprint,
        }
        content = {
            "arguments": facts,
            "texts": kinds,
            **seen,
            "outcomes": table.to_dict("list"),
            "compared": found.to_dict("list"),
        }
        args.json.write_text(json.dumps(content, default=str))


if __name__ == "__main__":
    main()
