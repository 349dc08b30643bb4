"""What is kept is used only where nobody else can have put it, and only whole."""

import os
from pathlib import Path

import pytest

from headcount import cache
from headcount.cache import changeable_by_others, kept

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
NOBODY = 65534


@pytest.fixture(autouse=True)
def _fresh(monkeypatch, tmp_path):
    monkeypatch.setenv("HEADCOUNT_CACHE", str(tmp_path / "cache"))
    cache._say.cache_clear()


def thing(content="built", *, stem="inner/thing-1", extension=".txt"):
    """Keep a file; what it holds, and whether it was made now."""
    made = []
    found = kept(stem, extension, lambda path: made.append(path.write_text(content)), Path.read_text)
    return found, bool(made)


def tree(stem="tree"):
    def make(path):
        (path / "deep").mkdir(parents=True)
        (path / "a").write_text("a")
        (path / "deep/b").write_text("b")

    return kept(stem, "", make, lambda path: path)


def test_it_is_made_once():
    assert [thing(), thing(), thing(stem="inner/thing-2")] == [("built", True), ("built", False), ("built", True)]


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_whatever_the_umask_it_is_used_again_and_nobody_else_can_write_it(umask, tmp_path):
    before = os.umask(umask)
    try:
        assert [thing()[1], thing()[1]] == [True, False]
        assert tree() == tree()
    finally:
        os.umask(before)
    for path in (tmp_path / "cache", *(tmp_path / "cache").rglob("*")):
        assert not path.stat().st_mode & 0o022, path


@pytest.mark.parametrize("damage", ["cut", "empty", "altered", "renamed", "linked", "group", "world", "folder"])
def test_what_was_damaged_or_may_be_anothers_is_made_again_and_said_once(damage, tmp_path):
    thing()
    (file,) = (tmp_path / "cache/inner").iterdir()
    if damage in ("cut", "empty", "altered"):
        file.write_text({"cut": "buil", "empty": "", "altered": "bui1t"}[damage])
    elif damage == "renamed":
        file.rename(file.with_name("thing-1-0123456789abcdef.txt"))
    elif damage == "linked":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        file.chmod(0o620 if damage == "group" else 0o602)
    with pytest.warns(UserWarning, match="thing-1.*txt' is not what was built here.* made again") as said:
        assert thing() == ("built", True)
    assert len(said) == 1
    assert thing() == ("built", False)
    assert [path.name for path in (tmp_path / "cache/inner").iterdir()] == [file.name]


@pytest.mark.parametrize("damage", ["cut", "gone", "more", "linked", "deep"])
def test_a_folder_is_whole_or_made_again(damage, tmp_path):
    folder = tree()
    if damage == "cut":
        (folder / "a").write_text("")
    elif damage == "gone":
        (folder / "deep/b").unlink()
    elif damage == "more":
        (folder / "c").write_text("")
    elif damage == "linked":
        (folder / "a").rename(tmp_path / "a")
        (folder / "a").symlink_to(tmp_path / "a")
    else:
        (folder / "deep").chmod(0o777)
    with pytest.warns(UserWarning, match="tree-.*is not what was built here"):
        assert tree() == folder
    assert sorted(path.name for path in folder.rglob("*")) == ["a", "b", "deep"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]


def test_what_cannot_be_used_is_made_again_once(tmp_path):
    thing("old")

    def use(path):
        if path.read_text() == "old":
            raise ValueError
        return path.read_text()

    with pytest.warns(UserWarning, match="is not what was built here"):
        assert kept("inner/thing-1", ".txt", lambda path: path.write_text("new"), use) == "new"
    with pytest.raises(AttributeError):
        kept("inner/thing-2", ".txt", lambda path: path.write_text("new"), lambda path: path.no_such)


def test_what_earlier_versions_kept_is_not_trusted_and_goes(tmp_path):
    thing()
    (file,) = (tmp_path / "cache/inner").iterdir()
    file.rename(file.with_name("thing-1.txt"))
    assert thing() == ("built", True)
    assert [path.name for path in (tmp_path / "cache/inner").iterdir()] == [file.name]


def test_a_maker_that_fails_leaves_nothing(tmp_path):
    def make(path):
        path.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        kept("inner/thing", ".txt", make, Path.read_text)
    assert list((tmp_path / "cache/inner").iterdir()) == []


def test_two_makers_at_once_both_end_well(tmp_path):
    folder = tmp_path / "cache"

    def while_another_makes_it(path):
        assert tree() is not None
        (path / "deep").mkdir(parents=True)
        (path / "a").write_text("a")
        (path / "deep/b").write_text("b")

    assert kept("tree", "", while_another_makes_it, lambda path: (path / "a").read_text()) == "a"
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("mode", [0o777, 0o707])
def test_a_folder_in_which_others_can_write_is_not_used(mode, tmp_path):
    thing("planted")
    (tmp_path / "cache/inner").chmod(mode)
    assert thing() == ("built", True)
    assert thing() == ("built", False)
    (tmp_path / "cache").chmod(mode)
    with pytest.warns(UserWarning, match=f"other users can write in '{tmp_path / 'cache'}'.*HEADCOUNT_CACHE"):
        assert thing() == (None, False)
    assert thing() == (None, False)  # said once


def test_in_a_cache_that_users_share_each_has_a_folder_of_its_own(tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o1777)
    assert tree().parent == tmp_path / f"cache/user-{os.geteuid()}"
    assert tree() == tree()


@root_only
def test_what_another_user_owns_is_not_used(tmp_path):
    thing("planted")
    (file,) = (tmp_path / "cache/inner").iterdir()
    os.chown(file, NOBODY, NOBODY)
    with pytest.warns(UserWarning, match="is not what was built here"):
        assert thing() == ("built", True)
    os.chown(tmp_path / "cache/inner", NOBODY, NOBODY)
    assert thing("mine") == ("mine", True)
    os.chown(tmp_path / "cache", NOBODY, NOBODY)
    with pytest.warns(UserWarning, match="cache' belongs to another user"):
        assert thing() == (None, False)


@root_only
def test_a_parent_that_another_user_owns_or_can_write(tmp_path):
    folder = tmp_path / "parent/cache"
    folder.mkdir(parents=True)
    assert changeable_by_others(folder) is None
    folder.parent.chmod(0o777)  # anybody can rename what is in it
    assert "other users can write in" in changeable_by_others(folder)
    folder.parent.chmod(0o1777)
    assert changeable_by_others(folder) is None
    os.chown(folder.parent, NOBODY, NOBODY)
    assert "belongs to another user" in changeable_by_others(folder)


def test_the_group_that_is_a_users_own_is_nobody_else(tmp_path, monkeypatch):
    import grp
    import pwd

    folder = tmp_path / "cache"
    folder.mkdir()
    folder.chmod(0o775)
    name, group = "ann", folder.stat().st_gid
    monkeypatch.setattr(pwd, "getpwuid", lambda _: pwd.struct_passwd((name, "", os.geteuid(), group, "", "", "")))
    for members, known, safe in (
        ((), "ann", True),
        (("ann",), "ann", True),
        (("ben",), "ann", False),
        ((), "users", False),
    ):
        monkeypatch.setattr(grp, "getgrgid", lambda _, k=known, m=members: grp.struct_group((k, "", group, list(m))))
        assert (changeable_by_others(folder) is None) is safe
