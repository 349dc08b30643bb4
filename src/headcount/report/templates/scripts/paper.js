// The share of heads that each score lets one zero: the paper's 14 models, and this run.
function paperChart() {
  const place = byId("paper-chart");
  const { models, scores, shares, own, bound, name } = data.paper;
  const { text, axis } = charts;
  charts.register(place, () => {
    const names = scores.map(({ score }) => text(score));
    // Models at one share are set side by side, always in the same order.
    const spread = (index) => 0.5 * (index / (models.length - 1) - 0.5);
    const traces = models.map((model, index) => ({
      x: scores.map((_, k) => k + spread(index)), y: shares.map((of) => of[index] ?? null), type: "scatter", mode: "markers",
      marker: { size: 6, color: css("--soft"), opacity: 0.55 }, text: names, hovertemplate: `%{text}: %{y:.1f}%<extra>${text(model)}</extra>`,
    }));
    traces.push({
      x: scores.map((_, k) => k), y: own, type: "scatter", mode: "markers", text: names.map((score, k) => `${score}: ${bound[k] ? "at least " : ""}`),
      marker: { size: 13, symbol: bound.map((open) => (open ? "triangle-up" : "diamond")), color: css("--accent"), line: { color: css("--paper"), width: 1.5 } },
      hovertemplate: `%{text}%{y:.1f}%<extra>${text(name)}</extra>`,
    });
    return charts.react(place, traces, {
      height: place.clientHeight, xaxis: axis("", { tickvals: names.map((_, k) => k), ticktext: names, tickangle: -45, showgrid: false }),
      yaxis: axis(narrow() ? "" : "Heads zeroed within 1 point", { ticksuffix: "%", rangemode: "tozero" }),
    });
  });
}
