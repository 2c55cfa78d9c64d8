// Tables that can be sorted, filtered and saved as CSV.
"use strict";

// columns: { name, digits (numbers only), shown(number, digits) -> text (where rounding is not enough) }; rows: arrays.
function tableOf({ caption, file, columns, rows, onName }) {
  let sorted = null;
  let up = true;
  const body = make("tbody");
  const heads = columns.map((column, place) => {
    const button = make("button", { type: "button", onclick: () => sortBy(place) }, column.name);
    return make("th", { scope: "col", class: column.digits === undefined ? "words" : null }, button);
  });
  const filter = make("input", { type: "search", placeholder: "filter, e.g. attn", "aria-label": `Filter: ${caption}`, oninput: fill });
  const count = make("span", { class: "quiet", "aria-live": "polite" });

  function sortBy(place) {
    up = sorted === place ? !up : columns[place].digits === undefined;
    sorted = place;
    heads.forEach((head, index) => {
      if (index === place) head.setAttribute("aria-sort", up ? "ascending" : "descending");
      else head.removeAttribute("aria-sort");
    });
    fill();
  }

  function chosen() {
    const wanted = filter.value.trim().toLowerCase();
    const found = rows.filter((row) => row.some((cell) => typeof cell === "string" && cell.toLowerCase().includes(wanted)));
    if (sorted === null) return found;
    return [...found].sort((a, b) => {
      const [one, two] = [a[sorted], b[sorted]];
      if (one === two) return 0;
      if (one === null) return 1; // what is unknown comes last, either way
      if (two === null) return -1;
      const order = typeof one === "string" ? one.localeCompare(two, undefined, { numeric: true }) : one - two;
      return up ? order : -order;
    });
  }

  function cellOf(row, column, place) {
    const value = row[place];
    if (typeof value === "string") {
      const link = onName && place === 0 ? make("button", { type: "button", class: "name", onclick: () => onName(value) }, value) : value;
      return make(place === 0 ? "th" : "td", place === 0 ? { scope: "row" } : { class: "words" }, link);
    }
    return make("td", {}, (column.shown ?? written)(value, column.digits));
  }

  function fill() {
    const found = chosen();
    body.replaceChildren(...found.map((row) => make("tr", {}, ...columns.map((column, place) => cellOf(row, column, place)))));
    count.textContent = found.length === rows.length ? "" : `${found.length} of ${rows.length} rows`;
  }

  function download() {
    const quoted = (cell) => (typeof cell === "string" && /[",\n\r]/.test(cell) ? `"${cell.replace(/"/g, '""')}"` : (cell ?? ""));
    const lines = [columns.map((column) => column.name), ...chosen()].map((row) => row.map(quoted).join(","));
    save(`${slug(file)}.csv`, "text/csv", `${lines.join("\n")}\n`);
  }

  fill();
  const tools = make("div", { class: "tools" }, rows.length > 8 ? filter : "", count, make("button", { type: "button", onclick: download }, "CSV"));
  const grid = make("table", {}, make("caption", {}, caption), make("thead", {}, make("tr", {}, ...heads)), body);
  return make("div", { class: "listing" }, tools, make("div", { class: "wide", tabindex: "0" }, grid));
}
