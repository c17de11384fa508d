// State lives in the address after '#', so that what is shown can be bookmarked and sent.

const $ = (id) => document.getElementById(id);
const FATES = ["exact", "inexact", "frozen"];
const CANDIDATES = GROUPS.filter((g) => g.fate !== "frozen");
const FIRST = CANDIDATES.find((g) => g.layer !== null) || CANDIDATES[0] || GROUPS[0]; // shown before anything is chosen

function readState() {
  const hash = new URLSearchParams(location.hash.slice(1));
  const group = BY_NAME.get(hash.get("group")) || FIRST;
  const unit = Number.parseInt(hash.get("unit"), 10) || 0;
  const fates = FATES.filter((f) => !(hash.get("hide") || "").split(",").includes(f));
  return {
    group,
    unit: group ? Math.min(Math.max(unit, 0), group.value.size - 1) : 0,
    unknown: hash.has("group") && !BY_NAME.has(hash.get("group")) ? hash.get("group") : null,
    search: hash.get("search") || "",
    role: ROLES.includes(hash.get("role")) ? hash.get("role") : "",
    fates: new Set(fates),
    each: hash.get("layers") === "each",
    all: hash.get("all") === "1",
  };
}

// Changes the address; a new entry of the history only where another group is chosen.
function go(changes) {
  const hash = new URLSearchParams(location.hash.slice(1));
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === "") hash.delete(name);
    else hash.set(name, value);
  }
  const address = `#${hash}`;
  if (address === location.hash) return;
  if ("group" in changes) location.hash = address;
  else location.replace(address);
}

let drawn = {};

function render() {
  const state = readState();
  const overview = JSON.stringify([state.role, [...state.fates], state.each]);
  if (drawn.overview !== overview) {
    $("matrix").innerHTML = matrix(state);
    for (const box of document.querySelectorAll("#fates input")) box.checked = state.fates.has(box.value);
    $("role").value = state.role;
    $("each").checked = state.each;
  }
  if (drawn.search !== state.search) {
    if ($("search").value !== state.search) $("search").value = state.search;
    $("results").innerHTML = results(state.search);
  }
  markChosen(state.group);
  const chosen = JSON.stringify([state.group && state.group.name, state.unknown, state.all]);
  if (drawn.chosen !== chosen) showGroup(state);
  else if (drawn.unit !== state.unit) showUnit(state);
  drawn = { overview, search: state.search, chosen, unit: state.unit };
}

function showGroup({ group, unit, unknown, all }) {
  const focused = document.activeElement && document.activeElement.dataset.step;
  const missing = unknown === null ? "" : `<p class="note">This graph has no group ${path(unknown)}.</p>`;
  $("detail").innerHTML = missing + (group ? detail(group, unit, all) : "<p>This graph has no groups.</p>");
  const again = focused && document.querySelector(`[data-step="${focused}"]:not(:disabled)`);
  if (again) again.focus();
}

function showUnit({ group, unit, all }) {
  for (const input of [$("unit"), $("unit-range")]) if (Number(input.value) !== unit) input.value = unit;
  $("slices").innerHTML = slices(group, unit, all);
}

function choose(name) {
  go({ group: name, unit: null, all: null });
  if (matchMedia("(max-width: 1100px)").matches) $("detail").scrollIntoView();
}

function step(what, by) {
  const { group, unit } = readState();
  if (!group) return;
  if (what === "unit") return go({ unit: Math.min(Math.max(unit + by, 0), group.value.size - 1) });
  const line = siblings(group);
  const next = line[line.indexOf(group) + by];
  if (next) go({ group: next.name });
}

document.addEventListener("click", (event) => {
  const target = event.target.closest("[data-group], #more");
  if (!target) return;
  if (target.id === "more") go({ all: "1" });
  else if (target.dataset.step) go({ group: target.dataset.group });
  else choose(target.dataset.group);
});

document.addEventListener("input", (event) => {
  const { id, value } = event.target;
  if (id === "search") go({ search: value.trim() });
  else if (id === "unit" || id === "unit-range") {
    if (event.target.checkValidity() && value !== "") go({ unit: value });
  } else if (id === "role") go({ role: value });
  else if (id === "each") go({ layers: event.target.checked ? "each" : null });
  else if (event.target.name === "fate") {
    go({ hide: [...document.querySelectorAll("#fates input:not(:checked)")].map((box) => box.value).join(",") });
  }
});

document.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=checkbox]):not([type=range]), select");
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "Escape" && event.target.id === "search") go({ search: null });
  else if (event.target.matches("#matrix .cell") && event.key.startsWith("Arrow")) {
    const next = neighbour(event.target, event.key);
    if (next) next.focus();
    event.preventDefault();
  } else if (typing) return;
  else if (event.key === "/") {
    $("search").select();
    event.preventDefault();
  } else if (event.key === "[" || event.key === "]") step("layer", event.key === "[" ? -1 : 1);
  else if (event.key === "," || event.key === ".") step("unit", event.key === "," ? -1 : 1);
});

$("filters").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", render);

$("summary").textContent = `${plural(DATA.layers, "layer")}, ${plural(GROUPS.length, "group")}, `
  + `${CANDIDATES.length} prunable · fingerprint ${DATA.fingerprint}`;
$("fates").innerHTML += FATES.map((fate) => {
  const count = GROUPS.filter((g) => g.fate === fate).length;
  return `<label class="${fate}"><input type="checkbox" name="fate" value="${fate}" checked>
    <b aria-hidden="true">${GLYPHS[fate]}</b> ${fate} <small>${count}</small></label>`;
}).join("");
$("role").innerHTML = ["", ...ROLES].map((role) => `<option value="${esc(role)}">${esc(role) || "all"}</option>`).join("");
$("each-label").hidden = !FOLDABLE;
$("remarks").innerHTML = remarks();
render();
