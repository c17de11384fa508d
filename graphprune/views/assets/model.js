// The page's data: folded groups and tensors, unfolded on demand.

const LAYER = "{layer}";
const DATA = JSON.parse(document.getElementById("data").textContent);

const esc = (text) => String(text).replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);
const path = (name) => `<code>${esc(name).replaceAll(".", ".<wbr>")}</code>`; // breaks after dots, if it must
const inLayer = (text, layer) => (layer === null ? text.replaceAll(LAYER, "*") : text.replaceAll(LAYER, layer));
const fateOf = (group) => (group.frozen !== null ? "frozen" : group.exact ? "exact" : "inexact");
const GLYPHS = { exact: "●", inexact: "◐", frozen: "○" };
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;

// One entry per group of the graph: its folded value, its layer (null if it belongs to none), its name.
const GROUPS = DATA.groups.flatMap(({ value, layers }) =>
  (layers.length ? layers : [null]).map((layer) => ({ value, layer, name: inLayer(value.name, layer), fate: fateOf(value) })));
const BY_NAME = new Map(GROUPS.map((g) => [g.name, g]));

const prunable = (role) => GROUPS.some((g) => g.value.role === role && g.fate !== "frozen");
const ROLES = [...new Set(GROUPS.map((g) => g.value.role))].sort((a, b) => prunable(b) - prunable(a));

// ["model.layers.{layer}.norm", 3] for a tensor of layer 3; a name that is folded already, or in no layer, has no layer.
function split(name) {
  const stack = `${DATA.stack}.`;
  const index = DATA.stack !== null && name.startsWith(stack) ? /^\d+(?!\w)/.exec(name.slice(stack.length)) : null;
  return index ? [stack + LAYER + name.slice(stack.length + index[0].length), Number(index[0])] : [name, null];
}

// By folded tensor name, every [folded group, item of its members, layer] that cuts it. A group that speaks of several
// layers cannot be folded: only its items know which layer they are in.
const CUTS = new Map();
for (const group of DATA.groups) {
  for (const item of group.value.members) {
    const [tensor, layer] = split(item.value.tensor);
    if (!CUTS.has(tensor)) CUTS.set(tensor, []);
    CUTS.get(tensor).push([group, item, layer]);
  }
}

// The groups that cut a tensor of a layer (null outside of the layers), each with the dimension.
function cutsOf(tensor, layer) {
  const [name, stated] = split(tensor);
  if (stated !== null) layer = stated;
  const layersOf = ([group, item, own]) => (own !== null ? [own] : group.layers.length ? group.layers : item.layers);
  return (CUTS.get(name) || [])
    .filter((cut) => layer === null || layersOf(cut).includes(layer))
    .map(([group, item]) => ({
      group: BY_NAME.get(inLayer(group.value.name, group.layers.length ? layer : null)),
      dim: item.value.dim,
    }));
}

// "layers 0–3, 5"; with `most` runs at most, "layers 0–3, 5, … 60"
function layersText(layers, most = Infinity) {
  const runs = merged(layers.map((n) => [n, n + 1])).map(([a, b]) => (b - a === 1 ? `${a}` : `${a}–${b - 1}`));
  const shown = runs.length > most ? [...runs.slice(0, most - 1), `… ${runs[runs.length - 1]}`] : runs;
  return `${layers.length === 1 ? "layer" : "layers"} ${shown.join(", ")}`;
}

// 24576 is "24.6K"
function short(number) {
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["K", 1e3]]) {
    if (number >= size * 0.9995) return `${(number / size).toPrecision(3)}${unit}`;
  }
  return `${Number(number.toPrecision(3))}`;
}
