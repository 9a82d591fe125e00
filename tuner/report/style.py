"""What pages have in common: the look, a few lines of script, and a policy that forbids to load anything.

The script is a copy button, tables that sort by a click, and a field that filters a table's lines.
"""

from __future__ import annotations

CSS = """
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1c2128; --soft: #5b6570; --line: #d9dee4;
  --card: #f5f7f9; --good: #00724f; --warn: #8f4400; --accent: #0072b2; --mark: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181d; --ink: #e4e8ec; --soft: #9ba6b2;
  --line: #323a43; --card: #1c2229; --good: #4cc9a0; --warn: #f0a35e; --accent: #6cb8e6; --mark: #3d9fdb; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.6rem 0 .6rem; font-size: 1.15rem; }
p { margin: .4rem 0; }
.soft, figcaption, dt { color: var(--soft); }
.simulated { margin: 0 0 1rem; padding: .6rem .9rem; border: 2px solid var(--warn); border-radius: .5rem;
  color: var(--warn); font-weight: 600; }
.answer { margin-top: 1.2rem; padding: 1.1rem 1.3rem 1.3rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .7rem; }
.answer h2 { margin: 0 0 .6rem; font-size: 1.3rem; }
.better { color: var(--good); font-weight: 600; }
.open { color: var(--warn); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.2rem; margin: 1rem 0 0; }
dd { margin: 0; }
code, pre { font: .88em/1.5 ui-monospace, monospace; }
pre { margin: .4rem 0; padding: .8rem 1rem; overflow-x: auto; background: var(--paper);
  border: 1px solid var(--line); border-radius: .5rem; }
.flags { border-collapse: collapse; }
.flags td { padding: .1rem 1.6rem .1rem 0; overflow-wrap: anywhere; }
.flags .changed { font-weight: 700; }
.launch { position: relative; margin-top: 1rem; }
.launch pre { padding-right: 5rem; }
button { position: absolute; top: .5rem; right: .5rem; padding: .25rem .8rem; font: inherit;
  font-size: .85rem; color: var(--paper); background: var(--accent); border: 0; border-radius: .4rem;
  cursor: pointer; }
ul { margin: .4rem 0; padding-left: 1.2rem; }
.plots { display: grid; gap: 2rem 1.6rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
.small { gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 16.5rem), 1fr)); }
figure { margin: 0; max-width: 33rem; }
.small figure { max-width: 21rem; }
figure h3 { margin: 0 0 .3rem; font-size: 1rem; overflow-wrap: anywhere; }
figcaption { font-size: .85rem; line-height: 1.4; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, sans-serif !important; }
.scroll { overflow: auto; max-height: min(44rem, 85vh); }
.scroll thead th { position: sticky; top: 0; z-index: 1; background: var(--paper); }
.filter { width: min(24rem, 100%); margin: .3rem 0 .7rem; padding: .35rem .7rem; font: inherit;
  color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: .4rem; }
.trials { width: 100%; border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
.trials th, .trials td { padding: .35rem .7rem; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); white-space: nowrap; }
.trials th { cursor: pointer; user-select: none; color: var(--soft); font-weight: 600; }
.trials.fixed th { cursor: auto; }
.trials th[aria-sort=ascending]::after { content: " ▲"; }
.trials th[aria-sort=descending]::after { content: " ▼"; }
.trials .number { text-align: right; }
.trials .best td { font-weight: 700; }
.trials .baseline td { font-style: italic; }
details summary { cursor: pointer; }
td details[open] { width: min(38rem, 75vw); white-space: normal; font-style: normal; font-weight: 400; }
td details pre { white-space: pre-wrap; overflow-wrap: anywhere; }
@media (max-width: 36rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .6rem; }
  .launch pre { padding-top: 2.8rem; padding-right: 1rem; } }
@media print { button, .filter { display: none; } .scroll { max-height: none; } }
"""

SCRIPT = """
for (const button of document.querySelectorAll("button[data-copy]")) {
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(text);
      button.textContent = "Press Ctrl+C";
    }
  });
}
for (const field of document.querySelectorAll("input.filter")) {
  const rows = [...document.getElementById(field.dataset.table).tBodies[0].rows];
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(" ");
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
    }
  });
}
for (const table of document.querySelectorAll("table.trials:not(.fixed)")) {
  const heads = [...table.tHead.rows[0].cells];
  const key = (row, column) => {
    const text = row.cells[column].dataset.value ?? row.cells[column].textContent;
    return text === "" || isNaN(text) ? text : Number(text);
  };
  const order = (a, b, sign) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    if (typeof a === typeof b) return sign * (a < b ? -1 : a > b ? 1 : 0);
    return typeof a === "number" ? -1 : 1;
  };
  const sort = (column) => {
    const descending = heads[column].getAttribute("aria-sort") === "ascending";
    heads.forEach((head) => head.removeAttribute("aria-sort"));
    heads[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    rows.sort((a, b) => order(key(a, column), key(b, column), descending ? -1 : 1));
    table.tBodies[0].append(...rows);
  };
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(column));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(column); });
  });
}
"""

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'"


def document(title: str, body: str) -> str:
    """A whole page; both are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        f"<title>{title}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n"
        f"<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
