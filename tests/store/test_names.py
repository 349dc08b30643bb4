"""Names from strangers stay in their folder."""

from contextlib import suppress
from pathlib import PurePosixPath, PureWindowsPath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headcount.store.names import check_folder_name, slug

ANY = st.text(st.characters(exclude_categories=()), max_size=300) | st.text("../\\\\:~- aCON1\0\n", max_size=12)
ESCAPES = [
    "",
    ".",
    "..",
    "../../escaped",
    "a/b",
    "a\\b",
    "C:x",
    "/etc",
    "~",
    "~root",
    "-rf",
    ".git",
    "a.",
    " a",
    "a ",
    "nul",
]
ESCAPES += ["Con.txt", "lpt1", "a\0", "a\nb", "a\u202eb", "\ud800", "x" * 201, "ä" * 101, "a*", "a?", "<a>", "a|b", '"']


def stays_inside(name):
    for path in (PurePosixPath("runs", name), PureWindowsPath("runs", name)):
        assert path.parent == type(path)("runs")
        assert path.name == name
    assert not PureWindowsPath(name).is_reserved()
    assert not name.startswith((".", "-", "~"))
    assert not name.endswith((".", " "))
    assert 0 < len(name.encode()) <= 200


@given(ANY)
@example("nul." + "x" * 100)
@example("a" * 99 + ".b")
def test_a_label_becomes_a_file_inside(label):
    stays_inside(slug(label))
    assert slug(slug(label)) == slug(label)


@pytest.mark.parametrize("label", ["a/b", "../../etc", "ä b", "", ".", "x" * 300, "a\\b\0"])
def test_labels_become_folders_inside(label):
    name = slug(label)
    assert name not in ("", ".", "..")
    assert not set(name) & set("/\\\0")
    assert len(name) <= 100


@given(ANY)
def test_a_checked_name_stays_inside_or_is_refused(name):
    with suppress(ValueError):
        stays_inside(check_folder_name(name))


@pytest.mark.parametrize("name", ESCAPES)
def test_names_that_leave_their_folder_are_refused(name):
    with pytest.raises(ValueError, match="cannot name a folder: "):
        check_folder_name(name)


@pytest.mark.parametrize("name", ["small", "my study (v2)", "模型 שלום", "a.b", "nullo", "x" * 200])
def test_other_names_are_taken_as_they_are(name):
    assert check_folder_name(name) == name
