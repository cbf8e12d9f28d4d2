"""Names that would steer a terminal, or that look like what shows them; and what must never be seen of them."""

import random
import re
import unicodedata

HOSTILE = (
    "\x1b[2J\x1b[H",
    "\x1b]0;title\x07",
    "\x1b]8;;http://evil\x1b\\click",
    "red\x1b[31m",
    "a\rb",
    "back\x08\x08space",
    "del\x7f",
    "nul\x00",
    "c1\x9b31m",
    "nel\x85x",
    "tab\tbed",
    "two\nlines",
    "vt\x0bff\x0c",
    "rtl\u202egnp.exe",
    "isolate\u2066x\u2069",
    "mark\u200fx\u200e",
    "zero\u200bwidth",
    "bom\ufeff",
    "soft\u00adhyphen",
    "word\u2060joiner",
    "joiner\u200dx",
    "line\u2028separator\u2029",
    "tag\U000e0041",
    "filler\u3164",
    "interlinear\ufff9x",
    "lone\ud800",
    "bytes\udcff",
    "[/x]",
    "[v2]",
    "[link=http://evil]x",
    "[@click=app.bell]x",
    "back\\",
    "\\[b]",
    ":smile:",
    "a|b",
    "<img src=x onerror=alert(1)>",
    "<!-- ",
    "[a](javascript:alert(1))",
    "![a](http://evil/x.png)",
    "`code",
    "```",
    "# heading",
    "&#27;",
    "https://evil",
    "www.evil.com",
    "me@evil.com",
    "__bold__",
    "$x^{",
    r"$\frac{",
    "_hidden",
    "=cmd|'/c calc'!A1",
    "+1+1",
    "@SUM(1)",
    "{0}{x}%s%n",
    "quote\"'",
    " ",
    "x" * 5_000,
)
HONEST = (
    "中文",
    "日本語\u3000名",
    "Ωμέγα",
    "é",
    "e\u0301",
    "العربية",
    "می\u200cخواهم",  # noqa: RUF001
    "क्\u200dष",
    "😀",
    "👩🏽\u200d💻",
    "❤\ufe0f",
    "naïve",
    "a b",
)
"""Names that are shown as they are."""
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
_JOINS = re.compile(r"(?<=[^\x00-\x7f])[\u200c\u200d](?=[^\x00-\x7f])")
"""What stands between letters of other writings, or makes one emoji of two."""
_PARTS = (*HOSTILE[:-1], *HONEST, "weight", "layer1.", "0", ".", "/")


def steering(text):
    """Return the characters of printed text that a terminal obeys or does not show, but for the ends of lines."""
    shown = _JOINS.sub("", text)
    return {letter for letter in shown if unicodedata.category(letter) in _UNSEEN and letter != "\n"}


def drawn(seed):
    """Return a name of some of these parts."""
    draw = random.Random(seed)
    return "".join(draw.choices(_PARTS, k=draw.randint(1, 5)))
