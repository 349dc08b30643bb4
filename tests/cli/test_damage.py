"""Runs and studies that were damaged end in a sentence, name what is wrong, are mended, and reach nothing outside."""

import itertools
import os
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.runs import contents


def moved_behind_a_link(file):
    """Its whole folder."""
    shutil.copytree(file.parent, "outside/all")
    shutil.move(file.parent, "moved")
    file.parent.symlink_to(Path("outside/all").resolve())


BEHIND = "link of its folder"
DAMAGE = {
    "flip": lambda file: file.write_bytes(bytes(b ^ (i == file.stat().st_size // 2) for i, b in enumerate(file.read_bytes()))),
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "empty": lambda file: os.truncate(file, 0),
    "gone": lambda file: file.unlink(),
    "folder": lambda file: (file.unlink(), file.mkdir()),
    "link": lambda file: (shutil.copy(file, "outside/stolen"), file.unlink(), file.symlink_to(Path("outside/stolen").resolve())),
    "pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    BEHIND: moved_behind_a_link,
    "format": lambda file: file.write_bytes(re.sub(rb'"format": \d', b'"format": 7', file.read_bytes())),
}  # fmt: skip
PARTS = ["run.json", "metrics.parquet", "scores/000001", "outcomes/000000-baseline", "outcomes/000003-awft"]
OF_STUDY = ["study.json", "tables/accuracy.csv", "tables/accuracy.parquet"]


def cases(files, every=1):
    """Damage of files, or of each kind to some of them in turn."""
    found = [
        (file, damage)
        for damage, file in itertools.product(DAMAGE, files)
        if ("/" in file or damage != BEHIND) and (".json" in file or damage != "format")
    ]
    return found[::every]


LOOKS = [
    ["status"],
    ["status", "--check"],
    ["thresholds", "--share", "0.1"],
    ["analyse", "--no-published"],
    ["export", "-f", "csv", "-o", "out"],
    ["report", "-o", "page.html"],
]
LOOKS_AT_STUDIES = [look for look in LOOKS if look[0] in ("status", "analyse", "report")]


def named(file, damage, said):
    return (file.parent.name if damage == BEHIND else file.name) in said.replace("\n", "")


def test_what_is_whole_is_said_to_be(look, run, study):
    for folder, commands in (("run", LOOKS), ("study", LOOKS_AT_STUDIES)):
        for command in commands:
            code, said = look(*command, of=folder)
            assert (code, "Not complete" in said) == (0, False), command


@pytest.mark.parametrize(("name", "damage"), cases(PARTS))
def test_damage_is_named_and_goes_no_further(look, run, name, damage):
    file = next(run.glob(f"{name}*"))
    DAMAGE[damage](file)
    outside = contents("outside")
    for command in LOOKS:
        code, said = look(*command)
        assert contents("outside") == outside
        if command == ["status", "--check"]:
            assert code > 0
            assert named(file, damage, said)
        if command[0] in ("report", "analyse") and damage == "gone" and "/" in name:
            assert code == 2 or "files that were there are gone" in said


@pytest.mark.parametrize(("name", "damage"), cases(PARTS, every=5))  # drawing takes seconds
def test_figures_of_damaged_runs_are_drawn_or_refused(look, run, name, damage):
    DAMAGE[damage](next(run.glob(f"{name}*")))
    outside = contents("outside")
    code, _ = look("figures", "-o", "figures")
    assert Path("figures").exists() == (code == 0)
    assert contents("outside") == outside


@pytest.mark.parametrize(
    ("name", "damage"), [*cases(OF_STUDY), *cases([f"runs/*/*/{part}" for part in PARTS], every=4)]
)
def test_damage_of_studies_is_named_and_goes_no_further(look, study, name, damage):
    file = next(study.glob(f"{name}*"))
    DAMAGE[damage](file)
    outside = contents("outside")
    for command in LOOKS_AT_STUDIES:
        code, said = look(*command, of="study")
        assert contents("outside") == outside
        if command == ["status", "--check"]:
            assert code == 1 or damage in ("folder", "link", "pipe", BEHIND)
            assert code > 0
            assert named(file, damage, said)


def test_what_is_not_headcounts_stays(look, run):
    for name in ("notes.txt", "scores/notes.txt", "scores/000001.safetensors", "outcomes/.hidden"):
        (run / name).write_text("mine")
    (run / "elsewhere").symlink_to(Path("outside").resolve())
    for command in LOOKS:
        assert look(*command)[0] == 0
    assert {file.read_text() for file in run.rglob("*") if file.name in ("notes.txt", ".hidden")} == {"mine"}
    assert (run / "scores/000001.safetensors").exists()
    assert (run / "elsewhere").is_symlink()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("made")


@pytest.fixture
def made(headcount, subjects, shared, tiny, outside):  # tiny: one thread
    """What each command made of the smallest model, and the command lines that make it."""
    study = {
        "models": [str(subjects / "model")], "data": [{"tasks": "sums", "limit": 2}], "scores": ["awft"],
        "shares": [0.3], "offline": True, "include_path": str(subjects / "tasks"),
    }  # fmt: skip
    Path("small.yaml").write_text(yaml.safe_dump(study))
    data = ("--task", "sums", "--limit", 2, "--include-path", subjects / "tasks", "--offline", "-o", "run")
    measure = ("measure", subjects / "model", *data, "--score", "awft")
    evaluate = ("evaluate", subjects / "model", *data, "-p", "awft:0.3")
    lines = {
        "measure": ("run", [measure, evaluate]),
        "evaluate": ("run", [evaluate]),
        "study": ("study", [("study", "small.yaml", "-o", "study")]),
    }
    for command in ("measure", "study"):
        folder, steps = lines[command]
        if not (shared / folder).exists():
            assert [headcount(*step)[0] for step in steps] == [0] * len(steps)
            shutil.move(folder, shared / folder)
        shutil.copytree(shared / folder, folder)
    return lines


CONTINUED = {
    "measure": ["run.json", "scores/", "outcomes/000000-baseline"],
    "evaluate": ["scores/", "run.json", "outcomes/000000-awft", "metrics.parquet"],
    "study": [*OF_STUDY, *(f"runs/*/*/{part}" for part in ("outcomes/000000-baseline", "run.json", "metrics", "scores/"))],
}  # fmt: skip


@pytest.mark.parametrize(
    ("command", "name", "damage"),
    [(command, *case) for command, files in CONTINUED.items() for case in cases(files, every=4)],
)
def test_a_command_that_continues_mends_or_refuses(headcount, made, command, name, damage):
    folder, steps = made[command]
    whole = contents(folder)
    file = next(Path(folder).glob(f"{name}*" if not name.endswith("/") else f"{name}*.safetensors"))
    DAMAGE[damage](file)
    outside = contents("outside")
    for step in steps:
        code, out, error = headcount(*step)
        assert "Traceback" not in out + error
        assert contents("outside") == outside
        if code == 2:
            assert damage in ("folder", "link", "pipe", BEHIND), error
            assert named(file, damage, error)
            return
        assert code == 0
    assert contents(folder) == whole
