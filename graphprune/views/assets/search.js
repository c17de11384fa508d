// Parameters by name, each with the groups that cut it.

const MOST = 40; // results

function results(query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  if (!words.length) return "";
  const found = DATA.tensors.map((tensor) => ({ tensor, layers: matching(tensor, words) })).filter((f) => f.layers);
  const count = found.reduce((sum, f) => sum + f.layers.length, 0);
  if (!count) return `<p>No parameter has ${words.map((w) => `“${esc(w)}”`).join(" and ")} in its name.</p>`;
  const more = found.length > MOST ? `<p>… and ${found.length - MOST} more kinds; a longer name finds fewer.</p>` : "";
  return `<h2>${plural(count, "parameter")} found</h2><ol class="found">${found.slice(0, MOST).map(result).join("")}</ol>${more}`;
}

// The layers whose tensor has every word in its name or an alias ([null] outside of the layers), or null. A number must
// be a whole one: 3 is not 13.
function matching({ value, layers }, words) {
  const names = [value.name, ...value.aliases];
  const fits = (layer) => names.some((name) => {
    const text = inLayer(name, layer).toLowerCase();
    return words.every((word) => (/^\d+$/.test(word) ? text.split(/\D+/).includes(word) : text.includes(word)));
  });
  const found = (layers.length ? layers : [null]).filter(fits);
  return found.length ? found : null;
}

function result({ tensor, layers }) {
  const { value } = tensor;
  const one = layers.length === 1 ? layers[0] : null;
  const cuts = cutsOf(value.name, layers[0]).filter((c) => c.group);
  const byDim = value.shape.map((n, dim) => {
    const own = cuts.filter((c) => c.dim === dim);
    const links = own.map((c) => groupLink(c.group)).join(" ") || "<span>whole, never cut</span>";
    return `<div><span class="shape">dim ${dim} <mark>${n}</mark></span> ${links}</div>`;
  });
  const aliases = value.aliases.length ? ` <span class="times">also ${esc(value.aliases.join(", "))}</span>` : "";
  const times = layers.length > 1 ? ` <span class="times">${layersText(layers)}</span>` : "";
  const unused = value.unused ? `<div class="frozen">never used by the traced forward pass, so it stays as it is</div>` : "";
  return `<li data-tensor="${esc(inLayer(value.name, one))}">${path(inLayer(value.name, one))}${times}${aliases}
    ${unused || byDim.join("")}</li>`;
}
