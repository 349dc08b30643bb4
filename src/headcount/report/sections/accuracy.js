// Accuracy against the share of heads off.
sections.accuracy = () => {
  const state = data.accuracy;
  const place = byId("accuracy-chart"), bands = byId("accuracy-bands"), scale = byId("accuracy-scale");
  const both = [state.best, "random"].filter((score) => state.lines.some((line) => line.score === score));
  let emphasised = state.best;
  const { text, see, colourOf, axis } = charts;

  bands.append(element("option", { value: "two" }, both.join(" and ")), element("option", { value: "all" }, "every score shown"), element("option", { value: "none" }, "none"));
  if (state.baseline <= 0) scale.querySelector("[value=relative]").disabled = true;
  const redraw = charts.register(place, draw);
  const legend = charts.legend(byId("accuracy-legend"), state.lines, {
    changed: redraw,
    emphasise: (score) => { emphasised = score ?? state.best; redraw(); },
  });
  redraws.push(legend.paint);
  legend.paint();

  // A column of percentages, or of a metric's own numbers, on the chosen scale.
  const scaled = {
    absolute: (values) => values,
    points: (values) => values.map((value) => value - state.baseline),
    relative: (values) => values.map((value) => (100 * value) / state.baseline),
  };

  function draw() {
    const to = scaled[scale.value];
    const signed = scale.value === "points";
    const percent = state.share || scale.value === "relative";
    const digits = (value) => (percent ? value.toFixed(1) : value.toPrecision(3)).replace("-", "−");
    const say = (value) => (signed && value > 0 ? "+" : "") + digits(value);
    const unit = signed || !percent ? "" : "%";
    const lines = legend.shown();
    const banded = lines.filter(({ score }) => bands.value === "all" || (bands.value === "two" && both.includes(score)));
    const traces = banded.map(({ x, high, low, style }) => ({
      x: [...x, ...[...x].reverse()], y: to([...high, ...[...low].reverse()]), type: "scatter", mode: "lines", fill: "toself",
      fillcolor: see(colourOf(style), 0.15), line: { width: 0 }, hoverinfo: "skip",
    }));
    const first = [emphasised, state.best, lines[0]?.score].find((wanted) => lines.some(({ score }) => score === wanted));
    const labelled = (line) => line.score === first || (line.score === "random" && lines.length < 8);
    // The emphasised line is drawn last, over the others, and says the shares that were realised.
    for (const line of [...lines].sort((a, b) => (a.score === first) - (b.score === first))) {
      const strong = line.score === first, colour = colourOf(line.style);
      const y = to(line.y), low = to(line.low), high = to(line.high);
      traces.push({
        x: line.x, y, name: text(line.score), type: "scatter", mode: labelled(line) ? "lines+markers+text" : "lines+markers",
        opacity: strong || line.score === "random" || lines.length < 4 ? 1 : 0.6,
        line: { color: colour, width: strong ? 3.5 : 1.75, dash: line.style.dash }, marker: { color: colour, size: strong ? 9 : 6, symbol: line.style.symbol },
        text: line.x.map((share, at) => (labelled(line) && at > 0 && (!narrow() || at === line.x.length - 1) ? `${share.toFixed(1)}%` : "")),
        textposition: strong ? "top center" : "bottom center", textfont: { size: 11, color: colour },
        customdata: line.label.map((label, at) => `<b>${text(label)}</b><br>realised ${line.x[at].toFixed(1)}%<br>` +
          `${say(y[at])}${unit} [${say(low[at])}, ${say(high[at])}]`),
        hovertemplate: "%{customdata}<extra></extra>",
      });
    }
    const [baseline, floor] = to([state.baseline, state.floor]);
    const level = (y, dash, colour) => ({ type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, layer: "below", line: { color: css(colour), width: 1.25, dash } });
    // Beside the lines, where nothing is drawn; on a narrow screen there is no room.
    const mark = (y, label, anchor, colour) => ({ xref: "paper", x: 1, xanchor: "left", y, yanchor: anchor, align: "left", showarrow: false, text: label, font: { color: css(colour), size: 11 } });
    const title = { absolute: state.metric[0].toUpperCase() + state.metric.slice(1), points: state.share ? "Change, points" : "Change", relative: `${state.metric[0].toUpperCase() + state.metric.slice(1)}, % of untouched` };
    return charts.react(place, traces, {
      height: place.clientHeight,
      xaxis: axis(`${data.units} off, realised`, { ticksuffix: "%", rangemode: "tozero" }),
      yaxis: axis(narrow() ? "" : text(title[scale.value]), { ticksuffix: unit }),
      shapes: [level(baseline, "dash", "--ink"), level(floor, "dot", "--floor")],
      margin: { l: 8, r: narrow() ? 12 : 104, t: 20, b: 8 },
      annotations: narrow() ? [] : [mark(baseline, `untouched ${say(baseline).replace("+", "")}${unit}`, "bottom", "--ink"), mark(floor, state.margin, "top", "--floor")],
    });
  }
  for (const control of [bands, scale]) control.addEventListener("change", redraw);
};
