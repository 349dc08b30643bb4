"""How much of a model's MLPs can be off at the same damage, and how that compares with its heads, on texts of several kinds.

    python benchmarks/mlp.py demo --texts web=c4.parquet:text maths=gsm8k/train.parquet:question+answer code=python \\
        --held-out novels=lambada.parquet:text law=mmlu/test.parquet:question:subject=professional_law --json mlp.json

Texts are cut as in ``beyond.py``: of each kind of ``--texts`` the first ones give thresholds and static choices, the last
ones of every kind are evaluated: the divergence KL(untouched ‖ changed) a token, and the rise of the loss, as means over a
text's tokens but the last. ``KIND CURVE`` is off at each of its shares; *static* curves have the same units off on every text,
those of the lowest mean score; ``KIND CURVE & KIND CURVE`` has both off at once. Shares at a fixed divergence are read off
between a curve's shares; intervals (95%) resample texts within their kinds. Last, whether what is inactive on the first half
of a text is inactive on the second: the divergence on second halves, with neurons chosen on the first half, on the second
itself, and on other texts.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from beyond import at_equal_damage, rows_of, texts_of
from torch import Tensor

import headcount as hc
from headcount.models.instrument import instrument
from headcount.models.observe import attention_modules, mlps_of, units_of
from headcount.models.projection import output_projection
from headcount.policies import Fixed, Policy, parse_policy, score_of
from headcount.summaries import Summary
from headcount.thresholding import thresholds
from headcount.units import KindId

STATIC = "static "
_TOKENS, _FEW, _SOME = (0.3, 0.5, 0.7), (0.02, 0.05, 0.1), (0.05, 0.1, 0.2)
#: Each curve, and the shares that are asked of it.
CURVES: dict[str, Sequence[float]] = {
    "head ahon_ln": (0.05, 0.1, 0.2),
    "head ahon_ln/token+keep-first": (0.05, 0.1, 0.2),
    "neuron fhon_ln/token+keep-first": _TOKENS,
    "neuron fhon/token+keep-first": _TOKENS,
    "neuron rms_res/token+keep-first": _TOKENS,
    "neuron ahon_ln/token+keep-first": _TOKENS,
    "neuron griffin/token+keep-first": _TOKENS,
    "neuron gate/token+keep-first": _TOKENS,
    "neuron random/token+keep-first": (0.05, 0.1),
    "neuron rms_res+keep-first": _SOME,
    "neuron fhon_ln+keep-first": _SOME,
    "neuron griffin+keep-first": _SOME[:2],
    "neuron ahon_ln+keep-first": _SOME[:2],
    "neuron gate+keep-first": _SOME[:2],
    "neuron lthon_ln+keep-first": _FEW[:2],
    "neuron fthon+keep-first": _FEW[:2],
    "neuron random+keep-first": _FEW[:2],
    "static neuron rms_res+keep-first": _SOME,
    "mlp rms_res+keep-first": (0.04, 0.1),
    "mlp influence+keep-first": (0.04, 0.1),
    "head ahon_ln/token+keep-first & neuron fhon_ln/token+keep-first": (0.1,),
}
#: Of curves with two kinds, the share of the second: the first one's is that of the curve.
SECOND = 0.5
DAMAGES = (0.02, 0.05, 0.1)


def parts(curve: str, share: float) -> list[tuple[KindId, str, float]]:
    """Kind, name of a policy and share of each part."""
    found: list[Any] = []
    for i, part in enumerate(curve.removeprefix(STATIC).split(" & ")):
        kind, name = part.split(" ", 1)
        found.append((kind, name, SECOND if i else share))
    return found


def policies_of(
    curves: Mapping[str, Sequence[float]], measured: Mapping[str, Summary]
) -> dict[tuple[str, float], dict[KindId, Policy]]:
    """By curve and share, of each kind."""
    found: dict[tuple[str, float], dict[KindId, Policy]] = {}
    for curve, shares in curves.items():
        for share in shares:
            policies = found[curve, share] = {}
            for kind, name, of_kind in parts(curve, share):
                policy = parse_policy(f"{name}:{of_kind}")
                if curve.startswith(STATIC):
                    units = static(measured[kind], score_of(name), of_kind)
                    policy = Fixed(units, name=curve, keep_first=policy.keep_first)
                elif policy.wants is not None:
                    policy = policy.found(thresholds(measured[kind][[score_of(name)]], [of_kind]))
                policies[kind] = policy
    return found


def static(measured: Summary, score: str, share: float) -> list[tuple[int, int]]:
    """The share of units with the lowest means."""
    return lowest(measured.heads["mean"].sel(score=score).values, measured.layers, share)


def lowest(values: np.ndarray, layers: Sequence[int], share: float) -> list[tuple[int, int]]:
    order = np.argsort(values, axis=None)[: round(share * int(np.isfinite(values).sum()))]
    return [(layers[place], int(unit)) for place, unit in zip(*np.unravel_index(order, values.shape), strict=True)]


@torch.inference_mode()
def passed(
    model: Any, rows: Sequence[Sequence[int]], policies: dict[KindId, Policy]
) -> tuple[Tensor, list[np.ndarray]]:
    """Log-probabilities ``[row, token, vocabulary]``, and of each kind the share that was off, for each row."""
    with instrument(model, policy=policies or None) as probe:
        logits = model(torch.tensor(rows), use_cache=False).logits[:, :-1]
    return logits.float().log_softmax(-1), [probe.share_off, *(each.share_off for each in probe.beside.values())]


def evaluate(
    model: Any,
    rows: Sequence[Sequence[int]],
    policies: dict[tuple[str, float], dict[KindId, Policy]],
    batch: int,
    after: int = 0,
) -> pd.DataFrame:
    """Columns text, curve, share_asked, share_off, share_off_second, kl, loss (its rise), of the tokens from ``after`` on."""
    found = []
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        before, _ = passed(model, part, {})
        targets, probability = torch.tensor(part)[:, 1:, None], before.exp()
        for (curve, share), of_kinds in policies.items():
            log, off = passed(model, part, of_kinds)
            kl = torch.einsum("rtv,rtv->rt", probability, before - log)[:, after:].double().mean(1)
            loss = (before.gather(-1, targets) - log.gather(-1, targets))[:, after:, 0].double().mean(1)
            found += [
                {"text": start + i, "curve": curve, "share_asked": share, "share_off": off[0][i],
                 "share_off_second": off[1][i] if len(off) > 1 else np.nan, "kl": kl[i].item(), "loss": loss[i].item()}
                for i in range(len(part))
            ]  # fmt: skip
        if len(rows) > 1:
            print(f"{start + len(part)} of {len(rows)} texts", flush=True)
    return pd.DataFrame(found)


def samples_of(kinds: Sequence[str], draws: int, seed: int = 0) -> list[np.ndarray]:
    """All texts, then draws of them within their kinds."""
    generator, of = np.random.default_rng(seed), np.array(kinds)
    of_kinds = [np.flatnonzero(of == kind) for kind in dict.fromkeys(kinds)]
    return [np.arange(len(of))] + [
        np.concatenate([generator.choice(texts, len(texts)) for texts in of_kinds]) for _ in range(draws)
    ]


def at_damages(table: pd.DataFrame, kinds: Sequence[str], *, draws: int = 2000) -> pd.DataFrame:
    """Of each curve the share that is off where it costs a divergence, with intervals."""
    samples, rows = samples_of(kinds, draws), []
    for curve, of_curve in table.groupby("curve", sort=False):
        kl, off = (
            of_curve.pivot(index="text", columns="share_asked", values=name).values for name in ("kl", "share_off")
        )
        for damage in DAMAGES:
            shares = [at_equal_damage(off[sample].mean(0), kl[sample].mean(0), damage) for sample in samples]
            low, high = np.quantile(shares[1:], [0.025, 0.975])
            beyond = kl.mean(0).max() < damage  # its largest share costs less
            rows.append({"curve": curve, "kl": damage, "share": shares[0], "low": low, "high": high, "beyond": beyond})
    return pd.DataFrame(rows)


def halves(
    model: Any, rows: Sequence[Sequence[int]], others: Summary, score: str, share: float
) -> dict[str, np.ndarray]:
    """The divergence on the second half of each text, of neurons chosen on the first half, the second, and other texts."""
    half, layers = len(rows[0]) // 2, others.layers
    chosen: dict[str, list[list[tuple[int, int]]]] = {"first half": [], "second half": [], "other texts": []}
    for row in rows:
        with instrument(model, scores=[score], unit="neuron") as probe, torch.inference_mode():
            model(torch.tensor([row[:half]]), use_cache=False)
            model(torch.tensor([row[half:]]), use_cache=False)
        for name, values in zip(("first half", "second half"), probe.scores[score].values, strict=True):
            chosen[name].append(lowest(values, layers, share))
        chosen["other texts"].append(static(others, score, share))
    found = {name: np.zeros(len(rows)) for name in chosen}
    for name, sets in chosen.items():
        for i, units in enumerate(sets):
            policy: dict[KindId, Policy] = {"neuron": Fixed(units, keep_first=True)}
            found[name][i] = evaluate(model, [rows[i]], {(name, share): policy}, 1, after=half)["kl"].iloc[0]
    return found


def parameters(model: Any) -> dict[str, float]:
    """Of one head (its part of query and output projection) and of one neuron, over those of all blocks."""
    blocks = sum(p.numel() for name, p in model.named_parameters() if "embed" not in name and "lm_head" not in name)
    layer = units_of(model).layers[0]
    out = output_projection(attention_modules(model)[layer.index]).weight.numel()
    mlp = mlps_of(model)[0]
    own = 2 + (not mlp.plain)  # maps that hold a row or a column of it
    return {
        "head": 2 * out / layer.num_attention_heads / blocks,
        "neuron": own * mlp.down.weight.numel() / mlp.num_neurons / blocks,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--texts", nargs="+", required=True, metavar="KIND=SOURCE")
    parser.add_argument("--held-out", nargs="*", default=[], metavar="KIND=SOURCE", help="Give no thresholds.")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--threshold", type=int, default=24, help="Texts that give thresholds, in all.")
    parser.add_argument("--evaluate", type=int, default=4, help="Texts of each kind.")
    parser.add_argument(
        "--curves", nargs="+", default=[*CURVES], help="Those of the list in this file; all, if not given."
    )
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    model, tokenizer = hc.load(args.model, dtype="float32")
    sources, held_out = (dict(entry.split("=", 1) for entry in given) for given in (args.texts, args.held_out))
    cut = -(-args.threshold // len(sources))
    rows = {
        kind: rows_of(tokenizer, texts_of(source), (cut if kind in sources else 0) + args.evaluate, args.length)
        for kind, source in {**sources, **held_out}.items()
    }
    started = time.perf_counter()
    others = [row for kind in sources for row in rows[kind][:cut]]
    wanted: dict[KindId, list[str]] = {}
    for curve in args.curves:
        for kind, name, _ in parts(curve, 0):
            wanted.setdefault(kind, []).append(score_of(name))
    measured = {
        kind: hc.summarise_heads(model, others, scores=list(dict.fromkeys(scores)), unit=kind)
        for kind, scores in wanted.items()
    }
    print(f"thresholds in {time.perf_counter() - started:.0f} s", flush=True)
    texts = [row for kind in rows for row in rows[kind][-args.evaluate :]]
    kinds = [kind for kind in rows for _ in range(args.evaluate)]
    table = evaluate(model, texts, policies_of({curve: CURVES[curve] for curve in args.curves}, measured), args.batch)
    table["kind"] = [kinds[text] for text in table["text"]]
    found, part = at_damages(table, kinds), parameters(model)
    of_kind = found["curve"].str.removeprefix(STATIC).str.split(" ").str[0].map(part)
    counts = {kind: units_of(model, kind).num_units for kind in ("head", "neuron")}
    found["parameters"] = (
        found["share"] * of_kind * found["curve"].str.removeprefix(STATIC).str.split(" ").str[0].map(counts)
    )
    print(
        table.groupby(["curve", "share_asked"], sort=False)[["share_off", "share_off_second", "kl", "loss"]]
        .mean()
        .round(4)
        .to_string()
    )
    print(found.round(3).to_string())
    carried = halves(model, texts, measured["neuron"], "rms_res", 0.1) if "neuron" in measured else {}
    samples = samples_of(kinds, 2000)
    for name, values in carried.items():
        low, high = np.quantile([values[sample].mean() for sample in samples[1:]], [0.025, 0.975])
        print(
            f"10% of neurons by rms_res, chosen on {name}: {values.mean():.3f} [{low:.3f}, {high:.3f}] on second halves"
        )
    if args.json:
        content = {
            "arguments": vars(args), "texts": kinds, "outcomes": table.to_dict("list"), "at_damages": found.to_dict("list"),
            "halves": {name: values.tolist() for name, values in carried.items()}, "part_of_parameters": part,
        }  # fmt: skip
        args.json.write_text(json.dumps(content, default=str))


if __name__ == "__main__":
    main()
