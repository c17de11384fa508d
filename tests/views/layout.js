// What a reader would complain about, as a list of sentences.
() => {
  const faults = [];
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth) faults.push(`the page is wider (${root.scrollWidth}) than the screen (${innerWidth})`);

  const visible = (e) => {
    const style = getComputedStyle(e);
    return e.checkVisibility() && style.visibility === "visible" && !e.closest(".hidden, noscript, select, option");
  };
  const lines = []; // one box per line of text
  for (const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); walker.nextNode(); ) {
    const node = walker.currentNode;
    const element = node.parentElement;
    if (!node.data.trim() || !visible(element) || element.closest("script, style")) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const clip = element.closest(".scroll, #detail, #results");
    const frame = clip ? clip.getBoundingClientRect() : { left: -1e9, right: 1e9, top: -1e9, bottom: 1e9 };
    for (const whole of range.getClientRects()) {
      const box = { left: Math.max(whole.left, frame.left), right: Math.min(whole.right, frame.right),
        top: Math.max(whole.top, frame.top), bottom: Math.min(whole.bottom, frame.bottom) }; // what can be seen of it
      if (box.right - box.left > 1 && box.bottom > box.top) lines.push({ node, element, box, text: node.data.trim().slice(0, 40) });
    }
  }
  for (let i = 0; i < lines.length; i++) {
    for (let j = i + 1; j < lines.length; j++) {
      const [a, b] = [lines[i], lines[j]];
      if (a.node === b.node || a.element.closest("th[scope=row]") || b.element.closest("th[scope=row]")) continue;
      const dx = Math.min(a.box.right, b.box.right) - Math.max(a.box.left, b.box.left);
      const dy = Math.min(a.box.bottom, b.box.bottom) - Math.max(a.box.top, b.box.top);
      if (dx > 1 && dy > 4) faults.push(`“${a.text}” and “${b.text}” overlap by ${dx.toFixed(0)} × ${dy.toFixed(0)}`);
    }
  }

  const parse = (color) => (color.match(/[\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const backdrop = (e) => {
    for (; e; e = e.parentElement) {
      const color = parse(getComputedStyle(e).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
    return [255, 255, 255];
  };
  for (const { element, text } of lines) {
    if (element.closest(":disabled, [aria-hidden]")) continue;
    const [front, back] = [parse(getComputedStyle(element).color), backdrop(element)].map(luminance);
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (contrast < 4.5) faults.push(`“${text}” has a contrast of ${contrast.toFixed(2)}`);
  }
  return faults;
}
