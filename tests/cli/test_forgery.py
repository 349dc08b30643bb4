"""Runs and studies forged so that they pass their checksums are read, or refused in a sentence."""

import itertools
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from headcount.errors import HeadcountError
from headcount.files import checksum
from headcount.store import begin_run, open_run
from headcount.study.folder import open_study
from headcount.study.progress import study_progress, whats_left
from headcount.summaries import Summary
from tests.cli.finished import FACTS, scores
from tests.cli.test_damage import LOOKS, LOOKS_AT_STUDIES
from tests.store.parts import forge

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
    known = (run.thresholds(), run.metrics(), run.outcomes(), run.summary(), run.missing())
    scores = run.scores()
    return known, whats_left(run), repr(run), run.manifest.units, scores is None or scores.load()


def read_study():
    study = open_study("study")
    return study.tables(), study.faults(), study.outcomes(), study.score_ids(), study_progress(study)


def everything_of_a_run():
    return open_run("run").manifest.facts() | {
        "until_decided": {"metric": "acc", "margin": 0.1, "confidence": 0.9, "questions_a_look": 3},
        "searched": {"largest": 0.3, "resolution": 0.1, "scores": {"awft": {"within": 0.1, "beyond": None}}},
    }


def everything_of_a_study():
    facts = open_study("study").manifest.facts()
    return facts | {"study": facts["study"] | {"until_decided": {"margin": 0.1}, "search": {"resolution": 0.2}}}


@pytest.mark.parametrize(
    ("name", "everything", "read", "looks"),
    [
        ("run/run.json", everything_of_a_run, read_all, LOOKS),
        ("study/study.json", everything_of_a_study, read_study, LOOKS_AT_STUDIES),
    ],
)
@pytest.mark.usefixtures("run", "study")
def test_a_forged_manifest_is_read_or_refused(look, name, everything, read, looks):
    file, facts = Path(name), everything()
    whole, known = file.read_bytes(), []
    for path, value in itertools.product(places(facts), ODD):
        file.write_bytes(whole)
        forge(file, lambda _, path=path, value=value: put(facts, path, value))
        try:
            read()
        except HeadcountError as error:
            assert "\n" not in str(error)  # noqa: PT017
            continue
        known.append((path, value))
    assert len(known) > 50
    for path, value in known[:: max(1, len(known) // 12)]:
        file.write_bytes(whole)
        forge(file, lambda _, path=path, value=value: put(facts, path, value))
        for command in looks:
            look(*command, of=file.parent)


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
