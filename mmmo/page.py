"""The frame of the HTML report: style, script, the policy that keeps it offline, its elements."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

Cell = tuple[str, str | float]
"""HTML of a table cell, and what it is sorted by."""

_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)
"""Nothing is ever fetched, whatever a name in the campaign says."""

_STYLE = """
:root { color-scheme: light dark; --text: #1c1e24; --soft: #626875; --page: #f6f6f4; --card: #fff;
  --line: #dfe0e4; --accent: #2f7ed8; --bad: #b3372b; --mark: #d9761a; }
@media (prefers-color-scheme: dark) { :root { --text: #e7e8ec; --soft: #9ba1ae; --page: #15171b;
  --card: #1d2025; --line: #33373f; --accent: #5b9ee8; --bad: #ec7a6e; --mark: #e8944a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", sans-serif; }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 27px; line-height: 1.2; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 40px 0 4px; }
h3 { font-size: 14px; margin: 0 0 4px; font-weight: 600; }
p { margin: 4px 0 12px; max-width: 75ch; color: var(--soft); }
code, .number { font-variant-numeric: tabular-nums; }
.head { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: baseline; }
.state { font-size: 13px; padding: 2px 10px; border-radius: 99px; border: 1px solid var(--line);
  background: var(--card); color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); gap: 12px;
  margin: 20px 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; min-width: 0; }
.tile b { display: block; font-size: 22px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: 13px; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 440px), 1fr));
  gap: 14px; }
.plot { height: 360px; } .plot.tall { height: 440px; min-width: var(--least, 0); }
.scroll { overflow-x: auto; }
.bar { display: flex; height: 14px; border-radius: 7px; overflow: hidden; margin: 8px 0; }
.bar i { display: block; min-width: 1px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--soft); }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px; }
table { border-collapse: collapse; width: 100%; font-size: 13.5px; }
th, td { text-align: left; padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line);
  vertical-align: top; white-space: nowrap; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; cursor: pointer; user-select: none; }
th[aria-sort="ascending"]::after { content: " ↑"; }
th[aria-sort="descending"]::after { content: " ↓"; }
tr:last-child > td { border-bottom: 0; }
td.text { white-space: normal; min-width: 220px; overflow-wrap: anywhere; }
tr.front td:first-child { box-shadow: inset 3px 0 var(--accent); padding-left: 10px; }
td:first-child, th:first-child { padding-left: 10px; }
.failed { color: var(--bad); } .anchor { color: var(--mark); } .soft { color: var(--soft); }
details > summary { cursor: pointer; color: var(--soft); }
pre { font: 12.5px/1.45 ui-monospace, "SF Mono", Menlo, Consolas, monospace; overflow-x: auto;
  margin: 8px 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.empty { color: var(--soft); padding: 28px 16px; text-align: center; }
footer { margin-top: 40px; color: var(--soft); font-size: 13px; }
@media (max-width: 600px) { main { padding: 18px 12px 40px; } h1 { font-size: 22px; }
  .plot { height: 320px; } .card { padding: 10px; } }
@media print { body { background: #fff; } .tile, .card, tr { break-inside: avoid; } }
"""

_SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
function draw() {
  const style = getComputedStyle(document.body);
  const font = { family: style.fontFamily, size: 12, color: style.color };
  for (const [place, figure] of Object.entries(figures)) {
    Plotly.react(place, figure.data, { ...figure.layout, font },
      { responsive: true, displaylogo: false, displayModeBar: false });
  }
}
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
for (const th of document.querySelectorAll("table.sortable th")) {
  th.addEventListener("click", () => {
    const up = th.getAttribute("aria-sort") !== "ascending";
    for (const other of th.parentNode.children) other.removeAttribute("aria-sort");
    th.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = th.closest("table").tBodies[0];
    const key = (row) => row.cells[th.cellIndex].dataset.sort ?? row.cells[th.cellIndex].innerText;
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (!x || !y) return !x - !y;
      return (up ? 1 : -1) * (isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y);
    });
    body.append(...rows);
  });
}
"""


def page(title: str, body: str, figures: Mapping[str, Any]) -> str:
    """Give a whole HTML document that needs nothing but itself.

    Args:
        title: text.
        body: HTML.
        figures: id of an element of the body → the figure to draw there.
    """
    # "<" would let a text end the script element that it stands in
    data = json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    library = files("plotly").joinpath("package_data/plotly.min.js").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
{body}
</main>
<script>{library}</script>
<script type="application/json" id="figures">{data}</script>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def section(title: str, content: str, note: str = "") -> str:
    """Put HTML under a heading, with a note between them."""
    return f"<section><h2>{title}</h2>{f'<p>{note}</p>' if note else ''}{content}</section>"


def empty(text: str) -> str:
    """Say (in HTML) why there is nothing to show."""
    return f'<div class="card empty">{text}</div>'


def tile(value: str, label: str) -> str:
    """Show one large value; both are text."""
    return f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def table(head: Sequence[str], rows: Sequence[Sequence[Cell]], classes: Sequence[str] = ()) -> str:
    """Make a sortable table; `head` and cells are HTML, `classes` are one per row."""
    titles = "".join(f"<th>{title}</th>" for title in head)
    body = []
    for i, row in enumerate(rows):
        cells = "".join(f'<td data-sort="{escape(str(key))}">{html}</td>' for html, key in row)
        body.append(f'<tr class="{classes[i] if classes else ""}">{cells}</tr>')
    return (
        f'<table class="sortable"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>"
    )
