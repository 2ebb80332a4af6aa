"""How a page looks: light, dark, and on paper."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--ink:#1f2933;--soft:#5b6875;--paper:#fff;--raised:#f6f8fa;--line:#d9dfe5;--link:#2450b5;
--good:#1b7f4b;--bad:#b3261e;--s0:#3159c4;--s1:#d1620a;--s2:#1b8a5a;--s3:#a1349c;--s4:#8a6d00;--s5:#0b7f93;--s6:#b3261e;
--s7:#5b6875}
@media (prefers-color-scheme:dark){:root{--ink:#e4e9ee;--soft:#9eabb8;--paper:#12171d;--raised:#1b222a;--line:#323c47;
--link:#8fb0ff;--good:#6fd3a0;--bad:#ff9b91;--s0:#86a8ff;--s1:#ffab62;--s2:#66d39d;--s3:#e793e2;--s4:#e3c34b;
--s5:#5fcbe0;--s6:#ff9b91;--s7:#9eabb8}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main,header,nav,footer{max-width:1180px;margin:0 auto;padding:0 20px}
header{padding-top:28px}
h1{font-size:1.7em;margin:0 0 4px;overflow-wrap:anywhere}
h2{font-size:1.25em;margin:36px 0 10px;padding-top:8px;border-top:1px solid var(--line)}
h3{font-size:1em;margin:18px 0 6px;overflow-wrap:anywhere}
a{color:var(--link)}
p{margin:6px 0 10px;max-width:75ch}
.note{color:var(--soft);font-size:.9em}
.bad{color:var(--bad)}
nav ul{display:flex;flex-wrap:wrap;gap:4px 16px;list-style:none;margin:14px 0;padding:10px 14px;
background:var(--raised);border-radius:6px}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(240px,1fr));gap:6px 20px;margin:10px 0}
.facts div{display:flex;flex-direction:column;border-left:3px solid var(--line);padding-left:9px}
dt{color:var(--soft);font-size:.83em}
dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.charts{display:grid;align-items:start;grid-template-columns:repeat(auto-fill,minmax(340px,1fr));gap:16px}
figure{max-width:600px;margin:0 0 12px;padding:10px 12px;border:1px solid var(--line);border-radius:6px;
min-width:0;break-inside:avoid}
figure>svg{width:100%;height:auto;display:block}
.charts figure{margin:0}
figcaption{font-weight:600;font-size:.92em;overflow-wrap:anywhere}
figure.picture{max-width:760px}
.picture img{max-width:100%;height:auto;background:#fff;display:block}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:2px 14px;margin:4px 0;padding:0;font-size:.83em;
color:var(--soft)}
.legend svg{width:26px;height:8px;margin-right:5px;vertical-align:middle}
details{margin:6px 0}
summary{cursor:pointer;color:var(--link);font-size:.9em}
.scroll{overflow:auto;max-height:460px}
table{border-collapse:collapse;font-size:.87em;font-variant-numeric:tabular-nums}
caption{text-align:left;color:var(--soft);padding:4px 0}
th,td{padding:3px 10px 3px 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th{color:var(--soft);font-weight:600;position:sticky;top:0;background:var(--paper)}
td{overflow-wrap:anywhere;min-width:3em}
td.n{text-align:right;white-space:nowrap}
pre{background:var(--raised);padding:12px;border-radius:6px;overflow:auto;max-height:520px;font-size:.85em}
svg text{font:11px system-ui,sans-serif;fill:var(--soft)}
svg text.ink{fill:var(--ink)}
.grid{stroke:var(--line);stroke-width:1}
.l{fill:none;stroke-width:1.8;stroke-linejoin:round}
.l0,.d0{stroke:var(--s0)}.l1,.d1{stroke:var(--s1)}.l2,.d2{stroke:var(--s2)}.l3,.d3{stroke:var(--s3)}
.l4,.d4{stroke:var(--s4)}.l5,.d5{stroke:var(--s5)}.l6,.d6{stroke:var(--s6)}.l7,.d7{stroke:var(--s7)}
.d{stroke-width:1}.d0,.b0{fill:var(--s0)}.d1,.b1{fill:var(--s1)}.d2{fill:var(--s2)}.d3{fill:var(--s3)}.d4{fill:var(--s4)}
.d5{fill:var(--s5)}.d6{fill:var(--s6)}.d7{fill:var(--s7)}
.ring{fill:none;stroke:var(--s1);stroke-width:2}
footer{margin-top:40px;padding-bottom:30px;color:var(--soft);font-size:.85em}
@media print{:root{color-scheme:light;--ink:#000;--soft:#444;--paper:#fff;--raised:#f4f4f4;--line:#ccc}
body{font-size:11px}.scroll,pre{max-height:none;overflow:visible}pre{white-space:pre-wrap}
.charts{grid-template-columns:repeat(2,1fr)}h2,h3{break-after:avoid}tr{break-inside:avoid}}
"""
