// Where a unit lies in a dimension: the arithmetic of graphprune.graph.Block, in runs instead of single indices.

// Sorted, disjoint [first, end) runs of the indices of `unit`.
function runsOf(axis, unit) {
  if (axis.only !== null && axis.only !== unit) return [];
  const step = axis.only === null ? unit : 0;
  return merged(axis.blocks.flatMap((b) => strided(b.start + step * b.unit_stride, b.loops)));
}

// The runs of all units together.
function runsOfAll(axis) {
  const units = axis.only === null ? axis.size : 1;
  return merged(axis.blocks.flatMap((b) => strided(b.start, [...b.loops, [units, b.unit_stride]])));
}

// A loop whose stride is the length so far only makes the run longer; every other loop repeats it elsewhere.
function strided(start, loops) {
  let length = 1;
  const rest = loops.filter(([count]) => count > 1);
  for (let i; (i = rest.findIndex(([, stride]) => stride === length)) >= 0; ) {
    length *= rest.splice(i, 1)[0][0];
  }
  let starts = [start];
  for (const [count, stride] of rest) {
    starts = starts.flatMap((s) => Array.from({ length: count }, (_, i) => s + i * stride));
  }
  return starts.map((s) => [s, s + length]);
}

function merged(runs) {
  const out = [];
  for (const [first, end] of [...runs].sort((a, b) => a[0] - b[0])) {
    const last = out[out.length - 1];
    if (last && first <= last[1]) last[1] = Math.max(last[1], end);
    else out.push([first, end]);
  }
  return out;
}

// "128–255", "0, 64, 128, …": short, and complete where it can be.
function runsText(runs) {
  if (!runs.length) return "not in this tensor";
  const text = ([first, end]) => (end - first === 1 ? `${first}` : `${first}–${end - 1}`);
  if (runs.length <= 4) return runs.map(text).join(", ");
  const gap = runs[1][0] - runs[0][0];
  const length = runs[0][1] - runs[0][0];
  const even = runs.every(([first, end], i) => first === runs[0][0] + i * gap && end - first === length);
  const head = runs.slice(0, 3).map(text).join(", ");
  const how = even ? `${runs.length} runs of ${length}, ${gap} apart` : `${runs.length} runs`;
  return `${head}, … ${text(runs[runs.length - 1])} (${how})`;
}

// The dimension as a strip: pale where the group runs, strong where the unit lies. Widths are in thousandths.
function strip(axis, unit) {
  const scale = 1000 / axis.length;
  const path = (runs, y, height, least) => {
    let d = "";
    let edge = -1; // what would not be seen beside its neighbour is left out
    for (const [first, end] of runs) {
      const x = Math.min(first * scale, 1000 - least);
      const width = Math.max((end - first) * scale, least);
      if (x + width < edge + 0.4) continue;
      d += `M${x.toFixed(2)} ${y}h${width.toFixed(2)}v${height}h-${width.toFixed(2)}z`;
      edge = x + width;
    }
    return d;
  };
  const odd = [];
  if (axis.only === null && axis.size <= 64) {
    for (let u = 1; u < axis.size; u += 2) odd.push(...runsOf(axis, u));
  }
  const own = runsOf(axis, unit);
  return `<svg class="strip" viewBox="0 0 1000 24" preserveAspectRatio="none" role="img"
    aria-label="indices ${esc(runsText(own))} of ${axis.length}" data-runs="${own.map(([a, b]) => `${a}-${b}`).join(" ")}">
    <rect class="rest" x="0" y="7" width="1000" height="10"/><path class="all" d="${path(runsOfAll(axis), 7, 10, 0.6)}"/>
    <path class="odd" d="${path(merged(odd), 7, 10, 0)}"/><path class="own" d="${path(own, 1, 22, 2.4)}"/></svg>`;
}
