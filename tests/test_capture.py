"""Recordings: written, read back, damaged, cut off."""

import gzip
import json
import os
from pathlib import Path
from typing import Literal

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from marketprism.capture import Damage, Frame, UnreadableError, Writer, read

FRAMES = [
    Frame(1_760_000_000_000_000_000 + n, "ws", "wss://x/ws#1", f'{{"n":{n},"text":"ä€\\n"}}')
    for n in range(500)
]
COMPRESSIONS: list[Literal["gzip", "zstd"]] = ["gzip", "zstd"]


def frames(path: Path) -> list[Frame]:
    return [f for _, f in read(path) if isinstance(f, Frame)]


def damages(path: Path) -> list[Damage]:
    return [f for _, f in read(path) if isinstance(f, Damage)]


def written(directory: Path, compression: Literal["gzip", "zstd"], many: list[Frame] = FRAMES) -> Path:
    writer = Writer(directory, "x", compression=compression)
    for frame in many:
        writer.write(frame)
    writer.close()
    assert writer.path is not None
    return writer.path


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_what_is_written_is_read_back(tmp_path: Path, compression: Literal["gzip", "zstd"]) -> None:
    path = written(tmp_path, compression)
    assert frames(path) == FRAMES
    assert [n for n, _ in read(path)] == list(range(1, 501))


def test_a_line_is_as_documented(tmp_path: Path) -> None:
    path = written(tmp_path, "gzip", [Frame(5, "ws", "u", "r", out=True), Frame(6, "rest", "u", "r")])
    lines = gzip.decompress(path.read_bytes()).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"t": 5, "via": "ws", "url": "u", "raw": "r", "out": True},
        {"t": 6, "via": "rest", "url": "u", "raw": "r"},
    ]


def test_plain_text_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"t":1,"via":"ws","url":"u","raw":"r"}\n\n{"t":2,"via":"ws","url":"u","raw":"r"}')
    assert [(n, f.t) for n, f in read(path) if isinstance(f, Frame)] == [(1, 1), (3, 2)]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_what_was_flushed_is_safe_before_the_end(
    tmp_path: Path, compression: Literal["gzip", "zstd"]
) -> None:
    writer = Writer(tmp_path, "x", compression=compression)
    for frame in FRAMES:
        writer.write(frame)
    writer.flush()
    assert writer.path is not None
    assert frames(writer.path) == FRAMES
    assert len(damages(writer.path)) == 1  # it has no end yet
    writer.close()
    assert damages(writer.path) == []


@pytest.mark.parametrize("compression", COMPRESSIONS)
@settings(deadline=None, max_examples=40)
@given(where=st.integers(1, 4_000))
def test_a_file_cut_off_anywhere_is_never_taken_for_whole(
    tmp_path_factory: pytest.TempPathFactory, compression: Literal["gzip", "zstd"], where: int
) -> None:
    directory = tmp_path_factory.mktemp("cut")
    path = written(directory, compression)
    data = path.read_bytes()
    path.write_bytes(data[: min(where, len(data) - 1)])
    found: list[tuple[int, Frame | Damage]] = []
    unreadable = ""
    try:
        found += read(path)
    except UnreadableError as e:
        unreadable = str(e)
    assert str(path) in unreadable if unreadable else isinstance(found[-1][1], Damage)
    whole = [f for _, f in found if isinstance(f, Frame)]
    assert whole == FRAMES[: len(whole)]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_several_compressed_streams_in_one_file(tmp_path: Path, compression: Literal["gzip", "zstd"]) -> None:
    a, b = (
        written(tmp_path / n, compression, part) for n, part in (("a", FRAMES[:200]), ("b", FRAMES[200:]))
    )
    a.write_bytes(a.read_bytes() + b.read_bytes())
    assert frames(a) == FRAMES
    assert damages(a) == []


@pytest.mark.parametrize(
    "bad", ["{", "[]", "5", '{"t":1}', '{"t":"x","via":"ws","url":"u","raw":"r"}', "\x00\xff", "[" * 100_000]
)
def test_a_damaged_line_is_told_and_passed_over(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "x.jsonl.gz"
    good = '{"t":1,"via":"ws","url":"u","raw":"r"}\n'
    path.write_bytes(gzip.compress((good + bad + "\n" + good).encode("latin-1")))
    found = list(read(path))
    assert [type(f) for _, f in found] == [Frame, Damage, Frame]
    assert found[1][0] == 2
    assert isinstance(found[1][1], Damage)
    assert found[1][1].line == 2
    assert found[1][1].reason


def test_damage_inside_the_compression_is_told(tmp_path: Path) -> None:
    many = [Frame(n, "ws", "u", os.urandom(30).hex()) for n in range(20_000)]
    for compression in COMPRESSIONS:
        path = written(tmp_path, compression, many)
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 8] = b"\xff" * 8
        path.write_bytes(data)
        found = list(read(path))
        assert any(isinstance(f, Damage) for _, f in found)
        assert len(found) > 1_000


@pytest.mark.parametrize(
    "content",
    [b"\x1f\x8bxxxx", b"\x28\xb5\x2f\xfdxxxxxx", b"\x89PNG\r\n\x1a\n" * 50, b"# A text\n\nwith words\n"],
)
def test_what_is_not_a_recording(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(UnreadableError, match="not a recording") as e:
        list(read(path))
    assert str(path) in str(e.value)
    assert "\n" not in str(e.value)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UnreadableError, match="cannot be read") as e:
            list(read(path))
        assert str(path) in str(e.value)


def test_an_empty_file_is_an_empty_recording(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    assert list(read(path)) == []


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_rotation_by_size_and_age(tmp_path: Path, compression: Literal["gzip", "zstd"]) -> None:
    writer = Writer(tmp_path, "x", compression=compression, rotate_bytes=1_000, rotate_s=10)
    many = [Frame(1_760_000_000_000_000_000 + n * 1_000_000_000, "ws", "u", "y" * 100) for n in range(40)]
    for frame in many:
        writer.write(frame)
    writer.close()
    files = sorted(tmp_path.iterdir(), key=lambda p: p.stat().st_mtime_ns)
    assert len(files) >= 4
    assert sorted((f for p in files for f in frames(p)), key=lambda f: f.t) == many
    again = Writer(tmp_path, "x", compression=compression)
    again.write(many[0])
    again.close()
    assert len(list(tmp_path.iterdir())) == len(files) + 1


def test_the_file_is_closed_when_it_is_left(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for compression in COMPRESSIONS:
        for n in range(5):
            path = written(tmp_path / str(n), compression)
            next(iter(read(path)))
            list(read(path))
    assert len(os.listdir("/proc/self/fd")) <= before


def test_frames_are_readable_by_others(tmp_path: Path) -> None:
    path = written(tmp_path, "zstd")
    with path.open("rb") as file:
        text = zstandard.ZstdDecompressor().stream_reader(file).read()
    assert len(text.splitlines()) == len(FRAMES)
