"""How a report looks: the colours of its figures, and the style sheet of its page, in light, in dark and in print."""

from __future__ import annotations

INK, FAINT, GRID, GROUND, BAND = "#1c2024", "#646b73", "#d8dce1", "#fefefe", "#f3dfeb"
"""Of lines and letters, of what is less, of grids, of the ground and of the band of random masks, on a light ground."""
_DARK = {INK: "#e9ebee", FAINT: "#a4abb3", GRID: "#3a4047", GROUND: "#14171a", BAND: "#4a2f41"}
_DARK |= {"#0072b2": "#3b8fd4", "#56b4e9": "#a3dcff"}
"""What these are on a dark ground, and series' colours that would be too dark there, or too much alike."""
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", INK)
"""Of Okabe and Ito, which the colour-blind tell apart too."""
MARKERS = ("o", "D", "^", "s", "v", "P", "X", "p")
"""One more than colours, so that the two come together anew later only."""


def dark_of(svg: str) -> str:
    """Return a picture that was drawn in these colours for a light ground as it is on a dark one.

    Example:
        >>> dark_of('<path style="stroke: #1c2024"/>')
        '<path style="stroke: #e9ebee"/>'
    """
    for light, dark in _DARK.items():
        svg = svg.replace(light, dark)
    return svg


STYLE_SHEET = """
:root { color-scheme: light dark; --ground: #fefefe; --ink: #1c2024; --faint: #5b626a; --line: #d8dce1;
  --raised: #f3f5f7; --accent: #0b62a4; }
.on-light { display: block; }
.on-dark { display: none; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ground: #14171a; --ink: #e9ebee; --faint: #a4abb3; --line: #3a4047; --raised: #1d2125; --accent: #6bb5ee; }
  figure img.on-light { display: none; }
  figure img.on-dark { display: block; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 1rem/1.55 system-ui, sans-serif;
  overflow-wrap: anywhere; }
main { max-width: 64rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; line-height: 1.3; margin: 2.5rem 0 .75rem; padding-top: .75rem;
  border-top: 1px solid var(--line); }
p { margin: .6rem 0; max-width: 48rem; }
.conclusion { padding: .4rem 1rem; background: var(--raised); border-left: 4px solid var(--accent); }
.conclusion p { font-size: 1.0625rem; }
.wide { overflow-x: auto; margin: .75rem 0; }
.wide:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--faint); padding: .25rem 0; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
thead th { vertical-align: bottom; border-bottom: 2px solid var(--line); white-space: normal; min-width: 3.2rem;
  overflow-wrap: normal; }
thead th:first-child, tbody th { position: sticky; left: 0; background: var(--ground); }
tbody th { text-align: left; font-weight: normal; max-width: 24rem; white-space: normal; }
.many tbody th { min-width: min(15rem, 38vw); }
td.words { min-width: 6rem; max-width: 26rem; white-space: normal; }
.many td.words { min-width: 11rem; }
.words { text-align: left; }
.chosen > * { font-weight: bold; background: var(--raised); }
figure { margin: 0; }
figure img { max-width: 100%; height: auto; }
figcaption { color: var(--faint); font-size: .875rem; max-width: 48rem; }
@media print {
  main { max-width: none; padding: 0; }
  body { font-size: 10pt; }
  table { font-size: 7.5pt; }
  .wide { overflow: visible; }
  th, td { padding: .15rem .3rem; overflow-wrap: normal; }
  thead th, tbody th, .many tbody th, td.words, .many td.words { min-width: 0; position: static !important; }
  .many { font-size: 6pt; }
  .many tbody th { min-width: 7rem; }
  figure, tr { break-inside: avoid; }
  h2, caption { break-after: avoid; }
  figure img { min-width: 0 !important; max-height: 24cm; width: auto; max-width: 100%; }
}
"""
