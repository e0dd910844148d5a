"""Text of worlds and models made safe to show: what a reader could not see is written out.

A world or a model may write anything: terminal escapes, marks that reverse the direction of text, halves of surrogate
pairs, a megabyte in one line. Nothing of it may change how the rest of a report looks.
"""

from __future__ import annotations

import re
import sys

MAX_CHARS = 20_000
"""longest text that a report shows in full"""

# Controls except tab and line feed, format characters except the joiners that scripts and emoji need, line and
# paragraph separators, surrogates, tags.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u0600-\u0605\u061c\u06dd\u070f\u0890\u0891\u08e2\u180e\u200b\u200e\u200f"
    "\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb\U000110bd\U000110cd\U00013430-\U0001343f"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)


def visible(text: str, max_chars: int = MAX_CHARS) -> str:
    """Write out what cannot be seen, as ``⟨U+202E⟩``, and cut a text that is too long.

    Tabs, line feeds and the joiners U+200C and U+200D stay. The result can be encoded as UTF-8.

    Args:
        text: of a world or a model.
        max_chars: characters that are kept; a note says how many were cut.
    """
    if len(text) <= max_chars and text.isprintable():  # most texts
        return text
    cut = len(text) - max_chars
    if cut > 0:
        text = text[:max_chars]
    shown = _HIDDEN.sub(_written_out, text.replace("\r\n", "\n"))
    return f"{shown}… ⟨{cut:,} more characters not shown⟩" if cut > 0 else shown


def one_line(text: str, max_chars: int = 200) -> str:
    """The text on one line, for tables and lists."""
    return visible(" ".join(text[: 4 * max_chars].split()), max_chars)


def print_text(text: str) -> None:
    """Print a line on the standard output; letters that the terminal's encoding lacks are replaced."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), flush=True)


def _written_out(found: re.Match[str]) -> str:
    return f"⟨U+{ord(found.group()):04X}⟩"
