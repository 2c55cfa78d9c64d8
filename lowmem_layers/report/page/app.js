// The page: what is chosen, the panels that show it, and what happens on a click, a key or a change.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const state = { run: 0, task: 0, value: 0, estimator: 0, player: 0, other: 0 };
const CHARTS = [
  { id: "importance", title: "Every sublayer", draw: importanceChart, note: "Bars: the estimate of each sublayer's importance. Lines: 95 % intervals. Choose a sublayer with a click, or with the arrow keys." },
  { id: "runs", title: "Run beside run", draw: runsChart, when: (view) => view.runs.length > 1, note: "The same sublayers in every run on the chosen task. A click takes over the run." },
  { id: "compared", title: "What differs", draw: comparedChart, when: (view) => view.compared, note: "Differences from the first run (A, the first of the list) to the chosen one (B), A − B, with 95 % intervals. Filled: significant after Holm's correction." },
  { id: "order", title: "The order, and how sure it is", draw: rankChart, note: "Intervals that reach far mean: the order of these sublayers is not certain." },
  { id: "alone", title: "One sublayer {done}", draw: aloneChart, when: (view) => view.alone, note: "What is left of the model when one sublayer alone is {done}." },
  { id: "tasks", title: "Sublayers and tasks", draw: taskChart, when: (view) => view.run.tasks.length > 1, note: "The same sublayer on every task, and on their mean (all)." },
  { id: "windows", title: "Windows of neighbours {done}", draw: windowChart, when: (view) => view.windows.first.length > 0, note: "What the model loses when neighbours are {done} together. Gains are drawn as 0." },
  { id: "pairs", title: "Interactions of neighbours", draw: pairChart, when: (view) => view.pairs, note: "Negative (redundancy): each covers for the other. Positive (synergy): they need each other. Dots: significant after Holm's correction." },
  { id: "shares", title: "Shares of the whole", draw: shareChart, note: "Each sublayer's share of the sum of estimates; negative estimates count as 0. The model's order runs anti-clockwise from the top." },
];

function viewNow() {
  const run = data.runs[state.run];
  const [value, estimator] = [run.values[state.value], run.estimators[state.estimator]];
  const perTask = run.found[state.value][state.estimator];
  const several = run.tasks.length > 1;
  return {
    run, value, estimator, perTask, player: state.player, found: perTask[state.task],
    runs: runsBeside(data.runs, run, value, estimator, state.task),
    compared: comparedTo(data.compared, run, data.runs[0], value, state.task),
    taskWords: several && state.task === run.tasks.length - 1 ? "all tasks" : run.tasks[state.task],
    alone: run.alone[state.value][state.task] ?? null,
    windows: { first: run.windows.first, size: run.windows.size, lost: run.windows.lost[state.value][state.task] },
    pairs: run.pairs.first.length ? { ...run.pairs, found: run.pairs.found[state.value][state.task] } : null,
  };
}

function choice(name, words, options) {
  const select = make("select", { id: `choose-${name}`, onchange: () => choose({ [name]: Number(select.value) }) });
  select.append(...options.map((option, place) => make("option", { value: place }, option)));
  select.value = state[name];
  return make("label", {}, make("span", {}, words), select);
}

function fillChoices() {
  const run = data.runs[state.run];
  const fields = [
    data.runs.length > 1 && choice("run", "Run", data.runs.map((each) => each.title)),
    run.tasks.length > 1 && choice("task", "Task", run.tasks),
    run.values.length > 1 && choice("value", "Measured by", run.values.map((each) => `${each.words} (${each.unit})`)),
    run.estimators.length > 1 && choice("estimator", "Estimator", run.estimators.map((each) => each.words)),
    choice("player", "Sublayer", run.players.map((each) => each.name)),
  ];
  document.getElementById("choices").replaceChildren(...fields.filter(Boolean));
}

function choose(change) {
  const before = state.run;
  Object.assign(state, change);
  if (state.run !== before) {
    const run = data.runs[state.run];
    Object.assign(state, { task: run.tasks.length - 1, value: run.start, estimator: 0, player: mostImportant(run) });
  }
  fillChoices();
  if (change.player === undefined) drawAll();
  else drawPlayer();
}

function mostImportant(run) {
  const ranks = run.found[run.start][0].at(-1).rank.map((rank) => rank ?? Infinity);
  return ranks.indexOf(Math.min(...ranks));
}

function said(words, run) { // what was done to the run's sublayers: removed, quantised to nf4
  return words.replaceAll("{done}", run.done);
}

function panel(of) {
  const [id, title, note] = [of.id, said(of.title, data.runs[0]), said(of.note, data.runs[0])];
  const chart = make("div", { id: `chart-${id}`, class: "chart", role: "img", "aria-label": `${title}. ${note}` });
  const picture = (format) => make("button", { type: "button", onclick: () => Plotly.downloadImage(chart, { format, filename: `${id}`, width: 1000, height: chart.layout.height, scale: 2 }) }, format.toUpperCase());
  const tools = make("div", { class: "tools" }, picture("svg"), picture("png"));
  return make("section", { id: `panel-${id}`, class: "panel" }, make("header", {}, make("h2", {}, title), tools), make("p", { class: "quiet" }, note), chart);
}

function draw(id, chart) {
  const place = document.getElementById(`chart-${id}`);
  Plotly.react(place, chart.traces, chart.layout, { displayModeBar: false, responsive: true, doubleClick: "reset" });
  if (place.dataset.ready) return;
  place.dataset.ready = "yes";
  place.on("plotly_click", ({ points }) => {
    const [point] = points;
    if (id === "runs") return choose({ run: point.data.runs[point.y] });
    const player = Array.isArray(point.customdata) ? point.customdata[0] : point.customdata;
    if (Number.isInteger(player)) choose({ player });
  });
}

function drawAll() {
  const [view, look] = [viewNow(), theme()];
  for (const chart of CHARTS) {
    const shown = !chart.when || Boolean(chart.when(view));
    const place = document.getElementById(`panel-${chart.id}`);
    place.hidden = !shown;
    place.querySelector("h2").textContent = said(chart.title, view.run);
    place.querySelector("p.quiet").textContent = said(chart.note, view.run);
    if (shown) draw(chart.id, chart.draw(view, look));
  }
  document.getElementById("table").replaceChildren(...(view.compared ? [everyPlayer(view), comparedTable(view)] : [everyPlayer(view)]));
  drawPlayer();
}

function drawPlayer() {
  const [view, look] = [viewNow(), theme()];
  draw("importance", importanceChart(view, look));
  const player = view.run.players[state.player];
  const d = view.value.digits;
  const found = view.found;
  document.getElementById("chosen").replaceChildren(
    make("h2", {}, player.name, " ", make("small", {}, player.words)),
    make("p", {}, `${view.estimator.words} on ${view.taskWords}, by ${view.value.words}: `, make("strong", {}, `${written(found.value[state.player], d)} ${view.value.unit}`), ` ${interval(found.low[state.player], found.high[state.player], d)}, rank ${written(found.rank[state.player], 0)} ${interval(found.rank_low[state.player], found.rank_high[state.player], 0)}, ${found.items.toLocaleString("en")} items.`),
  );
  document.getElementById("panel-detail").hidden = view.run.tasks.length < 2;
  if (view.run.tasks.length > 1) draw("detail", detailChart(view, look));
  document.getElementById("chosen-tables").replaceChildren(...playerTables(view));
}

function everyPlayer(view) {
  const { run, found, value } = view;
  const drops = run.found[state.value][run.estimators.findIndex((each) => each.id === "ablation")]?.[state.task];
  const columns = [
    { name: run.players.some((each) => each.kind === "group") ? "group" : "sublayer" }, { name: "kind" },
    { name: `estimate (${value.unit})`, digits: value.digits }, { name: "95 % low", digits: value.digits }, { name: "95 % high", digits: value.digits },
    ...(drops ? [{ name: `ablation drop (${value.unit})`, digits: value.digits }] : []),
    { name: "share (%)", digits: 1 }, { name: "rank", digits: 0 }, { name: "rank low", digits: 0 }, { name: "rank high", digits: 0 },
  ];
  const rows = run.players.map((player, place) => [
    player.name, player.kind, found.value[place], found.low[place], found.high[place], ...(drops ? [drops.value[place]] : []),
    found.share[place], found.rank[place], found.rank_low[place], found.rank_high[place],
  ]).sort((a, b) => (b[2] ?? -Infinity) - (a[2] ?? -Infinity));
  const caption = `${view.estimator.words} on ${view.taskWords}, by ${value.words}`;
  const byName = (name) => choose({ player: run.players.findIndex((player) => player.name === name) });
  return tableOf({ caption, file: `importance-${view.taskWords}-${value.id}`, columns, rows, onName: byName });
}

function playerTables(view) {
  const { run, value, windows, pairs, player } = view;
  const d = value.digits;
  const ends = [{ name: "95 % low", digits: d }, { name: "95 % high", digits: d }];
  const name = run.players[player].name;
  const tables = [];
  const holding = windows.first.map((_, place) => place).filter((place) => windows.first[place] <= player && player < windows.first[place] + windows.size[place]);
  if (holding.length) {
    const rows = holding.map((place) => [run.players.slice(windows.first[place], windows.first[place] + windows.size[place]).map((each) => each.name).join(" + "), windows.lost.value[place], windows.lost.low[place], windows.lost.high[place]]);
    tables.push(tableOf({ caption: `Windows that hold ${name}`, file: `windows-${name}`, columns: [{ name: run.done }, { name: `lost (${value.unit})`, digits: d }, ...ends], rows }));
  }
  const with_ = pairs ? pairs.first.map((_, place) => place).filter((place) => pairs.first[place] === player || pairs.second[place] === player) : [];
  if (with_.length) {
    const { found } = pairs;
    const rows = with_.map((place) => [run.players[pairs.first[place] === player ? pairs.second[place] : pairs.first[place]].name, pairKind(found, place), found.value[place], found.low[place], found.high[place], found.p[place]]);
    tables.push(tableOf({ caption: `Interactions of ${name}`, file: `interactions-${name}`, columns: [{ name: "with" }, { name: "kind" }, { name: `interaction (${value.unit})`, digits: d }, ...ends, { name: "adjusted p", digits: 3, shown: pValue }], rows }));
  }
  return tables;
}

function buildPage() {
  const detail = make("section", { class: "chosen", "aria-label": "The chosen sublayer" }, make("div", { id: "chosen", "aria-live": "polite" }), panel({ id: "detail", title: "Task by task", note: "The estimate on every task, with 95 % intervals." }), make("div", { id: "chosen-tables", class: "pair" }));
  const [first, ...others] = CHARTS.map(panel);
  const table = make("section", { class: "panel" }, make("h2", {}, "All numbers"), make("div", { id: "table" }));
  document.getElementById("panels").replaceChildren(first, detail, ...others, table);
  const keys = first.querySelector(".chart");
  keys.tabIndex = 0;
  keys.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    const count = data.runs[state.run].players.length;
    choose({ player: (state.player + step + count) % count });
  });
}

// On paper everything is light and as wide as the paper, whatever the screen is.
function forPaper(yes) {
  document.documentElement.classList.toggle("paper", yes);
  drawAll();
  for (const chart of document.querySelectorAll(".chart.js-plotly-plot")) {
    if (chart.offsetParent !== null) Plotly.relayout(chart, yes ? { width: 660, autosize: false } : { width: null, autosize: true });
  }
}

async function loadLibrary() {
  const bytes = Uint8Array.from(atob(document.getElementById("library").textContent), (sign) => sign.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  document.head.append(make("script", {}, await new Response(unpacked).text()));
}

async function start() {
  await loadLibrary();
  const run = data.runs[0];
  Object.assign(state, { task: run.tasks.length - 1, value: run.start, player: mostImportant(run) });
  document.getElementById("explore").hidden = false;
  document.getElementById("still")?.remove(); // the picture and the table for those without scripts
  document.querySelectorAll(".plain").forEach((table) => table.remove());
  fillChoices();
  buildPage();
  drawAll();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  addEventListener("beforeprint", () => forPaper(true));
  addEventListener("afterprint", () => forPaper(false));
  document.documentElement.dataset.ready = "yes";
}

start();
