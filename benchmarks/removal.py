r"""Static removal against zeroing chosen anew for each input, by the rise of the loss on texts of several domains.

::

    headcount select demo --texts web.parquet --texts code.jsonl --share 0.4 -o heads.json
    python benchmarks/removal.py --heads heads.json --calibrate web.parquet code.jsonl \
        --domain novels=novels.jsonl --domain law=law.jsonl --json out.json --plot out.png

Heads are removed as selected, and replaced on the calibration texts. Each domain's texts are then read by the model with
heads zeroed by their score on each text (thresholds from that domain's own scores, as in the paper), and by the model
without the removed heads. The rise is the change of a text's mean next-token loss, averaged over texts, with a 95%
bootstrap interval over texts. What is in the JSON file already is not computed again. ``--plot FILE`` draws it.
"""

import argparse
import json
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

import headcount as hc
from headcount.measure import token_ids
from headcount.models.batching import input_device, pad, run_in_batches
from headcount.models.instrument import instrument
from headcount.removal.distill import distill
from headcount.removal.fitting import Distillation, Fitting
from headcount.removal.replace import replace_heads
from headcount.texts import load_texts
from headcount.units import UnitSet

PER_INPUT = "ahon_ln"


def text_losses(model: Any, rows: list[list[int]], policy: Any = None, batch_tokens: int = 2048) -> tuple[Any, float]:
    """Mean next-token loss of each text, nats; and the mean share of heads zeroed."""
    losses = np.zeros(len(rows))
    with instrument(model, policy=policy) if policy else nullcontext() as probe, torch.inference_mode():

        def run(batch: list[int]) -> None:
            tokens, mask = pad([rows[i] for i in batch], input_device(model))
            logits = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
            for place, i in enumerate(batch):
                length = len(rows[i])
                targets = tokens[place, 1:length]
                losses[i] = torch.nn.functional.cross_entropy(logits[place, : length - 1].float(), targets).item()

        run_in_batches([len(row) for row in rows], batch_tokens, run)
        share = float(probe.share_off.mean()) if probe else 0.0
    return losses, share


def rows_of(sources: Iterable[str], tokenizer: Any, count: int, length: int) -> list[list[int]]:
    texts = [text for source in sources for text in load_texts([source], limit=count)]
    return [row for row in (row[:length] for row in token_ids(texts, tokenizer)) if len(row) > 1]


def interval(changes: Any, resamples: int = 10_000) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    means = changes[rng.integers(0, len(changes), (resamples, len(changes)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def draw(results: list[dict[str, Any]], file: Path) -> None:
    """The rise of the loss against the realised share of heads, a panel a domain, with the intervals."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    domains = list(dict.fromkeys(row["domain"] for row in results))
    ways = [way for way in dict.fromkeys(row["way"] for row in results) if way != "untouched"]
    figure, axes = pyplot.subplots(
        1, len(domains), figsize=(2.4 * len(domains), 3), sharey=True, squeeze=False, layout="constrained"
    )
    for domain, panel in zip(domains, axes[0], strict=True):
        for way in ways:
            of_way = [row for row in results if row["way"] == way and row["domain"] == domain]
            of_way.sort(key=lambda row: row["share_realised"])
            shares = [0.0, *(100 * row["share_realised"] for row in of_way)]
            (line,) = panel.plot(shares, [0.0, *(row["rise"] for row in of_way)], marker="o", markersize=3, label=way)
            low, high = ([0.0, *(row[end] for row in of_way)] for end in ("low", "high"))
            panel.fill_between(shares, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set_title(domain)
        panel.set_xlabel("heads zeroed or removed, %")
        panel.grid(alpha=0.3)
    axes[0][0].set_ylabel("rise of the loss, nats a token")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="demo")
    parser.add_argument("--heads", required=True, help="selection; its first heads are removed, share by share")
    parser.add_argument("--name", help="of the selection, for the table [default: the file's]")
    parser.add_argument("--calibrate", nargs="+", required=True, help="text, .jsonl or .parquet files")
    parser.add_argument("--domain", nargs="+", required=True, metavar="NAME=FILE", help="texts to measure on")
    parser.add_argument("--texts", type=int, default=64, help="calibration texts from each file")
    parser.add_argument("--domain-texts", type=int, default=64, help="texts of each domain")
    parser.add_argument("--max-length", type=int, default=256, help="first tokens of each text")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2, 0.3, 0.4])
    parser.add_argument("--replace", default="refit")
    parser.add_argument("--ridge", type=float, default=0.01)
    parser.add_argument("--distill", type=int, default=0, help="passes of training after that")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path, help="a picture of everything in the JSON file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, tokenizer = hc.load(options.model, dtype=options.dtype)
    selection = hc.Selection.load(options.heads)
    selection.check(model, options.model)
    way = f"static, {options.name or Path(options.heads).stem}"
    domains = {}
    for given in options.domain:
        name, _, file = given.partition("=")
        domains[name] = rows_of([file], tokenizer, options.domain_texts, options.max_length)
    rows = rows_of(options.calibrate, tokenizer, options.texts, options.max_length)
    fitting = Fitting(rows=rows, ridge=options.ridge, batch_tokens=4096)

    results: list[dict[str, Any]] = json.loads(options.json.read_text()) if options.json.exists() else []
    done = {(row["way"], row["share_asked"], row["domain"]) for row in results}
    baseline = {row["domain"]: np.array(row["losses"]) for row in results if row["way"] == "untouched"}

    def keep(way: str, share: float, domain: str, losses: Any, realised: float) -> None:
        row = {
            "way": way,
            "share_asked": share,
            "domain": domain,
            "share_realised": realised,
            "losses": losses.tolist(),
        }
        if domain in baseline:
            changes = losses - baseline[domain]
            low, high = interval(changes)
            row |= {"rise": float(changes.mean()), "low": low, "high": high}
            print(
                f"{way:<28} {domain:<10} {100 * realised:5.1f}%  {changes.mean():+.3f} [{low:+.3f}, {high:+.3f}]",
                flush=True,
            )
        else:
            baseline[domain] = losses
        results.append(row)
        options.json.write_text(json.dumps(results, indent=1) + "\n")

    for name, rows in domains.items():
        if name not in baseline:
            keep("untouched", 0.0, name, *text_losses(model, rows))
        waiting = [share for share in options.shares if (PER_INPUT, share, name) not in done]
        if waiting:
            table = hc.measure_heads(model, rows, scores=[PER_INPUT], batch_tokens=2048)
            cuts = hc.thresholds(table, waiting)[PER_INPUT]
            for share in waiting:
                policy = hc.Threshold(PER_INPUT, cuts.sel(share=share).item(), share=share)
                keep(PER_INPUT, share, name, *text_losses(model, rows, policy))

    total = sum(layer.num_attention_heads for layer in selection.model.layers)
    for share in options.shares:
        heads = UnitSet(selection.heads[: int(share * total + 1e-9)])
        waiting = [name for name in domains if (way, share, name) not in done]
        if waiting and len(heads) >= int(share * total + 1e-9):
            replacement = replace_heads(model, heads, options.replace, fitting)
            if options.distill:
                replacement = distill(model, replacement, fitting, Distillation(epochs=options.distill))
            with replacement.applied(model):
                for name in waiting:
                    keep(way, share, name, text_losses(model, domains[name])[0], len(heads) / total)
    if options.plot:
        draw(results, options.plot)


if __name__ == "__main__":
    main()
