// The overview: a row per role, a column per kind of layer (or per layer), a button per group.

const NARROW_FROM = 9; // columns; from here on sizes are drawn as heights

// Where hardly any layers are alike, folding them would only tear them out of their order.
const FOLDABLE = DATA.kinds.length < Math.min(DATA.layers, NARROW_FROM);

function columnsOf(state) {
  return FOLDABLE && !state.each ? DATA.kinds : Array.from({ length: DATA.layers }, (_, layer) => [layer]);
}

function matrix(state) {
  const columns = columnsOf(state);
  const narrow = columns.length >= NARROW_FROM;
  const shown = GROUPS.filter((g) => state.fates.has(g.fate) && (!state.role || g.value.role === state.role));
  const rows = ROLES.map((role) => row(role, shown.filter((g) => g.value.role === role), columns, narrow)).join("");
  const heads = columns.map((layers) => head(layers, columns.length, narrow)).join("");
  const body = rows || `<tr><td>No group has this role and this fate.</td></tr>`;
  return `<div class="scroll${narrow ? " narrow" : ""}"><table>
    <thead><tr><th scope="col">role</th>${heads}</tr></thead><tbody>${body}</tbody></table></div>`;
}

function head(layers, count, narrow) {
  if (!narrow) {
    const alike = layers.length > 1 ? `<small>${layers.length} alike</small>` : "";
    return `<th scope="col" title="${layersText(layers)}">${layersText(layers, 4)}${alike}</th>`;
  }
  const every = count > 40 ? 10 : 5;
  const label = layers[0] % every === 0 && layers[0] < count - 1 ? layers[0] : "";
  return `<th scope="col" title="${layersText(layers)}"><span>${label}</span></th>`;
}

function row(role, groups, columns, narrow) {
  if (!groups.length) return "";
  const largest = Math.max(...groups.map((g) => g.value.size));
  const whole = groups.filter((g) => g.layer === null);
  const inside = groups.filter((g) => g.layer !== null);
  let out = "";
  if (inside.length) {
    const cells = columns.map((layers) => {
      const own = inside.filter((g) => g.layer === layers[0]);
      return `<td>${own.map((g) => button(g, layers, largest, narrow)).join("")}</td>`;
    });
    out += `<tr><th scope="row">${esc(role)}</th>${cells.join("")}</tr>`;
  }
  if (whole.length) {
    const cell = whole.map((g) => button(g, [], largest, false)).join("");
    out += `<tr><th scope="row">${esc(role)}</th><td colspan="${Math.max(columns.length, 1)}">${cell}</td></tr>`;
  }
  return out;
}

function button(group, layers, largest, narrow) {
  const { value, fate } = group;
  const where = layers.length ? layersText(layers) : reach(value);
  const label = `${value.role}, ${where}: ${plural(value.size, "unit")}, ${fate}`;
  const height = Math.max(12, (100 * value.size) / largest).toFixed(0);
  const face = narrow
    ? `<i style="height:${height}%"></i>`
    : `<b aria-hidden="true">${GLYPHS[fate]}</b> ${value.size}${layers.length ? "" : `<small>${esc(where)}</small>`}`;
  return `<button type="button" class="cell ${fate}" tabindex="-1" data-group="${esc(group.name)}"
    data-layers="${layers.join(" ")}" title="${esc(label)}" aria-label="${esc(label)}">${face}</button>`;
}

// Where a group lies that belongs to no single layer.
function reach(value) {
  const layers = [...new Set(value.members.flatMap((m) => m.layers))].sort((a, b) => a - b);
  if (layers.length) return layers.length === DATA.layers ? "across all layers" : `across ${layersText(layers)}`;
  const tensor = value.members.length ? value.members[0].value.tensor : value.name;
  return `in ${tensor}`;
}

// Marks the button of the chosen group; it is the one that Tab reaches.
function markChosen(group) {
  const buttons = [...document.querySelectorAll("#matrix .cell")];
  const same = (b) => group && (b.dataset.group === group.name
    || (BY_NAME.get(b.dataset.group).value === group.value && b.dataset.layers.split(" ").includes(String(group.layer))));
  for (const b of buttons) {
    b.setAttribute("aria-pressed", String(Boolean(same(b))));
    b.tabIndex = -1;
  }
  const entry = buttons.find(same) || buttons[0];
  if (entry) entry.tabIndex = 0;
}

// The next button in the direction of an arrow key, by where it is drawn.
function neighbour(from, key) {
  const at = from.getBoundingClientRect();
  const vertical = key === "ArrowUp" || key === "ArrowDown";
  const sign = key === "ArrowRight" || key === "ArrowDown" ? 1 : -1;
  let best = null;
  for (const b of document.querySelectorAll("#matrix .cell")) {
    const box = b.getBoundingClientRect();
    const dx = box.left - at.left;
    const dy = box.top + box.height / 2 - at.top - at.height / 2;
    const ahead = (vertical ? dy : dx) * sign;
    const aside = Math.abs(vertical ? dx : dy);
    if (b === from || ahead < 4 || (!vertical && aside > 8)) continue;
    const distance = ahead + aside * (vertical ? 0.2 : 4);
    if (!best || distance < best.distance) best = { b, distance };
  }
  return best && best.b;
}

// Why some groups are inexact or frozen, notes of the tracer, and parameters that it never met.
function remarks() {
  const reasons = new Map();
  for (const { value, layers } of DATA.groups) {
    const reason = value.frozen || (value.exact ? "" : value.inexact_reason || "no reason recorded");
    if (!reason) continue;
    const key = `${fateOf(value)}\n${reason}`;
    if (!reasons.has(key)) reasons.set(key, new Map());
    const roles = reasons.get(key);
    roles.set(value.role, (roles.get(value.role) || 0) + Math.max(layers.length, 1));
  }
  const items = [...reasons].map(([key, roles]) => {
    const [fate, reason] = key.split("\n");
    const who = [...roles].map(([role, count]) => `<span>${esc(role)} <small>×${count}</small></span>`).join(", ");
    return `<li class="${fate}"><b aria-hidden="true">${GLYPHS[fate]}</b> <strong>${who}</strong> ${fate}: ${esc(inLayer(reason, null))}.</li>`;
  });
  const notes = DATA.notes.map(({ value, layers }) =>
    `<li>${esc(inLayer(value, null))}${layers.length ? ` (${layersText(layers)})` : ""}</li>`);
  const unused = DATA.tensors.filter((t) => t.value.unused).map(({ value, layers }) =>
    `<li>${path(inLayer(value.name, null))}${layers.length ? ` (${layersText(layers)})` : ""}</li>`);
  return section("Why some must stay, or are inexact", items) + section("What the tracer could not follow", notes)
    + section("Never used by the traced forward pass, and left as they are", unused);
}

const section = (title, items) => (items.length ? `<h2>${title}</h2><ul>${items.join("")}</ul>` : "");
