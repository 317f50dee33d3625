"""The style sheet of a report: light, dark, paper and phone."""

STYLE = """
:root { --page: #fff; --ink: #1d2126; --soft: #59626d; --rule: #d9dee4; --wash: #f4f6f8;
  --link: #0b5cad; --warn: #8a4b00; --warn-wash: #fff6e5;
  --c0: #0b62a8; --c1: #c2500a; --c2: #1b7f4d; --c3: #8a3d9e; --c4: #b0183f; --c5: #6b5b00; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e6e9ed; --soft: #a3adb8;
  --rule: #343b44; --wash: #1d2228; --link: #7db8f5; --warn: #ffc672; --warn-wash: #2d2413;
  --c0: #6db3f2; --c1: #ff9d5c; --c2: #5fd39a; --c3: #d39be6; --c4: #ff7d9c; --c5: #d8c23f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem clamp(1rem, 4vw, 2.5rem) 4rem; max-width: 76rem;
  background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
h1 { margin: 0; font-size: 1.6rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 2.5rem 0 .75rem; padding-bottom: .3rem; border-bottom: 1px solid var(--rule);
  font-size: 1.2rem; }
p { margin: .6rem 0; max-width: 46rem; overflow-wrap: anywhere; }
header p { color: var(--soft); }
a { color: var(--link); }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 1rem; top: .5rem; padding: .3rem .6rem; background: var(--page); }
nav ul, .legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; margin: .75rem 0; padding: 0;
  list-style: none; }
.warning { padding: .6rem .9rem; border-left: 4px solid var(--warn); background: var(--warn-wash); }
.warning::before { content: "Mind: "; color: var(--warn); font-weight: 600; }
.scroll { overflow-x: auto; margin: 1rem 0 1.25rem; }
table { border-collapse: collapse; width: max-content; font-size: .9rem; }
caption { max-width: min(46rem, calc(100vw - 2.5rem)); padding: 0 0 .4rem; text-align: left; color: var(--soft); }
th, td { padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--rule); text-align: left;
  vertical-align: top; }
thead th { border-bottom: 2px solid var(--rule); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 400; }
tbody th, thead th:first-child { position: sticky; left: 0; max-width: min(24rem, 45vw);
  background: var(--page); overflow-wrap: break-word; }
td { max-width: 24rem; overflow-wrap: break-word; }
.n { padding-left: .6rem; text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
details { margin: .75rem 0; }
summary { cursor: pointer; color: var(--link); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(19rem, 100%), 1fr));
  gap: 1.25rem 1.5rem; }
figure { margin: 0; break-inside: avoid; }
figcaption { font-size: .9rem; font-weight: 600; overflow-wrap: anywhere; }
figure svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.grid { stroke: var(--rule); stroke-width: 1; }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
.legend { font-size: .9rem; }
.legend svg { width: 26px; height: 8px; margin-right: .4rem; vertical-align: middle; }
.c0 { stroke: var(--c0); } .c1 { stroke: var(--c1); } .c2 { stroke: var(--c2); }
.c3 { stroke: var(--c3); } .c4 { stroke: var(--c4); } .c5 { stroke: var(--c5); }
.dot { stroke-width: 3; fill: none; }
@media print { :root { --page: #fff; --ink: #000; --soft: #444; --rule: #bbb; --warn-wash: #fff;
  --link: #000; --warn: #000;
  --c0: #0b62a8; --c1: #c2500a; --c2: #1b7f4d; --c3: #8a3d9e; --c4: #b0183f; --c5: #6b5b00; }
  body { max-width: none; padding: 0; font-size: 10pt; } nav, .skip { display: none; }
  .scroll { overflow: visible; } tr, figure { break-inside: avoid; } h2 { break-after: avoid; }
  details:not([open]) { display: none; } }
"""
