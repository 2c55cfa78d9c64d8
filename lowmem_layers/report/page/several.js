// Several runs on one page: all beside each other, and the chosen one against the first.
"use strict";

// The runs that measured the same players on the chosen task by the same value and estimator.
function runsBeside(runs, run, value, estimator, task) {
  const same = (other) => other.players.length === run.players.length && other.players.every((each, place) => each.name === run.players[place].name);
  return runs.flatMap((other, index) => {
    const places = [other.values.findIndex((each) => each.id === value.id), other.estimators.findIndex((each) => each.id === estimator.id), other.tasks.indexOf(run.tasks[task])];
    if (!same(other) || places.includes(-1)) return [];
    return [{ index, title: other.title, found: other.found[places[0]][places[1]][places[2]] }];
  });
}

// The comparison of the chosen run (or, where that is the first, of the second) with the first.
function comparedTo(compared, run, first, value, task) {
  const of = compared.find((each) => each.b === run.title) ?? (run.title === first.title ? compared[0] : undefined);
  const place = first.values.findIndex((each) => each.id === value.id);
  const found = of?.found[place] ?? {};
  const name = found[run.tasks[task]] ? run.tasks[task] : Object.keys(found).at(-1);
  return name === undefined ? null : { ...found[name], titles: [first.title, of.b], task: name };
}

function runsChart(view, look) {
  const { runs, value } = view;
  const scale = scaleOf(runs.flatMap((each) => each.found.value));
  const to = scale ? scale.to : (each) => each;
  const grid = runs.map((each) => each.found.value.map(to));
  const most = Math.max(...grid.flat().filter((cell) => cell !== null).map(Math.abs), 1e-9);
  const words = runs.map(({ title, found }) => found.value.map((each, place) => `<b>${plain(view.run.players[place].name)}</b> in ${plain(title)}<br>${written(each, value.digits)} ${plain(value.unit)} ${interval(found.low[place], found.high[place], value.digits)}<br>rank ${written(found.rank[place], 0)}, ${found.items.toLocaleString("en")} items`));
  const trace = {
    type: "heatmap", z: grid, hoverinfo: "text", hovertext: words, xgap: 1, ygap: 1, zmin: -most, zmax: most, colorscale: diverging(look), runs: runs.map((each) => each.index),
    colorbar: { title: barTitle(plain(value.unit)), thickness: 10, outlinewidth: 0, ...barTicks(scale, most) },
  };
  return { traces: [trace], layout: layoutOf(look, 140 + 34 * runs.length, { xaxis: placeAxis(view, "sublayer"), yaxis: { tickvals: runs.map((_, row) => row), ticktext: runs.map((each) => plain(each.title).replaceAll(" · ", "<br>")), autorange: "reversed", showgrid: false, zeroline: false } }) };
}

function comparedChart(view, look) {
  const { compared, value, run } = view;
  const place = new Map(run.players.map((player, index) => [player.name, index]));
  const at = compared.players.map((name) => place.get(name)).map((index, row) => ({ index, row })).filter(({ index }) => index !== undefined);
  const scale = scaleOf(compared.value);
  const to = scale ? scale.to : (each) => each;
  const traces = KINDS.flatMap((kind) => {
    const rows = at.filter(({ index }) => run.players[index].kind === kind);
    if (rows.length === 0) return [];
    const of = (values) => rows.map(({ row }) => values[row]);
    const colour = look.colours[kind];
    const [values, low, high] = [compared.value, compared.low, compared.high].map((each) => of(each).map((one) => (one === null ? null : to(one))));
    return [{
      type: "scatter", mode: "markers", name: kind, x: rows.map(({ index }) => run.players[index].x), y: values, error_y: errors(values, low, high, colour), customdata: rows.map(({ index }) => index),
      marker: { symbol: SYMBOLS[kind], size: 8, color: of(compared.sure).map((sure) => (sure ? colour : look.paper)), line: { color: colour, width: 1.5 } },
      hoverinfo: "text",
      hovertext: rows.map(({ row }) => `<b>${plain(compared.players[row])}</b><br>A ${written(compared.a[row], value.digits)}, B ${written(compared.b[row], value.digits)} ${plain(value.unit)}<br>A − B ${written(compared.value[row], value.digits)} ${interval(compared.low[row], compared.high[row], value.digits)}<br>adjusted p ${pValue(compared.p[row])}`),
    }];
  });
  const words = `A − B (${plain(value.unit)}${scale ? "; compressed" : ""})`;
  const title = `A ${plain(compared.titles[0])}<br>B ${plain(compared.titles[1])}, on ${plain(compared.task)}, ${compared.paired ? "paired" : "not paired"}`;
  return { traces, layout: layoutOf(look, 400, { title: { text: title, font: { size: 12, color: look.quiet }, x: 0, xanchor: "left" }, margin: { l: 56, r: 12, t: 80, b: 44 }, xaxis: layerAxis(view), yaxis: unitAxis(words, scale) }) };
}

function comparedTable(view) {
  const { compared, value } = view;
  const d = value.digits;
  const columns = [{ name: "sublayer" }, { name: `A (${value.unit})`, digits: d }, { name: `B (${value.unit})`, digits: d }, { name: "A − B", digits: d }, { name: "95 % low", digits: d }, { name: "95 % high", digits: d }, { name: "adjusted p", digits: 3, shown: pValue }];
  const rows = compared.players.map((name, row) => [name, compared.a[row], compared.b[row], compared.value[row], compared.low[row], compared.high[row], compared.p[row]]);
  rows.sort((one, two) => (one[6] ?? 2) - (two[6] ?? 2) || Math.abs(two[3] ?? 0) - Math.abs(one[3] ?? 0));
  return tableOf({ caption: `A: ${compared.titles[0]}; B: ${compared.titles[1]}; ${compared.task}`, file: "differences", columns, rows });
}
