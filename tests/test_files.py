"""Files on disk: what is there is never harmed, whatever it is and whenever the writer dies."""

from __future__ import annotations

import os
import random
import stat
import threading
from pathlib import Path

import pytest

import prunefn as pf
from prunefn.files import atomic
from prunefn.files.sealed_json import read_sealed, write_sealed


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_links_stay_and_what_is_behind_them_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    (tmp_path / "one").symlink_to("real")
    (tmp_path / "two").symlink_to(tmp_path / "one")
    (tmp_path / "dangling").symlink_to("new")
    for name in ("two", "dangling"):
        atomic.write_text(tmp_path / name, name)
        assert (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == name
    assert (tmp_path / "real").read_text() == "two" and not (tmp_path / "real").is_symlink()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="loop"):
        atomic.write_text(tmp_path / "loop", "")


def test_pipes_get_the_bytes_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(pf.PruneError, match=r"pipe is a pipe that nobody reads; start its reader first"):
        atomic.write_text(tmp_path / "pipe", "text")
    got: list[str] = []
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    thread = threading.Thread(target=lambda: got.append(open(reader).read()))  # noqa: SIM115
    atomic.write_text(tmp_path / "pipe", "text")
    thread.start()
    thread.join()
    assert got == ["text"] and stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    with pytest.raises(pf.PruneError, match="is a folder; give the name of a file in it"):
        atomic.write_text(tmp_path, "")
    atomic.write_text("/dev/null", "text")
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    assert os.listdir(tmp_path) == ["pipe"]


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device: '/dev/full'"):
        atomic.write_text("/dev/full", "text")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        atomic.write_text(tmp_path / "nowhere" / "a", "text")


def test_modes_follow_the_umask_or_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "old").touch()
    (tmp_path / "old").chmod(0o640)
    before = os.umask(0o077)
    try:
        atomic.write_text(tmp_path / "old", "text")
        atomic.write_text(tmp_path / "new", "text")
        with atomic.workroom(tmp_path / "room") as room:
            (room / "made").write_text("text")
            atomic.move(room / "made", tmp_path / "moved")
    finally:
        os.umask(before)
    assert [mode(tmp_path / n) for n in ("old", "new", "moved")] == [0o640, 0o600, 0o600]


def test_left_over_parts_go_but_not_those_of_living_writers(tmp_path: Path) -> None:
    (tmp_path / "a.0123abcd.part").write_text("of a dead writer")
    (tmp_path / "a.89abcdef.part").mkdir()
    (tmp_path / "a.b.0123abcd.part").write_text("of another file")
    (tmp_path / "a.old.part").write_text("of a user")

    def fill(name: str) -> None:
        atomic.write_text(tmp_path / "a", "inner")
        assert Path(name).exists()
        Path(name).write_text("outer")

    with atomic.workroom(tmp_path / "a") as room:
        atomic.write(tmp_path / "a", fill)
        assert room.exists() and (tmp_path / "a").read_text() == "outer"
    assert sorted(os.listdir(tmp_path)) == ["a", "a.b.0123abcd.part", "a.old.part"]


@pytest.mark.parametrize("seed", range(5))
def test_any_order_of_writes_ends_with_the_last_text(seed: int, tmp_path: Path) -> None:
    rng, wanted = random.Random(seed), {}
    names = ["a", "a.b", "with space", "ünïcödé 模型", "x" * 255, "é" * 127, "[*]", "-a"]
    for _ in range(60):
        name, text = rng.choice(names), str(rng.random())
        match rng.randrange(4):
            case 0:
                (tmp_path / f"{atomic._prefix(Path(name))}.{rng.getrandbits(32):08x}.part").write_text("left over")
                continue
            case 1:

                def fails(part: str, text: str = text) -> None:
                    Path(part).write_text(text)
                    raise KeyboardInterrupt

                with pytest.raises(KeyboardInterrupt):
                    atomic.write(tmp_path / name, fails)
                continue
            case _:
                atomic.write_text(tmp_path / name, text)
                wanted[name] = text
    for name in wanted:
        atomic.write_text(tmp_path / name, wanted[name])
    found = {p.name: p.read_text() for p in tmp_path.iterdir() if p.name in names}
    assert found == wanted
    left = {p.name.rsplit(".", 2)[0] for p in tmp_path.iterdir() if p.name not in names}
    assert not left & {atomic._prefix(Path(name)) for name in wanted}


def test_every_bit_of_sealed_json_counts(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_sealed(path, {"format": 1, "values": {"a": 0.25, "b": ["x", "ü"]}})
    good = path.read_bytes()
    assert read_sealed(path) == {"format": 1, "values": {"a": 0.25, "b": ["x", "ü"]}}
    for n in range(8 * len(good)):
        bad = bytearray(good)
        bad[n // 8] ^= 1 << n % 8
        path.write_bytes(bad)
        with pytest.raises(ValueError, match=r"."):
            read_sealed(path)
