"""A picture of which data is there when, as PNG: rectangles and a 5 x 7 font need no library."""

import struct
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime

Colour = tuple[int, int, int]

WHITE, INK, PALE, GRID = (255, 255, 255), (40, 44, 52), (120, 124, 132), (225, 228, 232)
COVERED = (76, 154, 107)
COLOURS: dict[str, Colour] = {
    "silence": (190, 190, 190),
    "restart": (66, 120, 190),
    "disconnect": (226, 147, 57),
    "sequence": (201, 62, 62),
    "overflow": (140, 80, 170),
    "checksum": (150, 20, 60),
    "crossed": (150, 20, 60),
    "malformed": (150, 20, 60),
    "audit": (150, 20, 60),
}
"""Of holes, by cause."""

BARS_PX = 900
ROW_PX, BAR_PX, MARGIN_PX, LETTER_PX = 16, 10, 12, 6
HEAD_PX, FOOT_PX = 36, 44
_STEPS_S = (60, 300, 600, 1800, 3600, 2 * 3600, 6 * 3600, 12 * 3600, 86_400, 7 * 86_400, 30 * 86_400)
# Columns of each character from the blank to the tilde, the top in the lowest bit.
_FONT = bytes.fromhex(
    "0000000000"
    "00005f0000"
    "0007000700"
    "147f147f14"
    "242a7f2a12"
    "2313086462"
    "3649562050"
    "0008070300"
    "001c224100"
    "0041221c00"
    "2a1c7f1c2a"
    "08083e0808"
    "0080703000"
    "0808080808"
    "0000606000"
    "2010080402"
    "3e5149453e"
    "00427f4000"
    "7249494946"
    "2141494d33"
    "1814127f10"
    "2745454539"
    "3c4a494931"
    "4121110907"
    "3649494936"
    "464949291e"
    "0000140000"
    "0040340000"
    "0008142241"
    "1414141414"
    "0041221408"
    "0201590906"
    "3e415d594e"
    "7c1211127c"
    "7f49494936"
    "3e41414122"
    "7f4141413e"
    "7f49494941"
    "7f09090901"
    "3e41415173"
    "7f0808087f"
    "00417f4100"
    "2040413f01"
    "7f08142241"
    "7f40404040"
    "7f021c027f"
    "7f0408107f"
    "3e4141413e"
    "7f09090906"
    "3e4151215e"
    "7f09192946"
    "2649494932"
    "03017f0103"
    "3f4040403f"
    "1f2040201f"
    "3f4038403f"
    "6314081463"
    "0304780403"
    "6159494d43"
    "007f414141"
    "0204081020"
    "004141417f"
    "0402010204"
    "4040404040"
    "0003070800"
    "2054547840"
    "7f28444438"
    "3844444428"
    "384444287f"
    "3854545418"
    "00087e0902"
    "18a4a49c78"
    "7f08040478"
    "00447d4000"
    "2040403d00"
    "7f10284400"
    "00417f4000"
    "7c04780478"
    "7c08040478"
    "3844444438"
    "fc18242418"
    "18242418fc"
    "7c08040408"
    "4854545424"
    "04043f4424"
    "3c4040207c"
    "1c2040201c"
    "3c4030403c"
    "4428102844"
    "4c9090907c"
    "4464544c44"
    "0008364100"
    "0000770000"
    "0041360800"
    "0201020402"
)


@dataclass(frozen=True, slots=True)
class Lane:
    """One line: a label, what is said behind it, and the holes as (from ms, to ms, cause)."""

    label: str
    note: str
    holes: list[tuple[int, int, str]]


class Canvas:
    """Pixels to draw on."""

    def __init__(self, width: int, height: int) -> None:
        """White."""
        self.width, self.height = width, height
        self._rows = [bytearray(WHITE * width) for _ in range(height)]

    def fill(self, x: int, y: int, width: int, height: int, colour: Colour) -> None:
        """A rectangle; what lies outside is cut off."""
        left, right = max(0, x), min(self.width, x + width)
        if right > left:
            for row in self._rows[max(0, y) : max(0, y + height)]:
                row[3 * left : 3 * right] = bytes(colour) * (right - left)

    def write(self, x: int, y: int, text: str, colour: Colour = INK) -> None:
        """Text with its upper left corner there."""
        for n, letter in enumerate(text):
            code = ord(letter) - 32
            glyph = _FONT[5 * code : 5 * code + 5] if 0 <= code < len(_FONT) // 5 else b"\x7f" * 5
            for column, bits in enumerate(glyph):
                for line in range(8):
                    if bits >> line & 1:
                        self.fill(x + LETTER_PX * n + column, y + line, 1, 1, colour)

    def png(self) -> bytes:
        """As a file (PNG, ISO/IEC 15948: 8 bits, RGB, no filter)."""
        head = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        pixels = zlib.compress(b"".join(b"\0" + row for row in self._rows), 9)
        chunks = ((b"IHDR", head), (b"IDAT", pixels), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def draw(title: str, lanes: list[Lane], start_ms: int, end_ms: int) -> bytes:
    """The timeline as PNG. A hole is at least one pixel wide, however short it is."""
    left = MARGIN_PX * 2 + LETTER_PX * max((len(lane.label) for lane in lanes), default=0)
    right = MARGIN_PX * 2 + LETTER_PX * max((len(lane.note) for lane in lanes), default=0)
    canvas = Canvas(left + BARS_PX + right, HEAD_PX + ROW_PX * len(lanes) + FOOT_PX)
    canvas.write(MARGIN_PX, MARGIN_PX, title)
    _axis(canvas, left, start_ms, end_ms, HEAD_PX + ROW_PX * len(lanes))
    for n, lane in enumerate(lanes):
        y = HEAD_PX + ROW_PX * n
        canvas.write(MARGIN_PX, y + 2, lane.label)
        canvas.write(left + BARS_PX + MARGIN_PX, y + 2, lane.note, PALE)
        canvas.fill(left, y, BARS_PX, BAR_PX, COVERED)
        for since_ms, until_ms, cause in lane.holes:
            a, b = (_x(ms, start_ms, end_ms) for ms in (since_ms, until_ms))
            canvas.fill(left + min(a, BARS_PX - 1), y, max(1, b - a), BAR_PX, COLOURS.get(cause, INK))
    _legend(canvas, left, canvas.height - MARGIN_PX - 8, {h[2] for lane in lanes for h in lane.holes})
    return canvas.png()


def _x(ms: int, start_ms: int, end_ms: int) -> int:
    return (ms - start_ms) * BARS_PX // (end_ms - start_ms)


def _axis(canvas: Canvas, left: int, start_ms: int, end_ms: int, bottom: int) -> None:
    seconds = (end_ms - start_ms) / 1000
    step_ms = 1000 * next((s for s in _STEPS_S if seconds / s <= 10), _STEPS_S[-1])
    form = "%H:%M" if step_ms < 86_400_000 else "%m-%d"
    for ms in range(start_ms + -start_ms % step_ms, end_ms, step_ms):
        x = left + _x(ms, start_ms, end_ms)
        canvas.fill(x, HEAD_PX - 4, 1, bottom - HEAD_PX + 8, GRID)
        canvas.write(x - 14, bottom + 6, datetime.fromtimestamp(ms / 1000, UTC).strftime(form), PALE)


def _legend(canvas: Canvas, x: int, y: int, causes: set[str]) -> None:
    for name, colour in (("covered", COVERED), *((c, COLOURS.get(c, INK)) for c in sorted(causes))):
        canvas.fill(x, y, BAR_PX, 8, colour)
        canvas.write(x + BAR_PX + 4, y, name)
        x += BAR_PX + 4 + LETTER_PX * len(name) + MARGIN_PX
