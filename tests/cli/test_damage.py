"""Runs that were damaged, altered or forged end in a sentence, name what is wrong, and reach nothing outside."""

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from headcount.errors import HeadcountError
from headcount.heads import LayerHeads
from headcount.store import begin_run, open_run
from headcount.store.described import noted_facts
from headcount.store.files import checksum
from headcount.study.progress import run_progress, whats_left
from headcount.summaries import Summary
from tests.runs import contents
from tests.store.parts import forge, metrics, outcomes

IDS = ["awft", "ahon_ln"]
LAYERS = [LayerHeads(index=i, num_attention_heads=4, num_key_value_heads=2, head_dim=8).facts() for i in range(2)]
FACTS = {
    "model": {"name": "some/model", "fingerprint": "ab", "dtype": "float32", "num_heads": 8, "layers": LAYERS},
    "data": {"tasks": ["sums"], "num_questions": 6, "num_inputs": 6},
    "settings": {"seed": 0, "shard": 3},
}
LOOKS = [
    ["status"],
    ["status", "--check"],
    ["thresholds", "--share", "0.1"],
    ["analyse", "--no-published"],
    ["export", "-f", "csv", "-o", "out"],
    ["report", "-o", "page.html"],
]
DAMAGE = {
    "flip": lambda file: file.write_bytes(bytes(b ^ (i == file.stat().st_size // 2) for i, b in enumerate(file.read_bytes()))),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "gone": lambda file: file.unlink(),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "link": lambda file: (shutil.copy(file, "outside/stolen"), file.unlink(), file.symlink_to(Path("outside/stolen").resolve())),
    "pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "link of its folder": lambda file: (
        shutil.copytree(file.parent, "outside/all"),
        shutil.move(file.parent, "moved"),
        file.parent.symlink_to(Path("outside/all").resolve()),
    ),
}  # fmt: skip
FILES = ["run.json", "metrics.parquet", "scores/000001", "outcomes/000000-baseline", "outcomes/000003-awft"]
CHECKED = [case for case in itertools.product(FILES, DAMAGE) if "/" in case[0] or case[1] != "link of its folder"]


def scores(examples):
    rng = np.random.default_rng(examples)
    values = {name: (("example", "layer", "head"), rng.random((examples, 2, 4), np.float32)) for name in IDS}
    tokens = ("example", rng.integers(1, 9, examples))
    return xr.Dataset(values, coords={"layer": [0, 1], "head": np.arange(4), "num_tokens": tokens})


def rows(policy, score, share, first):
    frame = outcomes(policy).assign(score=score, share_asked=share, threshold=share, doc_id=range(first, first + 3))
    return frame.assign(acc=[1.0, 0.0, 1.0], loglikelihoods=[[-1.0, -2.0]] * 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run."""
    path = tmp_path_factory.mktemp("made") / "run"
    with begin_run(path, **FACTS) as run:
        run.update(scores=noted_facts(IDS), measured={"scores": IDS, "num_inputs": 6})
        for shard in range(2):
            run.add_scores(shard, scores(3))
        cuts = {name: ("share", [0.1, 0.2]) for name in IDS}
        run.set_thresholds(xr.Dataset(cuts, coords={"share": [0.1, 0.2]}))
        nan = float("nan")
        for policy, score, share in (("baseline", "", nan), ("awft:0.1", "awft", 0.1)):
            for first in (0, 3):
                run.add_outcomes([policy], range(first, first + 3), rows(policy, score, share, first))
        asked = [{"policy": "baseline"}, {"policy": "awft:0.1", "score": "awft", "share_asked": 0.1, "threshold": 0.1}]
        run.update(policies=asked)
        run.set_metrics(pd.concat([metrics("baseline"), metrics("awft:0.1")]))
    return path


@pytest.fixture
def run(made, tmp_path):
    """A copy of it, beside a folder that is somebody else's."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/diary.txt").write_text("dear")
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture
def look(headcount):
    """Runs a command that only looks; it may refuse, in one sentence."""

    def look(command, *arguments):
        code, out, error = headcount(command, "run", *arguments)
        assert code in (0, 1, 2)
        assert "Traceback" not in out + error
        assert (code == 2) == ("Error: " in error)
        return code, out + error

    return look


def test_what_is_whole_is_said_to_be(look, run):
    for command in LOOKS:
        code, said = look(*command)
        assert (code, "Not complete" in said) == (0, False), command


@pytest.mark.parametrize(("name", "damage"), CHECKED)
def test_damage_is_named_and_goes_no_further(look, run, name, damage):
    file = next(run.glob(f"{name}*"))
    DAMAGE[damage](file)
    outside = contents("outside")
    for command in LOOKS:
        code, said = look(*command)
        assert contents("outside") == outside
        if command == ["status", "--check"]:
            assert code > 0
            assert (file.parent.name if damage == "link of its folder" else file.name) in said.replace("\n", "")
        if command[0] in ("report", "analyse") and damage == "gone" and "/" in name:
            assert code == 2 or "files that were there are gone" in said


def test_what_is_not_headcounts_stays(look, run):
    for name in ("notes.txt", "scores/notes.txt", "scores/000001.safetensors", "outcomes/.hidden"):
        (run / name).write_text("mine")
    (run / "elsewhere").symlink_to(Path("outside").resolve())
    for command in LOOKS:
        assert look(*command)[0] == 0
    assert {file.read_text() for file in run.rglob("*") if file.name in ("notes.txt", ".hidden")} == {"mine"}
    assert (run / "scores/000001.safetensors").exists()
    assert (run / "elsewhere").is_symlink()


ODD = [None, -1, 10**30, "../../x\x00", [], {}, [[[]]], float("nan"), True]


def places(facts, path=()):
    """Every entry of nested facts, by the names that lead to it."""
    for name in facts if isinstance(facts, dict) else range(min(2, len(facts))) if isinstance(facts, list) else ():
        yield (*path, name)
        yield from places(facts[name], (*path, name))


def put(facts, path, value):
    changed = json.loads(json.dumps(facts))
    within = changed
    for name in path[:-1]:
        within = within[name]
    within[path[-1]] = value
    return changed


def read_all():
    run = open_run("run")
    known = (run.thresholds(), run.metrics(), run.outcomes(), run.summary(), run.missing(), run_progress(run))
    scores = run.scores()
    return known, whats_left(run), repr(run), run.manifest.model.geometry, scores is None or scores.load()


def test_a_forged_manifest_is_read_or_refused(look, run):
    whole = (run / "run.json").read_bytes()
    facts = open_run(run).manifest.facts() | {
        "until_decided": {"metric": "acc", "margin": 0.1, "confidence": 0.9, "questions_a_look": 3},
        "searched": {"largest": 0.3, "resolution": 0.1, "scores": {"awft": {"within": 0.1, "beyond": None}}},
    }
    read = []
    for path, value in itertools.product(places(facts), ODD):
        (run / "run.json").write_bytes(whole)
        forge(run / "run.json", lambda _, path=path, value=value: put(facts, path, value))
        try:
            read_all()
        except HeadcountError as error:
            assert "\n" not in str(error)  # noqa: PT017
            continue
        read.append((path, value))
    assert len(read) > 50
    for path, value in read[:: max(1, len(read) // 12)]:
        (run / "run.json").write_bytes(whole)
        forge(run / "run.json", lambda _, path=path, value=value: put(facts, path, value))
        for command in LOOKS:
            look(*command)


def forged_shard(file, content):
    """Other content under a name that fits it, which the manifest knows."""
    file.unlink()
    stem = file.stem.rpartition("-")[0]
    new = file.with_name(f"{stem}-{checksum(content)}{file.suffix}")
    new.write_bytes(content)
    old, now = (f"{file.parent.name}/{path.name}" for path in (file, new))
    forge("run/run.json", lambda facts: facts | {"files": [now if name == old else name for name in facts["files"]]})


@pytest.mark.parametrize("kind", ["scores", "summaries"])
def test_forged_headers_of_shards_are_read_or_refused(run, kind):
    if kind == "summaries":
        with begin_run(run, **FACTS) as opened:
            opened.add_summary(0, Summary.of(scores(3)))
    (file, *_) = sorted((run / kind).iterdir())
    content, manifest = file.read_bytes(), (run / "run.json").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    facts = json.loads(header["__metadata__"]["headcount"])
    headers = [put(header, path, value) for path, value in itertools.product(places(header), ODD)]
    inner = (put(facts, path, value) for path, value in itertools.product(places(facts), ODD))
    headers += [header | {"__metadata__": {"headcount": json.dumps(changed)}} for changed in inner]
    for changed in headers[:: 4 if kind == "summaries" else 1]:  # 4 meets each odd value as often
        for old in (run / kind).glob(f"{file.stem[:6]}*"):
            old.unlink()
        file.write_bytes(content)
        (run / "run.json").write_bytes(manifest)
        packed = json.dumps(changed).encode()
        forged_shard(file, len(packed).to_bytes(8, "little") + packed + content[8 + length :])
        try:
            read_all()
        except HeadcountError as error:
            assert "\n" not in str(error)  # noqa: PT017


def test_forged_answers_are_read_or_refused(run):
    file = next((run / "outcomes").glob("000003-awft*"))
    content, manifest, good = file.read_bytes(), (run / "run.json").read_bytes(), pd.read_parquet(file)
    with begin_run("other", **FACTS) as other:
        for column, value in itertools.product([*good.columns, "more"], [None, "x", 7, [[1]], {"a": 1}]):
            frames = [good.assign(**{column: [value] * 3}), good.drop(columns=column, errors="ignore"), good.iloc[:2]]
            for frame in frames:
                shutil.rmtree("other/outcomes", ignore_errors=True)
                other.add_outcomes(["awft:0.1"], [3, 4, 5], frame)
                (made,) = Path("other/outcomes").iterdir()
                for old in (run / "outcomes").glob("000003-awft*"):
                    old.unlink()
                file.write_bytes(content)
                (run / "run.json").write_bytes(manifest)
                forged_shard(file, made.read_bytes())
                try:
                    read_all()
                except HeadcountError as error:
                    assert "\n" not in str(error)  # noqa: PT017
