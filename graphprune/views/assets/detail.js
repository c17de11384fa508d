// The chosen group: what goes with one of its units, and what follows.

const FEW = 24; // slices shown before the rest is asked for

const SUMMED = `<span title="the operation that reads the tensor sums over this dimension">summed over</span>`;
const WRITTEN = `<span title="this dimension is one of what the tensor writes">written</span>`;

const MEANINGS = {
  exact: "removing a unit gives what silencing it gives",
  inexact: "removing a unit is not quite silencing it",
  frozen: "must not be pruned",
};

function detail(group, unit, all) {
  const { value, layer, fate } = group;
  const reason = value.frozen || (value.exact ? "" : value.inexact_reason) || "";
  const where = layer === null ? reach(value) : `layer ${layer}`;
  return `<div class="title"><h2>${esc(value.role)} <small>${esc(where)}</small></h2>${stepper(group)}</div>
    <p>${path(group.name)}</p>
    <p class="fate ${fate}"><b aria-hidden="true">${GLYPHS[fate]}</b> <strong>${fate}</strong>:
      ${esc(inLayer(reason, layer) || MEANINGS[fate])}</p>
    ${facts(group)}${picker(value, unit)}
    <div id="slices">${slices(group, unit, all)}</div>${followers(group)}`;
}

// The same group in the layers before and after.
function stepper(group) {
  const line = siblings(group);
  if (line.length < 2) return "";
  const at = line.indexOf(group);
  const step = (to, label, sign) => `<button type="button" data-group="${to ? esc(to.name) : ""}" data-step="${label}"
    aria-label="${label} layer" title="${label} layer"${to ? "" : " disabled"}>${sign}</button>`;
  return `<span class="stepper">${step(line[at - 1], "previous", "←")}<span>${at + 1} of ${line.length}</span>
    ${step(line[at + 1], "next", "→")}</span>`;
}

// Groups of the same role, one per layer: where a layer has several, those at the same place among them.
function siblings(group) {
  if (group.layer === null) return [];
  const line = GROUPS.filter((g) => g.value.role === group.value.role && g.layer !== null);
  const place = (g) => line.filter((o) => o.layer === g.layer).indexOf(g);
  const mine = place(group);
  return line.filter((g) => place(g) === mine).sort((a, b) => a.layer - b.layer);
}

function facts({ value, layer }) {
  const rows = [["units", value.size], ["weights a unit", `<span title="${value.weights}">${short(value.weights)}</span>`]];
  if (value.minimum > 1 || !value.frozen) rows.push(["must stay", value.minimum < value.size ? `at least ${value.minimum}` : "all: none can go"]);
  if (value.multiple_of > 1) rows.push(["in multiples of", value.multiple_of]);
  if (value.essential && value.essential.length) {
    rows.push(["one must stay of each", value.essential.map((units) => esc(units.join(", "))).join(" · ")]);
  }
  if (value.declared) rows.push(["declared", "by hand"]);
  const kind = DATA.kinds.find((layers) => layers.includes(layer));
  if (kind && kind.length > 1) rows.push(["the same in", layersText(kind)]);
  return `<dl>${rows.map(([name, what]) => `<div><dt>${name}</dt><dd>${what}</dd></div>`).join("")}</dl>`;
}

function picker(value, unit) {
  return `<div class="picker"><label for="unit">unit</label>
    <input id="unit-range" type="range" min="0" max="${value.size - 1}" value="${unit}" aria-label="unit"${value.size < 2 ? " disabled" : ""}>
    <input id="unit" type="number" min="0" max="${value.size - 1}" value="${unit}"><span>of 0–${value.size - 1}</span></div>`;
}

// A card for every tensor that loses something when the unit goes.
function slices(group, unit, all) {
  const items = group.value.members.filter((item) => holds(item, unit));
  const shown = all ? items : items.slice(0, FEW);
  const count = items.reduce((sum, item) => sum + (item.value.only === null ? Math.max(item.layers.length, 1) : 1), 0);
  const rest = items.length - shown.length;
  return `<h3>Goes with unit ${unit}: ${plural(count, "tensor slice")}</h3>
    <ol class="slices">${shown.map((item) => card(group, item, unit)).join("")}</ol>
    ${rest > 0 ? `<button type="button" id="more">show ${rest} more</button>` : ""}`;
}

const holds = ({ value, layers }, unit) =>
  value.only === null || (value.only === LAYER ? layers.includes(unit) : value.only === unit);

function card(group, { value, layers }, unit) {
  const alone = value.only === LAYER; // the unit is the layer
  const layer = group.layer !== null ? group.layer : alone ? unit : null;
  const axis = { ...value, only: alone ? unit : value.only };
  const some = layer !== null ? layer : layers.length ? layers[0] : null;
  const times = layer === null && layers.length ? `<span class="times">${layersText(layers)}</span>` : "";
  const others = cutsOf(value.tensor, some).filter((c) => c.group && c.group.value !== group.value);
  const links = others.map((c) => groupLink(c.group, ` · dim ${c.dim}`)).join(" ");
  return `<li data-tensor="${esc(inLayer(value.tensor, layer))}" data-dim="${value.dim}">
    <div class="tensor">${path(inLayer(value.tensor, layer))}${times}</div>
    <div class="where">${shapeText(value.tensor, some, value.dim, value.length)} <span>dim ${value.dim}</span>
      ${value.consumes ? SUMMED : WRITTEN}<span class="indices">${runsText(runsOf(axis, unit))}</span></div>
    ${strip(axis, unit)}
    ${links ? `<div class="also">also cut by ${links}</div>` : ""}</li>`;
}

function shapeText(tensor, layer, dim, length) {
  const [name, stated] = split(tensor);
  const where = stated === null ? layer : stated;
  const found = DATA.tensors.find(({ value, layers }) => {
    const [folded, own] = split(value.name);
    return folded === name && (where === null || own === where || (own === null && (!layers.length || layers.includes(where))));
  });
  if (!found) return `<span class="shape"><mark>${length}</mark></span>`;
  const parts = found.value.shape.map((n, d) => (d === dim ? `<mark>${n}</mark>` : `${n}`));
  return `<span class="shape">${parts.join(" × ") || "<mark>scalar</mark>"}</span>`;
}

const groupLink = (group, after = "") =>
  `<button type="button" class="link" data-group="${esc(group.name)}" title="${esc(`${group.name}, ${group.fate}`)}"><span
    class="${group.fate}"><b aria-hidden="true">${GLYPHS[group.fate]}</b></span> ${esc(group.value.role)} <small>${group.value.size}</small>${after}</button>`;

// Everything that is no tensor slice: where a unit is silenced, integers, constants, norms, module lists.
function followers({ value, layer }) {
  const told = (items, say) => items.map((item) =>
    `<li>${say(item.value, item.layers)}${layer === null && item.layers.length ? ` <span class="times">${layersText(item.layers)}</span>` : ""}</li>`);
  const code = (text) => path(inLayer(String(text), layer));
  const norms = (n) => `${code(n.tensor)} grows by √(all/kept)${n.epsilon ? `, ${code(`${n.owner}.${n.epsilon}`)} by all/kept` : ""}`;
  const constants = (c) => `${c.buffer ? "buffer" : "argument"} ${code(c.argument)} of ${code(c.module)}, dim ${c.dim}`;
  const stacks = (value.stacks || []).flatMap((s) => [
    `<li>entries of ${code(s.path)} move up</li>`,
    ...s.numbering.map((n) => `<li>${code(`${n.owner ? `${n.owner}.` : ""}${n.attribute}`)} of each is numbered anew</li>`),
    ...s.counts.map(([owner, name]) => `<li>${code(`${owner}.${name}`)} counts them</li>`),
    ...s.lists.map(([owner, name]) => `<li>${code(`${owner}.${name}`)} loses the same items</li>`),
  ]);
  return section("Silenced instead of removed", told(value.sites, (s) => siteText(s, code)))
    + section("Integers that follow", told(value.rules, (r, layers) => ruleText(value, layer !== null || !layers.length ? layer : layers[0], r, code)))
    + section("Scales that are corrected", told(value.norms, norms))
    + section("Constants that are cut", told(value.constants, constants)) + section("Module lists", stacks);
}

function siteText(site, code) {
  const module = code(site.module);
  const call = `call ${site.call} of ${code(site.function)} in ${module}`;
  const texts = {
    input: `the input of ${module}`,
    weight: `dim ${site.dim} of ${module}${site.reader ? ` while ${code(site.reader)} runs` : ""}`,
    logits: `−∞ in what ${call} chooses from`,
    norm: `left out of what ${call} averages`,
    skip: `that entry of ${module} hands on what it gets`,
  };
  return texts[site.kind] || `${esc(site.kind)} at ${module}`;
}

// "num_heads: 64 → 56 without one unit"
function ruleText(value, layer, rule, code) {
  const at = (fewer) => rule.terms.reduce((sum, [coefficient, names]) => sum + names.reduce((product, name) => {
    const group = BY_NAME.get(inLayer(name, layer));
    return product * (group.value.size - (group.value === value ? fewer : 0));
  }, coefficient), rule.constant);
  const reader = rule.reader === rule.owner ? "" : `, read by ${code(rule.reader)}`;
  return `${code(`${rule.owner}.${rule.attribute}`)}: ${at(0)} → ${at(1)} without one unit${reader}`;
}
