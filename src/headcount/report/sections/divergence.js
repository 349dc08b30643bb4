// How far answers move from the untouched model's, against the share of heads off.
sections.divergence = () => {
  const place = byId("divergence-chart"), measure = byId("divergence-measure"), task = byId("divergence-task");
  const { text, see, colourOf, axis } = charts;
  const names = {
    kl: () => "KL divergence of the answers, nats",
    gold_loglikelihood: (panel) => (panel.per_token ? "Log-likelihood of the texts, change, nats a token" : "Log-likelihood of the right answer, change, nats"),
  };
  data.divergence.forEach((panel, at) => task.append(element("option", { value: at }, panel.task)));
  const panel = () => data.divergence[task.value];
  let legend, emphasised = null;

  function offer() {
    const known = Object.keys(panel().measures), before = measure.value;
    measure.replaceChildren(...known.map((name) => element("option", { value: name }, names[name](panel()))));
    measure.value = known.includes(before) ? before : known[0];
  }
  const lines = () => panel().measures[measure.value];
  offer();
  const redraw = charts.register(place, draw);
  const scores = new Map(data.divergence.flatMap(({ measures }) => Object.values(measures).flat()).map((line) => [line.score, line]));
  legend = charts.legend(byId("divergence-legend"), [...scores.values()], {
    changed: redraw,
    emphasise: (score) => { emphasised = score; redraw(); },
  });
  redraws.push(legend.paint);
  legend.paint();

  function draw() {
    const chosen = new Set(legend.shown().map(({ score }) => score));
    const visible = lines().filter(({ score }) => chosen.has(score));
    const say = (value) => (measure.value === "kl" ? value.toFixed(3) : `${value > 0 ? "+" : ""}${value.toFixed(3)}`).replace("-", "−");
    const traces = visible.filter(({ score }) => visible.length < 4 || score === emphasised).map(({ x, high, low, style }) => ({
      x: [...x, ...[...x].reverse()], y: [...high, ...[...low].reverse()], type: "scatter", mode: "lines", fill: "toself",
      fillcolor: see(colourOf(style), 0.15), line: { width: 0 }, hoverinfo: "skip",
    }));
    for (const line of [...visible].sort((a, b) => (a.score === emphasised) - (b.score === emphasised))) {
      const strong = line.score === emphasised, colour = colourOf(line.style);
      traces.push({
        x: line.x, y: line.y, name: text(line.score), type: "scatter", mode: "lines+markers",
        line: { color: colour, width: strong ? 3.5 : 1.75, dash: line.style.dash }, marker: { color: colour, size: strong ? 9 : 6, symbol: line.style.symbol },
        customdata: line.label.map((label, at) => `<b>${text(label)}</b><br>realised ${line.x[at].toFixed(1)}%<br>` +
          `${say(line.y[at])} nat [${say(line.low[at])}, ${say(line.high[at])}]`),
        hovertemplate: "%{customdata}<extra></extra>",
      });
    }
    return charts.react(place, traces, {
      height: place.clientHeight,
      xaxis: axis(`${data.units} off, realised`, { ticksuffix: "%", rangemode: "tozero" }),
      yaxis: axis(narrow() ? "" : text(names[measure.value](panel())), {}),
    });
  }
  measure.addEventListener("change", redraw);
  task.addEventListener("change", () => { offer(); redraw(); });
};
