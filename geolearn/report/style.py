"""How a report looks: on a wide or narrow screen, by day or night, and on paper."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --text: #1d2530; --soft: #5b6673; --line: #dde2e8;
  --accent: #0b63a5; --bar: #7fb2dc; --warn-line: #c77700; --warn-page: #fff6e5; --code: #eef1f4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --card: #1d232a; --text: #e4e8ed; --soft: #9aa5b1; --line: #323a44;
    --accent: #74b6ee; --bar: #3d7fb5; --warn-line: #e0a33a; --warn-page: #2e2615; --code: #262d35;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem clamp(.8rem, 3vw, 2.5rem) 3rem; max-width: 76rem; background: var(--page);
  color: var(--text); font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .2rem; }
h2 { font-size: 1.2rem; margin: 0 0 .6rem; }
p { margin: .5rem 0; max-width: 46rem; }
.made { color: var(--soft); margin: 0 0 1rem; }
.tiles {
  display: grid; grid-template-columns: repeat(auto-fit, minmax(min(10.5rem, 45%), 1fr)); gap: .6rem; margin: 1rem 0;
}
.tiles div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .8rem; }
.tiles dt { color: var(--soft); font-size: .8rem; }
.tiles dd { margin: 0; font-size: 1.1rem; font-weight: 600; overflow-wrap: anywhere; }
nav ol { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; margin: 0 0 1rem; padding: 0; }
a { color: var(--accent); }
section, .warnings {
  background: var(--card); border: 1px solid var(--line); border-radius: .6rem; margin: 0 0 1rem;
  padding: 1rem clamp(.8rem, 2.5vw, 1.5rem);
}
.warnings { background: var(--warn-page); border-left: .35rem solid var(--warn-line); }
ul { margin: .3rem 0; padding-left: 1.2rem; }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
.caption { color: var(--soft); margin: 1rem 0 0; }
.caption + .scroll { margin-top: .3rem; }
th, td { padding: .28rem .8rem .28rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
td { unicode-bidi: isolate; min-width: 7.5rem; max-width: 28rem; overflow-wrap: anywhere; }
.number { text-align: right; white-space: nowrap; }
td.number { min-width: 3.5rem; }
.bar { display: inline-block; width: 4.5rem; height: .65rem; margin-right: .5rem; background: var(--code); }
.bar span { display: block; height: 100%; background: var(--bar); }
.swatch {
  display: inline-block; width: .85rem; height: .85rem; margin-right: .5rem; border: 1px solid var(--soft);
  border-radius: .15rem; vertical-align: -.08rem;
}
.facts { display: grid; grid-template-columns: minmax(7rem, max-content) 1fr; gap: .15rem 1.2rem; margin: .6rem 0; }
.facts dt { color: var(--soft); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: .8rem 0; }
figure img { max-width: 100%; height: auto; background: #ffffff; border-radius: .35rem; padding: .3rem; }
figcaption { color: var(--soft); font-size: .9rem; }
pre {
  background: var(--code); border-radius: .35rem; padding: .8rem 1rem; overflow-x: auto; overflow-wrap: normal;
  font: .87rem/1.45 ui-monospace, "SFMono-Regular", Consolas, "DejaVu Sans Mono", monospace;
}
@media (max-width: 34rem) { .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .5rem; } }
@media print {
  :root {
    color-scheme: light; --page: #ffffff; --card: #ffffff; --text: #000000; --soft: #444444; --line: #cccccc;
    --code: #eeeeee; --accent: #000000; --bar: #9a9a9a; --warn-page: #ffffff;
  }
  body { max-width: none; padding: 0; font-size: 10.5pt; }
  nav { display: none; }
  section { border: 0; padding: 0; }
  h2 { break-after: avoid; }
  figure, tr, .tiles, .warnings, pre { break-inside: avoid; }
  figure img { max-height: 22cm; object-fit: contain; object-position: left; }
  table { font-size: .8rem; }
  td, td.number { min-width: 0; }
  .scroll, pre { overflow: visible; white-space: pre-wrap; }
  .bar { display: none; }
  .swatch { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
