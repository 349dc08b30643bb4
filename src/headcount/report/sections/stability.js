// Each score's threshold on each benchmark, relative to its mean.
sections.stability = () => {
  const place = byId("stability-chart"), share = byId("stability-share");
  const { benchmarks, shares, lines } = data.stability;
  const { text, colourOf, axis } = charts;
  shares.forEach((value, index) => { if (value > 0) share.append(element("option", { value: index }, `${+(100 * value).toFixed(2)}%`)); });
  share.value = shares.reduce((best, value, index) => (Math.abs(value - 0.15) < Math.abs(shares[best] - 0.15) ? index : best), 0);
  const redraw = charts.register(place, draw);
  const legend = charts.legend(byId("stability-legend"), lines, { changed: redraw });
  redraws.push(legend.paint);
  legend.paint();

  function draw() {
    const at = Number(share.value);
    const traces = legend.shown().filter(({ y }) => y[at]).map((line) => ({
      x: benchmarks.map(text), y: line.y[at], type: "scatter", mode: "lines+markers", name: text(line.score),
      line: { color: colourOf(line.style), width: 2, dash: line.style.dash }, marker: { symbol: line.style.symbol, size: 8 },
      customdata: line.threshold[at].map(number), hovertemplate: `${text(line.score)}: %{customdata}, %{y:.0%} of its mean<extra>%{x}</extra>`,
    }));
    return charts.react(place, traces, {
      height: place.clientHeight, xaxis: axis("", { type: "category" }),
      yaxis: axis(narrow() ? "" : "Threshold, relative to its mean", { tickformat: ".0%" }),
    });
  }
  share.addEventListener("change", redraw);
};
