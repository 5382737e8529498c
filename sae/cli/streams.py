"""The terminal's streams, where its encoding lacks characters: each is shown by what comes close, and nothing fails."""

import codecs
import io
import sys
import unicodedata

# of one character where that will do, as tables have columns
CLOSE = {"→": "->", "×": "x", "·": "*", "−": "-", "–": "-", "—": "-", "…": ".", "≥": ">=", "≤": "<=", "±": "+-"}
CLOSE |= {"‘": "'", "’": "'", "“": '"', "”": '"', "•": "*", "✓": "v", "✗": "x", "●": "o", "▲": "^", "■": "#", "◆": "%"}
CLOSE |= {"ß": "ss", "Σ": "sum", "λ": "lambda"}
FINE = {"─": "-", "━": "-", "╌": "-", "╴": "-", "╶": "-", "╸": "-", "╺": "-", "│": "|", "┃": "|"}  # of the box's lines


def show_what_can_be_shown() -> None:
    """Let what is printed come out in a terminal of any encoding."""
    codecs.register_error("close", _close)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="close")


def _close(error: UnicodeError) -> tuple[str | bytes, int]:
    """What stands for the first character that the encoding lacks, and where encoding goes on."""
    assert isinstance(error, UnicodeEncodeError)
    character, after = error.object[error.start], error.start + 1
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name, which has no encoding
        return bytes([ord(character) - 0xDC00]), after
    if "\u2500" <= character <= "\u257f":
        return FINE.get(character, "+"), after
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return CLOSE.get(character) or plain or "?", after
