// The share of heads that each score lets one switch off: the paper's 14 models, and this run.
sections.paper = () => {
  const place = byId("paper-chart");
  const { models, scores, shares, own, name, axis: title } = data.paper;
  const { text, axis } = charts;
  charts.register(place, () => {
    const names = scores.map(({ score }) => text(score));
    // Models at one share are set side by side, always in the same order.
    const spread = (index) => 0.5 * (index / (models.length - 1) - 0.5);
    const traces = models.map((model, index) => ({
      x: scores.map((_, k) => k + spread(index)), y: shares.map((of) => of[index] ?? null), type: "scatter", mode: "markers",
      marker: { size: 6, color: css("--soft"), opacity: 0.55 }, text: names, hovertemplate: `%{text}: %{y:.1f}%<extra>${text(model)}</extra>`,
    }));
    const here = own.flatMap((of, k) => (of ? [{ k, ...of }] : []));
    traces.push({
      x: here.map(({ k }) => k), y: here.map(({ share }) => share), type: "scatter", mode: "markers", text: here.map(({ k, text: said }) => `${names[k]}: ${text(said)}`),
      error_y: { type: "data", array: here.map(({ share, high }) => high - share), arrayminus: here.map(({ share, low }) => share - low), symmetric: false, color: css("--accent"), thickness: 1.5, width: 5 },
      marker: { size: 12, symbol: here.map(({ bound }) => (bound ? "triangle-up" : "diamond")), color: css("--accent"), line: { color: css("--paper"), width: 1.5 } },
      hovertemplate: `%{text}<extra>${text(name)}</extra>`,
    });
    return charts.react(place, traces, {
      height: place.clientHeight, xaxis: axis("", { tickvals: names.map((_, k) => k), ticktext: names, tickangle: narrow() ? -90 : -45, showgrid: false }),
      yaxis: axis(narrow() ? "" : title, { ticksuffix: "%", rangemode: "tozero" }),
    });
  });
};
