"""The book in C, the book in Python and a naive dictionary: the same for any messages, and for any bytes."""

import gzip
import importlib.machinery
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import sysconfig
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import msgspec
import pytest
from captures import FOLDER, capture
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from marketprism import book as module
from marketprism.book import PureBook, pure_normalise
from marketprism.pattern import PurePattern

ROOT = Path(__file__).parents[1]
SANITIZED = "MARKETPRISM_TEST_SANITIZED_BOOK"  # the path of a build of _book.c that is to be tested instead


def _native() -> ModuleType | None:
    path = os.environ.get(SANITIZED)
    if path is None:
        return sys.modules.get("marketprism._book")
    loader = importlib.machinery.ExtensionFileLoader("marketprism._book", path)
    spec = importlib.util.spec_from_loader("marketprism._book", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


C = _native()
native = pytest.mark.skipif(C is None, reason="marketprism._book is not built; scripts/setup builds it")
BOTH = (
    C is not None and SANITIZED not in os.environ
)  # the sanitized run is long enough without the one in Python
NAMES = ["c", "python"] if BOTH else ["c" if C else "python"]
BOOKS: list[Any] = ([C.Book] if C else []) + ([PureBook] if BOTH or not C else [])
NORMALISE: list[Any] = ([C.normalise] if C else []) + ([pure_normalise] if BOTH or not C else [])
PATTERNS: list[Any] = ([C.Pattern] if C else []) + ([PurePattern] if BOTH or not C else [])
each_book = pytest.mark.parametrize("make", BOOKS, ids=NAMES)
each_normalise = pytest.mark.parametrize("normalise", NORMALISE, ids=NAMES)
each_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=NAMES)


def _compiler() -> str | None:
    header = Path(sysconfig.get_path("include"), "Python.h")
    return (shutil.which("cc") or shutil.which("gcc")) if header.exists() else None


@pytest.mark.skipif(_compiler() is None, reason="no C compiler, or no Python.h")
@pytest.mark.skipif(bool(os.environ.get("MARKETPRISM_PURE_PYTHON")), reason="MARKETPRISM_PURE_PYTHON is set")
def test_where_there_is_a_compiler_the_book_is_in_c() -> None:
    assert module.NATIVE, "run scripts/setup"


@pytest.mark.parametrize("pure", ["", "1"])
def test_the_environment_chooses_the_book_in_python(pure: str) -> None:
    code = "from marketprism import book as r; print(r.NATIVE, r.Book is r.PureBook)"
    env = os.environ | {"MARKETPRISM_PURE_PYTHON": pure}
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    built = importlib.util.find_spec("marketprism._book") is not None
    assert told.stdout == ("True False\n" if built and not pure else "False True\n"), told.stderr


# --- figures -------------------------------------------------------------------------------------------------------

LONG = "1" * 128

# A figure as it comes, and as it goes out.
FIGURES = {
    '"61837.63000000"': "61837.63000000",
    '"0.1"': "0.1",
    '"00.10"': "00.10",
    '".5"': ".5",
    '"5."': "5.",
    "1": "1",
    "0.5": "0.5",
    "0.00000001": "0.00000001",
    "1e-05": "0.00001",
    "1E-05": "0.00001",
    "1.423e-4": "0.0001423",
    "2.2e3": "2200.0",
    "1e5": "100000.0",
    "1.5e1": "15",
    "1.50e1": "15.0",
    "1.0e0": "1.0",
    "12.5e-1": "1.25",
    "125e-2": "1.25",
    "125e-3": "0.125",
    '"1e-05"': "0.00001",
    '"007e2"': "700.0",
    '".5e+3"': "500.0",
    '"5.e3"': "5000.0",
    "1e40": "1" + 40 * "0" + ".0",
    "1e-40": "0." + 39 * "0" + "1",
    f'"{LONG}"': LONG,
    LONG: LONG,
    f'"0.{LONG[2:]}"': f"0.{LONG[2:]}",
    f"0.{100 * '0'}1e100": "0.1",
    "123456789012345678901234567890e-25": "12345.6789012345678901234567890",
}
NEGATIVE = {"-1": "-1", '"-0.5"': "-0.5", "-2.2e3": "-2200.0", "-1e-7": "-0.0000001"}
ZEROS = {
    "0": "0",
    "-0": "-0",
    '"0.000"': "0.000",
    "0E-8": "0.00000000",
    "0e5": "0.0",
    "0.0e1": "0",
    "-0e0": "-0",
    f'"{126 * "0"}.0"': 126 * "0" + ".0",
    "0e-40": "0." + 40 * "0",
}
NO_FIGURES = [
    *(
        '""',
        '"nan"',
        '"NaN"',
        '"inf"',
        '"-Infinity"',
        '"1_0"',
        '" 1"',
        '"1 "',
        '"+1"',
        '"0x10"',
        '"."',
        '"-"',
    ),
    *('"--1"', '"1.2.3"', '"1,2"', '"1e"', '"1e+"', '"e5"', '"1e5.0"', '"٣"', '"\\u0031"', '"1\\n"', '"new"'),
    *("null", "true", "false", "[]", "{}", '{"a":1}', '["1"]', '"' + 300 * "x" + '"', '"' + 30 * "é" + '"'),
]
ABSURD = [
    *("1e41", "1e-41", "0e41", "1e9999999999999999999999", "1e-9999999999999999999999", '"1e999"', "-1e999"),
    *(f'"{LONG}1"', f"{LONG}1", f'"-{LONG}"', "1" + 42 * "0" + "e-1"),
]


@each_normalise
@pytest.mark.parametrize(("sent", "out"), (FIGURES | ZEROS).items())
def test_a_figure_goes_out_as_sent_without_exponent(
    normalise: Callable[[bytes], bytes], sent: str, out: str
) -> None:
    assert normalise(f'[[{sent},"1"]]'.encode()) == f'[["{out}","1"]]'.encode()
    assert normalise(f'[["1",{sent}]]'.encode()) == f'[["1","{out}"]]'.encode()
    assert Decimal(out) == Decimal(sent.strip('"'))


@each_normalise
@pytest.mark.parametrize(("sent", "out"), NEGATIVE.items())
def test_a_price_may_be_negative_and_a_quantity_not(
    normalise: Callable[[bytes], bytes], sent: str, out: str
) -> None:
    assert normalise(f'[[{sent},"1"]]'.encode()) == f'[["{out}","1"]]'.encode()
    with pytest.raises(ValueError, match="quantity is below 0: '-"):
        normalise(f'[["1",{sent}]]'.encode())


@each_normalise
@pytest.mark.parametrize("sent", NO_FIGURES + ABSURD)
def test_what_is_no_figure_is_refused_and_named(normalise: Callable[[bytes], bytes], sent: str) -> None:
    inner = sent.encode()[1:-1] if sent.startswith('"') else sent.encode()
    shown = repr(inner[:40].decode(errors="replace"))
    what = "is out of range" if sent in ABSURD else "is not a decimal number"
    with pytest.raises(ValueError, match=r".") as error:
        normalise(f'[["1","1"],["2",{sent}],["x","x"]]'.encode())
    assert str(error.value) == f"quantity {what}: {shown}"
    if sent != '"new"':
        with pytest.raises(ValueError, match=r".") as error:
            normalise(f'[[{sent},"1"]]'.encode())
        assert str(error.value) == f"price {what}: {shown}"


# --- arrays --------------------------------------------------------------------------------------------------------


def _nested(deep: int) -> str:
    return "[" * deep + "]" * deep


ARRAYS = {
    "[]": "[]",
    " [ ] ": "[]",
    '[["1","2"]]': '[["1","2"]]',
    '[["1","2"],["1","0"],["1","3"]]': '[["1","2"],["1","0"],["1","3"]]',
    '\t[\r[\n"1" , 2 ] ,[ 3,"4"]\n]\n': '[["1","2"],["3","4"]]',
    '[["41006.8","0.6","0","1"]]': '[["41006.8","0.6"]]',
    '[["1","2",[]],["1","2",{"a":[null,true,false,-1.5e+3,{}]},"\\u00e9\\ud83d\\ude00\\"]"]]': '[["1","2"],["1","2"]]',
    '[["new",1.5,10.0],["change",2,5],["delete",3,0.0],["delete",4,7]]': (
        '[["1.5","10.0"],["2","5"],["3","0.0"],["4","0.0"]]'
    ),
    '[ [ "delete" , 3 , -7 , "x" ] ]': '[["3","0.0"]]',
    f'[["1","2",{_nested(30)}]]': '[["1","2"]]',
}
SHAPELESS = [
    *(
        "",
        " ",
        "[",
        "]",
        "[[]",
        "[]]",
        "[],",
        "null",
        "5",
        '"x"',
        "{}",
        "[5]",
        "[{}]",
        "[null]",
        '["1","2"]',
        "[,]",
    ),
    *(
        '[["1","2"],]',
        '[["1","2"]] x',
        '[["1","2"]]\0',
        '[["1","2",]]',
        '[["1" "2"]]',
        '[["1","2"]["3","4"]]',
    ),
    *(
        '[["1","2"',
        '[["1","2"]',
        '[["1","2',
        '[["1",01]]',
        '[["1",1.]]',
        '[["1",.5]]',
        '[["1",+1]]',
        "[[1,NaN]]",
    ),
    *(
        "[[1,-]]",
        "[[1,1e]]",
        "[[1,2,tru]]",
        '[[1,2,"\t"]]',
        '[[1,2,"\\x"]]',
        '[[1,2,"\\u12g4"]]',
        "[[1,2,{1:2}]]",
    ),
    *('[[1,2,"\\ud800"]]', '[[1,2,"\\udc00"]]', '[[1,2,"\\ud800\\u0041"]]', "[[1,2,[3}]]", '[[1,2,{"a" 1}]]'),
    *(
        '[[1,2,{"a":1,}]]',
        "[[1,2,[3,]]]",
        "[[1,2]}",
        '[[1,2,"',
        '[[1,2,"\\',
        "[[1,2,{",
        '[[1,2,{"a"',
        '[[1,2,{"a":',
    ),
    *(f'[["1","2",{_nested(31)}]]', f'[["1",{_nested(31)}]]', _nested(33), _nested(100_000), "[" * 100_000),
    *('[["1","2",' + '{"a":' * 100_000, '\ufeff[["1","2"]]', '[["x","1"],["1"', '[["1","-1"],[]'),
]
TOO_SHORT = {
    "[[]]": "[]",
    '[["1","2"],["1"]]': '["1"]',
    '[["new"]]': '["new"]',
    '[[ "new" , 1 ]]': '[ "new" , 1 ]',
    '[[[]],["x","y"]]': "[[]]",
}


@each_normalise
@pytest.mark.parametrize(("sent", "out"), ARRAYS.items())
def test_arrays(normalise: Callable[[bytes], bytes], sent: str, out: str) -> None:
    assert normalise(sent.encode()) == out.encode()


@each_normalise
@pytest.mark.parametrize("sent", SHAPELESS, ids=lambda sent: sent[:20])
def test_what_is_no_array_of_arrays_is_refused(normalise: Callable[[bytes], bytes], sent: str) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        normalise(sent.encode())
    shown = repr(sent.encode()[:40].decode(errors="replace"))
    assert str(error.value) == f"levels are not a JSON array of arrays: {shown}"


@each_normalise
@pytest.mark.parametrize(("sent", "level"), TOO_SHORT.items())
def test_a_level_without_a_figure_is_refused(
    normalise: Callable[[bytes], bytes], sent: str, level: str
) -> None:
    with pytest.raises(ValueError, match=r".") as error:
        normalise(sent.encode())
    assert str(error.value) == f"level has no price and quantity: {level!r}"


@each_normalise
def test_a_text_that_breaks_off_anywhere_is_refused(normalise: Callable[[bytes], bytes]) -> None:
    text = b'[["new",1.5e-3,10.0,{"a":[1,"\\u00e9"]}],["2","3"]]'
    for length in range(len(text)):
        with pytest.raises(ValueError, match="levels are not a JSON array of arrays"):
            normalise(text[:length])


@each_book
def test_levels_come_in_anything_with_bytes(make: Any) -> None:
    book = make()
    text = b'[["1","2"]]'
    raw = msgspec.json.decode(b'{"b": [["1","2"]] }', type=dict[str, msgspec.Raw])["b"]
    for levels in (text, bytearray(text), memoryview(b" " + text)[1:], raw):
        assert book.apply(levels, levels) == (text, text)
    for nothing in (None, "[]", 5, []):
        with pytest.raises(TypeError, match="bytes-like"):
            book.apply(b"[]", nothing)
        with pytest.raises(TypeError, match="bytes-like"):
            book.load(nothing, b"[]")
    with pytest.raises(TypeError):
        book.apply(b"[]")


# --- the book ------------------------------------------------------------------------------------------------------

Naive = dict[Decimal, tuple[str, str]]  # what goes out
Change = tuple[str, tuple[str, str]]  # a level as it comes, and as it goes out

space = st.sampled_from(["", "", "", " ", "\n\t"])
price = st.one_of(st.integers(1, 60).map(lambda n: n / 4), st.integers(-3, 10**6).map(lambda n: n / 16))
forms = st.sampled_from(["{:.4f}", "{:.8f}", "{:.4f}" + 40 * "0", "{:e}", "{!r}", "{:.17g}"])
quantity = st.sampled_from(["0", "0.000", "0e-8", "-0", "1", "2.5", "7e1", "1e-05", "0." + 60 * "1"])
more = st.sampled_from(["", "", ',"0","1"', ",[]", ',{"a":[1,"]"]},null'])
action = st.sampled_from(["", "", "", '"new",', '"change",', '"delete",'])


@st.composite
def change(draw: Any) -> Change:
    p, q, word, gap = draw(forms).format(draw(price)), draw(quantity), draw(action), draw(space)
    quote_p, quote_q = draw(st.sampled_from(["", '"'])), draw(st.sampled_from(["", '"']))
    sent = f"[{gap}{word}{gap}{quote_p}{p}{quote_p}{gap},{gap}{quote_q}{q}{quote_q}{draw(more)}{gap}]{gap}"
    return sent, (written_out(p), "0.0" if word == '"delete",' else written_out(q))


def written_out(figure: str) -> str:
    if "e" not in figure:
        return figure
    exponent = Decimal(figure).as_tuple().exponent
    return f"{Decimal(figure):f}" + (".0" if isinstance(exponent, int) and exponent > 0 else "")


changes = st.lists(change(), max_size=7)
message = st.tuples(changes, changes)
Message = tuple[list[Change], list[Change]]


def wire(levels: list[Change]) -> bytes:
    return f"[{','.join(sent for sent, _ in levels)}]".encode()


def out(levels: list[tuple[str, str]]) -> bytes:
    return json.dumps(levels, separators=(",", ":")).encode()


def follow(sides: tuple[Naive, Naive], message: Message) -> None:
    for side, levels in zip(sides, message, strict=True):
        for _, (p, q) in levels:
            if Decimal(q) == 0:
                side.pop(Decimal(p), None)
            else:
                side[Decimal(p)] = p, q


def check(book: Any, sides: tuple[Naive, Naive], low: str | None, high: str | None, depth: int) -> None:
    bids, asks = (
        [sides[0][p] for p in sorted(sides[0], reverse=True)],
        [sides[1][p] for p in sorted(sides[1])],
    )
    known_bids = [x for x in bids if low is None or Decimal(x[0]) >= Decimal(low)]
    known_asks = [x for x in asks if high is None or Decimal(x[0]) <= Decimal(high)]
    assert book.all() == (out(bids), out(asks))
    assert book.sizes() == (len(bids), len(asks))
    assert book.known_levels() == (len(known_bids), len(known_asks))
    top_bids, top_asks = known_bids[:depth], known_asks[:depth]
    assert book.top(depth) == (out(top_bids), out(top_asks), len(top_bids), len(top_asks))
    assert book.best() == (bids[0] if bids else None, asks[0] if asks else None)
    assert book.crossed == bool(bids and asks and Decimal(bids[0][0]) >= Decimal(asks[0][0]))
    assert (book.exact_from, book.exact_to) == (low, high)
    rows = [side[n] for n in range(25) for side in (bids, asks) if n < len(side)]
    assert book.checksum() % (1 << 32) == zlib.crc32(":".join(f"{p}:{q}" for p, q in rows).encode())
    assert -(1 << 31) <= book.checksum() < 1 << 31


@each_book
@settings(
    deadline=None,
    max_examples=15 if SANITIZED in os.environ else 60,
    suppress_health_check=[HealthCheck.too_slow],
)
@given(
    loads=st.lists(st.tuples(message, st.lists(message, max_size=6)), min_size=1, max_size=3), data=st.data()
)
def test_any_messages(make: Any, loads: list[tuple[Message, list[Message]]], data: st.DataObject) -> None:
    book = make()
    for first, messages in loads:
        cut_bids, cut_asks = data.draw(st.booleans()), data.draw(st.booleans())
        sides: tuple[Naive, Naive] = {}, {}
        assert book.load(wire(first[0]), wire(first[1]), cut_bids=cut_bids, cut_asks=cut_asks) is None
        follow(sides, first)
        low = sides[0][min(sides[0])][0] if cut_bids and sides[0] else None
        high = sides[1][max(sides[1])][0] if cut_asks and sides[1] else None
        for bids, asks in messages:
            sent = wire(bids), wire(asks)
            assert book.apply(*sent) == (out([x for _, x in bids]), out([x for _, x in asks]))
            follow(sides, (bids, asks))
            check(book, sides, low, high, data.draw(st.integers(0, 9)))
        check(book, sides, low, high, 1_000)


@each_book
@pytest.mark.parametrize("seed", range(3))
def test_a_deep_book(make: Any, seed: int) -> None:
    """Thousands of levels, come and gone near the best and far from it, by few or by many at once."""
    random = Random(seed)
    book = make()
    sides: tuple[Naive, Naive] = {}, {}
    orders: list[Callable[[list[int]], list[int]]] = [list, sorted, lambda m: sorted(m, reverse=True)]
    for _ in range(60):
        both: Message = ([], [])
        for levels, sign in zip(both, (-1, 1), strict=True):
            reach = 1 / random.choice([5, 200, 5_000])
            many = [int(random.expovariate(reach)) for _ in range(random.choice([0, 1, 30, 500]))]
            for n in random.choice(orders)(many):
                level = (
                    f"{10_000 + sign * n / 8:.3f}",
                    random.choice(["0", "0", "1", "2.50", "3." + 40 * "5"]),
                )
                levels.append((f'["{level[0]}","{level[1]}"]', level))
        book.apply(wire(both[0]), wire(both[1]))
        follow(sides, both)
    assert min(book.sizes()) > 1_000
    check(book, sides, None, None, 100)


@each_book
def test_one_price_written_in_two_ways_is_one_level(make: Any) -> None:
    book = make()
    book.load(b'[["2200.0","1"]]', b"[]", cut_bids=True)
    book.apply(b"[[2.2e3,5]]", b"[]")
    assert book.all() == (b'[["2200.0","5"]]', b"[]")
    book.apply(b'[["02200","6"],["-0","1"],["0.00","2"]]', b"[]")
    assert book.all() == (b'[["02200","6"],["0.00","2"]]', b"[]")
    book.apply(b'[[2200,"0.0"],[0,0]]', b"[]")
    assert book.all() == (b"[]", b"[]")
    assert book.exact_from == "2200.0"


@each_book
def test_crossed_and_locked(make: Any) -> None:
    book = make()
    for ask, crossed in ((b"10", True), (b"9.99", True), (b"10.01", False)):
        book.load(b'[["10.0","1"]]', b'[["%s","1"]]' % ask)
        assert book.crossed is crossed
    book.load(b"[]", b"[]")
    assert book.crossed is False
    assert book.checksum() == 0
    assert book.best() == (None, None)
    assert book.top(-1) == (b"[]", b"[]", 0, 0)


@each_book
def test_a_refused_message_leaves_a_book_that_can_be_loaded(make: Any) -> None:
    book = make()
    book.load(b'[["1","1"]]', b'[["2","1"]]')
    for call in (book.apply, book.load):
        for bids, asks in ((b'[["1","5"],["x","1"]]', b"[]"), (b'[["1","5"]]', b"[")):
            with pytest.raises(ValueError, match=r"price is not|levels are not"):
                call(bids, asks)
            book.all(), book.best(), book.checksum(), book.sizes()
    book.load(b'[["1","1"]]', b'[["2","1"]]')
    assert book.all() == (b'[["1","1"]]', b'[["2","1"]]')


@native
@settings(deadline=None, max_examples=15 if SANITIZED in os.environ else 100)
@given(st.lists(st.from_regex(r"-?[0-9]{1,24}(\.[0-9]{1,24})?", fullmatch=True), max_size=12))
@example(["9007199254740993", "9007199254740992", "0.1", "0.10000000000000000555"])
def test_prices_of_any_length_are_ordered_as_python_floats(prices: list[str]) -> None:
    """Two prices that are one double are one level, in both."""
    levels = out([(p, "1") for p in prices])
    results = []
    assert C is not None
    for make in (C.Book, PureBook):
        book = make()
        book.load(levels, levels)
        results.append(book.all())
    assert results[0] == results[1]
    newest = {float(p): p for p in prices}
    assert results[0][1] == out([(newest[p], "1") for p in sorted(newest)])


# --- any bytes -----------------------------------------------------------------------------------------------------

WHOLE = [text.encode() for text in (*ARRAYS, *SHAPELESS, *TOO_SHORT) if len(text) < 1_000]
WHOLE += [
    f'[["1",{figure}],[{figure},2]]'.encode()
    for figure in (*FIGURES, *ZEROS, *NEGATIVE, *NO_FIGURES, *ABSURD)
]
PIECES = [
    b"[",
    b"]",
    b",",
    b'"',
    b"-",
    b".",
    b"e",
    b"0",
    b"9",
    b" ",
    b"\\",
    b"\0",
    b"\xff",
    b"{",
    b"}",
    b":",
    b"[[",
]
PIECES += [b'"delete",', b'"1"', b"1e-9", b'[["', b'"]]', b"\\u", 70 * b"7", 140 * b"3", b"nul", b"\t"]


def spoiled(random: Random) -> bytes:
    """Levels with pieces cut out and put in."""
    text = bytearray(random.choice(WHOLE))
    for _ in range(random.randrange(5)):
        at = random.randrange(len(text) + 1)
        text[at : at + random.randrange(6)] = random.choice([*PIECES, b"", random.randbytes(2)])
    return bytes(text)


def outcome(call: Callable[..., Any], *args: bytes) -> Any:
    try:
        return call(*args)
    except ValueError as e:
        return str(e)


@native
@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_give_the_same_result_or_the_same_error(seed: int) -> None:
    assert C is not None
    random = Random(seed)
    read = 0
    ours, pure = C.Book(), PureBook()
    for _ in range(3_000):
        bids, asks = spoiled(random), spoiled(random)
        assert outcome(C.normalise, bids) == outcome(pure_normalise, bids), bids
        for call in ("load", "apply"):
            result = outcome(getattr(pure, call), bids, asks)
            assert outcome(getattr(ours, call), bids, asks) == result, (bids, asks)
            if not isinstance(result, str):
                read += 1
                assert ours.all() == pure.all(), (bids, asks)
    assert read > 10


# --- recordings ----------------------------------------------------------------------------------------------------


class _Levels(msgspec.Struct):
    """A message about a book, whatever its exchange calls things."""

    bids: msgspec.Raw
    asks: msgspec.Raw
    checksum: int | None = None


class _BinanceDepth(msgspec.Struct):
    s: str
    b: msgspec.Raw
    a: msgspec.Raw


class _Binance(msgspec.Struct):
    data: _BinanceDepth


class _OkxArg(msgspec.Struct):
    instrument: str = msgspec.field(name="instId")


class _Okx(msgspec.Struct):
    action: str
    arg: _OkxArg
    data: list[_Levels]


class _DeribitBook(msgspec.Struct):
    instrument: str = msgspec.field(name="instrument_name")
    bids: msgspec.Raw
    asks: msgspec.Raw
    type: str = "snapshot"


class _DeribitParams(msgspec.Struct):
    data: _DeribitBook


class _Deribit(msgspec.Struct):
    params: _DeribitParams


def _messages(name: str) -> Iterator[tuple[str, bool, _Levels]]:
    """(book, whether this is the whole of it, message) of one recording."""
    with gzip.open(capture(name), "rt") as lines:
        for line in lines:
            frame = json.loads(line)
            raw, url = frame["raw"], frame["url"]
            if frame["via"] == "rest" and "/depth?" in url:
                yield url.split("symbol=")[1].split("&")[0], True, msgspec.json.decode(raw, type=_Levels)
            elif raw.startswith('{"stream"') and "@depth" in raw[:60] and "depth20" not in raw[:60]:
                m = msgspec.json.decode(raw, type=_Binance).data
                yield m.s, False, _Levels(m.b, m.a)
            elif '"action":"' in raw[:200]:
                okx = msgspec.json.decode(raw, type=_Okx)
                yield okx.arg.instrument, okx.action == "snapshot", okx.data[0]
            elif '"channel":"book.' in raw[:100]:
                d = msgspec.json.decode(raw, type=_Deribit).params.data
                yield d.instrument, d.type == "snapshot", _Levels(d.bids, d.asks)


RECORDINGS = sorted(path.name for path in FOLDER.glob("*.jsonl.gz")) or [
    "binance_spot.btcusdt.20240808.jsonl.gz"
]


@native
@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_makes_the_same_books(name: str) -> None:
    assert C is not None
    books: dict[str, tuple[Any, PureBook]] = defaultdict(lambda: (C.Book(), PureBook()))
    compared = checksums = 0
    for instrument, whole, m in _messages(name):
        ours, pure = books[instrument]
        if whole:
            ours.load(m.bids, m.asks, cut_bids=True)
            pure.load(m.bids, m.asks, cut_bids=True)
        else:
            assert ours.apply(m.bids, m.asks) == pure.apply(m.bids, m.asks)
        assert ours.top(20) == pure.top(20)
        assert ours.sizes() == pure.sizes()
        assert ours.checksum() == pure.checksum()
        compared += 1
        if m.checksum:
            checksums += 1
            assert ours.checksum() == m.checksum
        if compared > 1_500:
            break
    assert compared > 10
    assert bool(checksums) == name.startswith("okx")
    for ours, pure in books.values():
        assert ours.all() == pure.all()
        assert (ours.exact_from, ours.known_levels()) == (pure.exact_from, pure.known_levels())


# --- memory --------------------------------------------------------------------------------------------------------


@native
@pytest.mark.skipif(SANITIZED in os.environ, reason="the sanitizer keeps what is freed for a while")
def test_memory_stays_where_it_is() -> None:
    assert C is not None
    long = 60 * "1"
    first = out([(str(n), "1") for n in range(2_000)])
    empty = C.Book().__sizeof__()
    book = C.Book()

    def turn(n: int) -> None:
        for sent in (
            out([(f"{n}.5", f"1.{long}") for n in range(2_000)]),
            out([(f"{n}.5", "2") for n in range(0, 2_000, 2)]),
            out([(f"{n}.5", "0") for n in range(2_000)]),
            b'[["1","%s"],["x"' % long.encode(),
            b'[["1","%s"],["1","x"]]' % long.encode(),
        ):
            outcome(book.apply, sent, sent)
        book.top(1_000), book.all(), book.best(), book.checksum(), C.normalise(first)
        if n % 10 == 0:
            outcome(book.load, b'[["1","%s"]]' % long.encode(), b"[")
            book.load(first, first, cut_bids=True)

    for n in range(50):
        turn(n)
    before_kb, size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, book.__sizeof__()
    assert 2 * 2_000 * 64 < size < 2 * 4_000 * 160
    for n in range(100):
        turn(n)
        assert book.__sizeof__() <= size
    book.load(b"[]", b"[]")
    assert book.__sizeof__() == empty
    for _ in range(20_000):
        C.Book().load(b'[["1","2"]]', b'[["1","%s"]]' % long.encode())
    # 100 turns that each lost one text of every level would have lost 12 MB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 4_000


# --- patterns ------------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.none(),
    st.integers(),
    st.integers(-(2**63) - 1, -(2**63) + 1),
    st.integers(2**63 - 1, 2**63 + 1),
    st.text(),
    st.text("0123456789.-"),
    st.text('\x00\x1f "\\\x7f\x80\ud7ff\U0010ffff'),
    st.floats(allow_nan=False, allow_infinity=False).map(msgspec.json.encode),
    st.booleans(),
)


@each_pattern
@given(values=st.lists(VALUES, max_size=16))
def test_a_pattern_writes_what_the_encoder_would(pattern: Any, values: list[Any]) -> None:
    parts = [b"["] + [b","] * (len(values) - 1) + [b"]"] if values else [b"[]"]
    as_sent = [msgspec.Raw(v) if isinstance(v, bytes) else v for v in values]
    assert pattern(*parts)(*values) == msgspec.json.encode(as_sent)


@each_pattern
def test_a_pattern_has_as_many_values_as_places(pattern: Any) -> None:
    two = pattern(b"<", b"|", b">")
    for values in ((), (1,), (1, 2, 3)):
        with pytest.raises(TypeError, match=f"a pattern of 2 places got {len(values)} values"):
            two(*values)


@each_pattern
def test_a_value_that_has_no_json_is_an_error(pattern: Any) -> None:
    two = pattern(b"<", b"|", b">")
    for values in (("é", object()), (object(), "é")):
        with pytest.raises(TypeError):
            two(*values)
    assert two(1, "é") == '<1|"é">'.encode()


@native
def test_a_pattern_in_c_is_made_of_a_few_pieces_of_bytes() -> None:
    assert C is not None
    for parts in ((), (b"",) * 18, (b"", "")):
        with pytest.raises(TypeError, match="part"):
            C.Pattern(*parts)


@native
def test_patterns_leave_no_memory_behind() -> None:
    assert C is not None
    before = sys.getallocatedblocks()
    for _ in range(1_000):
        C.Pattern(b"[", b",", b"]")('"', 2**70)
    assert sys.getallocatedblocks() - before < 500


# --- AddressSanitizer ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(SANITIZED in os.environ, reason="this is that run")
def test_the_sanitizers_find_nothing(tmp_path: Path) -> None:
    """All the tests above once more, with _book.c built to report every wrong access and undefined behaviour."""
    compiler = _compiler()
    if compiler is None:
        pytest.skip("no C compiler, or no Python.h")
    library = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=False
    ).stdout
    if not Path(library.strip()).is_absolute():
        pytest.skip(f"{compiler} has no libasan.so")
    built = tmp_path / "_book.so"
    strict = (
        "-O1 -g -Wall -Wextra -Werror -shared -fPIC -fsanitize=address,undefined -fno-sanitize-recover=all"
    )
    source, include = str(ROOT / "marketprism/_book.c"), f"-I{sysconfig.get_path('include')}"
    made = subprocess.run(
        [compiler, *strict.split(), include, source, "-o", built], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    env = os.environ | {
        SANITIZED: str(built),
        "LD_PRELOAD": library.strip(),
        "PYTHONMALLOC": "malloc",
        "ASAN_OPTIONS": "detect_leaks=0",  # CPython's own; test_memory_stays_where_it_is looks for ours
    }
    run = [sys.executable, "-m", "pytest", "-q", "-x", "--capture=sys", "-p", "no:cacheprovider", __file__]
    told = subprocess.run(run, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout[-3_000:] + told.stderr[-6_000:]
