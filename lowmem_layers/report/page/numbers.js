// How numbers and names are written. Names come from data: they reach the page as text, never as markup.
"use strict";

const MINUS = "\u2212";

function written(value, digits) {
  if (value === null || value === undefined) return "–";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", MINUS);
}

function interval(low, high, digits) {
  return low === null || high === null ? "–" : `[${written(low, digits)}, ${written(high, digits)}]`;
}

// Plotly reads a few HTML tags and entities in its texts; here they are text.
function plain(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

function save(name, type, text) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

function slug(text) {
  return text.replace(/[^\p{L}\p{N}_.-]+/gu, "-");
}

// A scale that is linear near 0 and logarithmic beyond, for values of which a few dwarf the others.
function scaleOf(values) {
  const sizes = values.filter((value) => value !== null).map(Math.abs).sort((a, b) => a - b);
  const most = sizes.at(-1) ?? 0;
  const median = sizes[Math.floor(sizes.length / 2)] ?? 0;
  if (most <= 25 * Math.max(median, 1e-12)) return null;
  const unit = Math.max(sizes[Math.floor(sizes.length * 0.75)], most / 1000);
  const to = (value) => (value === null ? null : Math.asinh(value / unit));
  const ticks = [0];
  for (let power = Math.floor(Math.log10(unit)); 10 ** power <= 10 * most; power += 1) {
    for (const factor of [1, 3]) {
      const tick = factor * 10 ** power;
      if (tick >= 0.25 * unit) ticks.push(tick, -tick);
    }
  }
  const kept = ticks.filter((tick) => Math.abs(tick) <= 1.3 * most).sort((a, b) => a - b);
  return { to, ticks: kept.map(to), words: kept.map((tick) => String(Number(tick.toPrecision(1))).replace("-", MINUS)) };
}
