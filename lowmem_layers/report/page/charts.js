// The figures: each a function from what is chosen (a view) to Plotly's traces and layout.
"use strict";

const KINDS = ["attention", "feed-forward", "group"];
const SYMBOLS = { attention: "circle", "feed-forward": "square", group: "diamond" };

function theme() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  return {
    ink: of("ink"), quiet: of("quiet"), line: of("line"), paper: of("paper"),
    colours: { attention: of("attention"), "feed-forward": of("feed-forward"), group: of("group") },
    low: of("map-low"), middle: of("map-middle"), high: of("map-high"), none: of("map-none"),
  };
}

function layoutOf(look, height, more) {
  const axis = { gridcolor: look.line, zerolinecolor: look.quiet, linecolor: look.line, automargin: true, fixedrange: false };
  return {
    height, autosize: true, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, Segoe UI, Helvetica, Arial, sans-serif", size: 12, color: look.ink },
    margin: { l: 56, r: 12, t: 34, b: 44 }, hovermode: "closest", bargap: 0.1,
    hoverlabel: { bgcolor: look.paper, bordercolor: look.quiet, font: { color: look.ink }, align: "left" },
    legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12 } },
    dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
    ...more,
    xaxis: { ...axis, ...more.xaxis }, yaxis: { ...axis, ...more.yaxis },
  };
}

function layerAxis(view) {
  const { players } = view.run;
  if (players.some((player) => player.kind === "group")) {
    return { title: { text: "group of sublayers" }, tickvals: players.map((player) => player.x), ticktext: players.map((player) => plain(player.name)), showgrid: false };
  }
  return { title: { text: "decoder layer" }, showgrid: false, zeroline: false, range: [-0.7, Math.max(...players.map((player) => player.x)) + 0.7] };
}

// Where cells are players, not layers: the axis counts players, and its ticks say who is where.
function placeAxis(view, words) {
  const { players } = view.run;
  const every = Math.ceil(players.length / (innerWidth < 600 ? 8 : 15));
  const shown = players.map((_, place) => place).filter((place) => place % every === 0);
  return { title: { text: words }, showgrid: false, zeroline: false, tickvals: shown, ticktext: shown.map((place) => plain(players[place].name)), tickangle: players.length > 8 ? -45 : 0 };
}

function hover(view, place) {
  const { found, value, players } = { ...view, players: view.run.players };
  const player = players[place];
  const d = value.digits;
  return [
    `<b>${plain(player.name)}</b> ${plain(player.words)}`,
    `${plain(view.estimator.words)}: ${written(found.value[place], d)} ${plain(value.unit)}`,
    `95 % interval ${interval(found.low[place], found.high[place], d)}`,
    `rank ${written(found.rank[place], 0)} ${interval(found.rank_low[place], found.rank_high[place], 0)}`,
    `${found.items.toLocaleString("en")} items of ${plain(view.taskWords)}`,
  ].join("<br>");
}

// One trace for each kind of player, so that colour and shape tell them apart; `of` picks a kind's part of an array.
function byKind(view, look, trace) {
  const { players } = view.run;
  return KINDS.flatMap((kind) => {
    const places = players.map((_, place) => place).filter((place) => players[place].kind === kind);
    if (places.length === 0) return [];
    const of = (values) => places.map((place) => values[place]);
    const shared = { name: { group: "groups of sublayers" }[kind] ?? kind, customdata: places, hoverinfo: "text", hovertext: places.map((place) => hover(view, place)) };
    return [{ ...shared, ...trace({ places, of, colour: look.colours[kind], symbol: SYMBOLS[kind] }) }];
  });
}

function errors(value, low, high, colour) {
  return {
    type: "data", symmetric: false, color: colour, thickness: 1, width: 0,
    array: value.map((each, place) => (high[place] === null || each === null ? 0 : high[place] - each)),
    arrayminus: value.map((each, place) => (low[place] === null || each === null ? 0 : each - low[place])),
  };
}

function unitAxis(words, scale) {
  return scale ? { title: { text: words }, tickvals: scale.ticks, ticktext: scale.words } : { title: { text: words } };
}

// A colour bar's ticks, far enough apart to be read.
function barTicks(scale, most) {
  if (!scale) return {};
  const kept = [];
  scale.ticks.forEach((tick, place) => {
    if (tick === 0 || (Math.abs(tick) > 0.4 * most && Math.abs(tick) <= most && kept.every((other) => Math.abs(scale.ticks[other] - tick) > 0.4 * most))) kept.push(place);
  });
  return { tickvals: kept.map((place) => scale.ticks[place]), ticktext: kept.map((place) => scale.words[place]) };
}

function importanceChart(view, look) {
  const { found, run } = view;
  const scale = scaleOf(found.value);
  const to = (values) => (scale ? values.map(scale.to) : values);
  const [value, low, high] = [to(found.value), to(found.low), to(found.high)];
  const xs = run.players.map((player) => player.x);
  const bars = byKind(view, look, ({ places, of, colour }) => ({
    type: "bar", x: of(xs), y: of(value), width: run.players[0].kind === "group" ? 0.7 : 0.38,
    marker: { color: colour, line: { color: look.ink, width: places.map((place) => (place === view.player ? 2 : 0)) } },
    error_y: errors(of(value), of(low), of(high), look.ink),
  }));
  const unit = plain(view.value.unit) + (scale ? "; compressed" : "");
  return { traces: bars, layout: layoutOf(look, 360, { barmode: "overlay", xaxis: layerAxis(view), yaxis: unitAxis(`estimate (${unit})`, scale) }) };
}

function rankChart(view, look) {
  const { found, run } = view;
  const order = run.players.map((_, place) => place).filter((place) => found.rank[place] !== null);
  order.sort((a, b) => found.rank[a] - found.rank[b]);
  const xs = [];
  order.forEach((place, position) => { xs[place] = position + 1; });
  const every = Math.ceil(order.length / (innerWidth < 600 ? 12 : 30));
  const named = order.filter((_, position) => position % every === 0);
  const traces = byKind(view, look, ({ of, colour, symbol }) => ({
    type: "scatter", mode: "markers", x: of(xs), y: of(found.rank), marker: { color: colour, symbol, size: 7 },
    error_y: errors(of(found.rank), of(found.rank_low), of(found.rank_high), colour),
  }));
  return {
    traces,
    layout: layoutOf(look, 360, {
      xaxis: { title: { text: "sublayers by rank" }, tickvals: named.map((place) => xs[place]), ticktext: named.map((place) => plain(run.players[place].name)), tickangle: -60, showgrid: false, zeroline: false, range: [0, order.length + 1] },
      yaxis: { title: { text: "rank, 95 % interval" }, autorange: "reversed", zeroline: false },
    }),
  };
}

function aloneChart(view, look) {
  const { alone, run, value } = view;
  const xs = run.players.map((player) => player.x);
  const traces = byKind(view, look, ({ of, places, colour, symbol }) => ({
    type: "scatter", mode: "markers", x: of(xs), y: of(alone.value), marker: { color: colour, symbol, size: 7 },
    error_y: errors(of(alone.value), of(alone.low), of(alone.high), colour),
    hovertext: places.map((place) => `<b>${plain(run.players[place].name)}</b> ${plain(run.done)}: ${written(alone.value[place], value.digits)} ${plain(value.level_unit)}<br>95 % interval ${interval(alone.low[place], alone.high[place], value.digits)}`),
  }));
  const line = (level, words, dash) => ({ type: "scatter", mode: "lines", x: [-0.7, Math.max(...xs) + 0.7], y: [level, level], name: words, line: { color: look.ink, width: 1.2, dash }, hoverinfo: "name" });
  traces.push(line(alone.full.value, "full model", "solid"));
  if (alone.chance !== null) traces.push(line(alone.chance, "random guess", "dash"));
  return { traces, layout: layoutOf(look, 340, { xaxis: layerAxis(view), yaxis: { title: { text: plain(value.level_unit) }, zeroline: false } }) };
}

function windowChart(view, look) {
  const { windows, run, value } = view;
  const sizes = Math.max(...windows.size);
  const grid = Array.from({ length: sizes }, () => run.players.map(() => null));
  const words = Array.from({ length: sizes }, () => run.players.map(() => ""));
  windows.first.forEach((first, place) => {
    const [size, lost] = [windows.size[place], windows.lost];
    grid[size - 1][first] = lost.value[place] === null ? null : Math.max(lost.value[place], 0) ** 0.4;
    words[size - 1][first] = `<b>${windowName(run, first, size)}</b> ${plain(run.done)}<br>lost: ${written(lost.value[place], value.digits)} ${plain(value.unit)}<br>95 % interval ${interval(lost.low[place], lost.high[place], value.digits)}`;
  });
  const most = Math.max(...grid.flat().filter((cell) => cell !== null), 1e-9);
  const ticks = [0, 0.05, 0.25, 1].map((part) => part * most ** 2.5);
  const trace = {
    type: "heatmap", z: grid, y: grid.map((_, place) => place + 1), hoverinfo: "text", hovertext: words, xgap: 1, ygap: 1, zmin: 0, zmax: most,
    colorscale: "Cividis", customdata: grid.map((row) => row.map((_, place) => place)),
    colorbar: { title: barTitle(`lost (${plain(value.unit)})`), tickvals: ticks.map((tick) => tick ** 0.4), ticktext: ticks.map((tick) => String(Number(tick.toPrecision(2)))), thickness: 10, outlinewidth: 0 },
  };
  return { traces: [trace], layout: layoutOf(look, 130 + 34 * sizes, { xaxis: placeAxis(view, `first sublayer ${run.done}`), yaxis: { title: { text: "how many" }, dtick: 1, showgrid: false, zeroline: false } }) };
}

/** The words above a colour bar, with an empty line that keeps them off its topmost number. */
function barTitle(words) {
  return { text: `${words}<br>\u00a0`, side: "top" };
}

function windowName(run, first, size) {
  const names = run.players.slice(first, first + size).map((player) => plain(player.name));
  return names.length > 3 ? `${names[0]} … ${names.at(-1)}` : names.join(", ");
}

function diverging(look) {
  return [[0, look.low], [0.5, look.middle], [1, look.high]];
}

function pairChart(view, look) {
  const { pairs, run, value } = view;
  const { first, second, found } = pairs;
  const furthest = Math.max(...first.map((each, place) => second[place] - each));
  const grid = Array.from({ length: furthest }, () => run.players.map(() => null));
  const words = Array.from({ length: furthest }, () => run.players.map(() => ""));
  const sizes = found.value.filter((each) => each !== null).map(Math.abs).sort((a, b) => a - b);
  const unit = Math.max(sizes[Math.floor(0.75 * sizes.length)] ?? 0, (sizes.at(-1) ?? 0) / 100, 1e-9);
  const sure = { x: [], y: [] };
  first.forEach((each, place) => {
    const apart = second[place] - each;
    grid[apart - 1][each] = found.value[place] === null ? null : Math.asinh(found.value[place] / unit);
    words[apart - 1][each] = `<b>${plain(run.players[each].name)} + ${plain(run.players[second[place]].name)}</b><br>${pairKind(found, place)}: ${written(found.value[place], value.digits)} ${plain(value.unit)}<br>95 % interval ${interval(found.low[place], found.high[place], value.digits)}<br>adjusted p ${pValue(found.p[place])}`;
    if (found.sure[place]) { sure.x.push(each); sure.y.push(apart); }
  });
  const most = Math.max(...grid.flat().filter((cell) => cell !== null).map(Math.abs), 1e-9);
  const ticks = (furthest < 3 ? [-1, 0, 1] : [-1, -0.5, 0, 0.5, 1]).map((part) => part * most);
  const map = {
    type: "heatmap", z: grid, y: grid.map((_, place) => place + 1), hoverinfo: "text", hovertext: words, xgap: 1, ygap: 1,
    zmin: -most, zmax: most, colorscale: diverging(look), customdata: grid.map((row) => row.map((_, place) => place)),
    colorbar: { title: barTitle(plain(value.unit)), tickvals: ticks, ticktext: ticks.map((tick) => String(Number((unit * Math.sinh(tick)).toPrecision(2))).replace("-", MINUS)), thickness: 10, outlinewidth: 0 },
  };
  const dots = { type: "scatter", mode: "markers", ...sure, marker: { color: look.ink, size: 4 }, hoverinfo: "skip", showlegend: false };
  return { traces: [map, dots], layout: layoutOf(look, 130 + 34 * furthest, { xaxis: placeAxis(view, "first of the pair"), yaxis: { title: { text: "places apart" }, dtick: 1, showgrid: false, zeroline: false } }) };
}

function pairKind(found, place) {
  if (!found.sure[place]) return "not significant";
  return found.value[place] < 0 ? "redundancy" : "synergy";
}

function pValue(p) {
  return p === null ? "–" : p < 0.0005 ? "<0.001" : written(p, 3);
}

function taskChart(view, look) {
  const { run, value } = view;
  const groups = view.perTask;
  const scale = scaleOf(groups.flatMap((group) => group.value));
  const to = scale ? scale.to : (each) => each;
  const grid = groups.map((group) => group.value.map(to));
  const most = Math.max(...grid.flat().filter((cell) => cell !== null).map(Math.abs), 1e-9);
  const words = groups.map((group, task) => group.value.map((each, place) => `<b>${plain(run.players[place].name)}</b> on ${plain(run.tasks[task])}<br>${written(each, value.digits)} ${plain(value.unit)} ${interval(group.low[place], group.high[place], value.digits)}`));
  const trace = {
    type: "heatmap", z: grid, hoverinfo: "text", hovertext: words, xgap: 1, ygap: 1, zmin: -most, zmax: most, colorscale: diverging(look),
    customdata: grid.map((row) => row.map((_, place) => place)),
    colorbar: { title: barTitle(plain(value.unit)), thickness: 10, outlinewidth: 0, ...barTicks(scale, most) },
  };
  return { traces: [trace], layout: layoutOf(look, 130 + 30 * groups.length, { xaxis: placeAxis(view, "sublayer"), yaxis: { tickvals: groups.map((_, task) => task), ticktext: groups.map((_, task) => plain(run.tasks[task])), autorange: "reversed", showgrid: false, zeroline: false } }) };
}

function shareChart(view, look) {
  const { found, run } = view;
  const largest = new Set(run.players.map((_, place) => place).sort((a, b) => found.share[b] - found.share[a]).slice(0, 4));
  const trace = {
    type: "pie", values: found.share.map((each) => each ?? 0), labels: run.players.map((_, place) => String(place)), sort: false, direction: "counterclockwise", rotation: 0,
    text: run.players.map((player, place) => (largest.has(place) && found.share[place] > 0 ? `${plain(player.name)}<br>${written(found.share[place], 1)} %` : "")),
    textinfo: "text", textposition: "outside", hoverinfo: "text", customdata: run.players.map((_, place) => place), automargin: true,
    hovertext: run.players.map((player, place) => `<b>${plain(player.name)}</b><br>${written(found.share[place], 1)} % ${interval(found.share_low[place], found.share_high[place], 1)}`),
    marker: { colors: run.players.map((player) => look.colours[player.kind]), line: { color: look.paper, width: 1 } },
  };
  return { traces: [trace], layout: layoutOf(look, 340, { showlegend: false, margin: { l: 20, r: 20, t: 24, b: 24 } }) };
}

function detailChart(view, look) {
  const { run, value, player } = view;
  const groups = view.perTask;
  const at = (name) => groups.map((group) => group[name][player]);
  const colour = look.colours[run.players[player].kind];
  const [values, low, high] = [at("value"), at("low"), at("high")];
  const { array, arrayminus, ...rest } = errors(values, low, high, colour);
  const trace = {
    type: "scatter", mode: "markers", orientation: "h", x: values, y: groups.map((_, task) => task), marker: { color: colour, size: 9, symbol: SYMBOLS[run.players[player].kind] },
    error_x: { array, arrayminus, ...rest }, hoverinfo: "text",
    hovertext: groups.map((group, task) => `${plain(run.tasks[task])}: ${written(values[task], value.digits)} ${interval(low[task], high[task], value.digits)}<br>${group.items.toLocaleString("en")} items`),
  };
  return { traces: [trace], layout: layoutOf(look, 90 + 30 * groups.length, { showlegend: false, margin: { l: 56, r: 12, t: 8, b: 44 }, xaxis: { title: { text: plain(value.unit) } }, yaxis: { tickvals: groups.map((_, task) => task), ticktext: run.tasks.map(plain), range: [groups.length - 0.5, -0.5], showgrid: false, zeroline: false } }) };
}
