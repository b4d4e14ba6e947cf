"""How the HTML report looks: one style sheet for light and dark, wide and narrow, screen and paper. The contrast is 4.5 or more."""

CSS = """
:root {
  color-scheme: light dark;
  --page: #ffffff; --soft: #f6f8fa; --line: #d8dee4; --text: #1f2328; --muted: #57606a; --link: #0860ca; --cell: #cfd7df;
  --good: #1a7f37; --bad: #c0202b; --warn: #8a5d00; --info: #0860ca; --off: #57606a; --mark: #ffe9a8; --bar: #8c959f;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d1117; --soft: #151b23; --line: #2f3742; --text: #e6edf3; --muted: #9ea7b3; --link: #6cb0ff; --cell: #434d5a;
    --good: #4cc262; --bad: #ff7b72; --warn: #dfaa3c; --info: #6cb0ff; --off: #9ea7b3; --mark: #5f4700; --bar: #6e7884;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; scroll-padding-top: 1rem; }
body {
  margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 72rem; background: var(--page); color: var(--text);
  font: 15px/1.5 -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere;
}
a { color: var(--link); text-decoration: none; }
a:hover { text-decoration: underline; }
code, .value, .mono { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; font-size: 0.9em; }
h1 { margin: 0 0 0.35rem; font-size: 1.75rem; line-height: 1.25; font-weight: 650; letter-spacing: -0.01em; text-wrap: balance; }
h2 { margin: 0; font-size: 1.1rem; line-height: 1.45; font-weight: 400; }
h2 b { font-weight: 650; }
h3 { margin: 0 0 0.6rem; font-size: 0.9rem; font-weight: 650; }
p { margin: 0 0 0.6rem; }
.muted, .note, dt, figcaption, caption { color: var(--muted); }
.note, figcaption, .why { font-size: 0.87rem; }
.back { float: right; margin-left: 1rem; font-size: 0.87rem; line-height: 1.8; }

.badge { display: inline-block; white-space: nowrap; font-weight: 600; font-size: 0.87rem; }
.badge i {
  display: inline-block; width: 1.35rem; margin-right: 0.45rem; border-radius: 4px; border: 1px solid currentcolor;
  font-style: normal; font-weight: 700; line-height: 1.25rem; text-align: center;
}
h2 .badge { margin-right: 0.7rem; }
.s-match { color: var(--good); } .s-mismatch, .s-error { color: var(--bad); } .s-partial { color: var(--warn); }
.s-in_flight { color: var(--info); } .s-skipped { color: var(--off); }
.s-mismatch.badge i, .s-error.badge i { background: var(--bad); border-color: var(--bad); color: var(--page); }

.totals { display: flex; flex-wrap: wrap; gap: 0.9rem 2.6rem; margin: 1.6rem 0 1.8rem; padding: 0; }
.totals dd { margin: 0; font-size: 1.3rem; font-weight: 600; line-height: 1.3; }
.totals dt { font-size: 0.87rem; }
.totals div { display: flex; flex-direction: column-reverse; justify-content: flex-end; }

table { border-collapse: collapse; width: 100%; }
th { font-weight: 600; text-align: left; }
th, td { padding: 0.42rem 0.8rem 0.42rem 0; vertical-align: top; }
th:last-child, td:last-child { padding-right: 0; }
thead th, dt { overflow-wrap: normal; }
thead th { color: var(--muted); font-size: 0.87rem; border-bottom: 1px solid var(--line); vertical-align: bottom; }
.n { text-align: right; white-space: nowrap; }
.zero { color: var(--muted); }
.overview tbody td, .overview tbody th { border-bottom: 1px solid var(--line); font-weight: 400; }
.overview tbody th a { font-weight: 600; }
.overview .some { font-weight: 650; color: var(--bad); }

section { margin-top: 2.6rem; padding-top: 1.6rem; border-top: 1px solid var(--line); }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 0.8rem 1.6rem; margin: 1.1rem 0 0; }
.facts dt { font-size: 0.87rem; }
.facts dd { margin: 0; }
.pictures { display: grid; grid-template-columns: minmax(0, 1.25fr) minmax(0, 1fr); gap: 1.8rem 3rem; margin-top: 1.8rem; }
figure { margin: 0; }
figcaption { margin-top: 0.5rem; }
svg.buckets { display: block; width: 100%; height: auto; }
.quiet { display: grid; grid-template-columns: minmax(0, 1fr) 14.5rem; gap: 0 2rem; align-items: start; }
.quiet h2 { grid-column: 1 / -1; }
.quiet > div { grid-column: 1; }
.quiet > figure { grid-column: 2; margin-top: 1.2rem; }
.clean { fill: none; stroke: var(--cell); }
.dirty { fill: var(--bad); }
.dirty-x { stroke: var(--page); fill: none; }
.key-clean, .key-dirty { display: inline-block; width: 0.7em; height: 0.7em; margin: 0 0.3em 0 0; background: var(--cell); }
.key-dirty { width: 0.95em; height: 0.95em; background: var(--bad); margin-left: 0.9em; vertical-align: -0.1em; }

.bars { margin-bottom: 1.4rem; }
.bars th, .bars td { padding: 0.16rem 0.8rem 0.16rem 0; vertical-align: baseline; border: 0; }
.bars th { font-weight: 400; width: 34%; }
.bars td.n { width: 1%; padding: 0.16rem 0; }
.bar { display: block; height: 0.62rem; min-width: 2px; background: var(--bad); border-radius: 1px; }

.history { display: flex; flex-wrap: wrap; gap: 3px; margin: 0; padding: 0; list-style: none; }
.history li {
  width: 1.5rem; height: 1.5rem; border: 1px solid currentcolor; border-radius: 4px; font-weight: 700; font-size: 0.87rem;
  line-height: 1.35rem; text-align: center;
}
.history .s-mismatch, .history .s-error { background: var(--bad); border-color: var(--bad); }
.history .s-mismatch span, .history .s-error span { color: var(--page); }
.history .now { outline: 1px solid var(--text); outline-offset: 1px; }

.block { margin-top: 1.8rem; }
.diffs caption { text-align: left; padding-bottom: 0.4rem; font-size: 0.87rem; }
.diffs tbody { border-bottom: 1px solid var(--line); }
.diffs tbody th, .diffs tbody td { font-weight: 400; padding-top: 0.3rem; padding-bottom: 0.3rem; }
.diffs tbody tr:first-child > * { padding-top: 0.6rem; }
.diffs tbody tr:last-child > * { padding-bottom: 0.6rem; }
.diffs .key { width: 17%; } .diffs .kind { width: 8rem; } .diffs .column { width: 14%; } .diffs .side { width: 29%; }
.diffs .why { padding-top: 0.1rem; color: var(--muted); }
.diffs .why b { color: var(--text); font-weight: 600; }
.key div > span { color: var(--muted); font-size: 0.87rem; } .key b { font-weight: 600; }
.kind { white-space: nowrap; } .kind i { display: inline-block; width: 1.2em; font-style: normal; font-weight: 700; }
.value { white-space: pre-wrap; }
.field { display: inline-block; margin-right: 0.9em; } .field > span:first-child { color: var(--muted); font-size: 0.87rem; }
mark { background: var(--mark); color: var(--text); border-bottom: 2px solid var(--warn); }
.sign { color: var(--warn); }
mark .sign { color: inherit; }
.token {
  padding: 0 0.3em; border: 1px dashed var(--bar); border-radius: 3px; color: var(--muted);
  font-size: 0.84em; font-style: italic; white-space: nowrap;
}
.copy {
  display: inline-block; max-width: 100%; padding: 0.35rem 0.7rem; background: var(--soft); border: 1px solid var(--line);
  border-radius: 5px; user-select: all; -webkit-user-select: all;
}
.left { margin: 0; padding-left: 1.1rem; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }

@media screen and (max-width: 46rem) {
  body { padding: 1.4rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  .wide { display: none; }
  .overview .badge { position: relative; }
  .overview .badge b { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .overview thead th { font-size: 0.8rem; }
  .pictures, .quiet { display: block; }
  .pictures > * + * { margin-top: 1.6rem; }
  .quiet > figure { max-width: 15rem; margin-top: 1.4rem; }
  .totals { display: grid; grid-template-columns: repeat(auto-fill, minmax(6.4rem, 1fr)); gap: 0.8rem 1rem; }
  .totals dd { font-size: 1.1rem; }
  .overview th, .overview td { padding-right: 0.6rem; }
  .overview th:last-child, .overview td:last-child { padding-right: 0; }
  .overview .badge i { margin-right: 0; }
  .overview thead th:first-child { font-size: 0; }
  .facts { grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
  .back { display: none; }
  .diffs, .diffs caption, .diffs tbody, .diffs tr, .diffs th, .diffs td { display: block; }
  .diffs thead { display: none; }
  .diffs tbody { padding: 0.7rem 0; }
  .diffs tbody th, .diffs tbody td, .diffs tbody tr:first-child > *, .diffs tbody tr:last-child > * { padding: 0.1rem 0; }
  .diffs .key, .diffs .kind, .diffs .column, .diffs .side { width: auto; }
  .diffs tbody .key, .diffs tbody .kind { display: inline-block; margin-right: 1.2rem; }
  .diffs tbody .column { padding-top: 0.35rem; font-weight: 600; }
  .diffs .side { display: grid; grid-template-columns: 6.2rem minmax(0, 1fr); }
  .diffs .side::before { content: attr(data-side); color: var(--muted); font-size: 0.87rem; }
  .diffs tbody .why { padding-top: 0.35rem; }
}
@media print {
  html { font-size: 68%; }
  body { max-width: none; padding: 0; font-size: 8.5pt; }
  .back { display: none; }
  section, .diffs tbody, figure, .bars { break-inside: avoid; }
  section.long { break-inside: auto; }
  thead { display: table-header-group; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
