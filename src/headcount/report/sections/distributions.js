// Cumulative distributions of every score over all heads and inputs.
sections.distributions = () => {
  const place = byId("distributions-chart");
  const { scores } = data.heads ?? data.distributions;
  const { text, colourOf } = charts;
  const marked = [10, 20, 30]; // shares of heads, percent
  const falling = (entry) => entry.inactive_when === "high";
  const ascending = (entry) => (falling(entry) ? [...entry.thresholds].reverse() : entry.thresholds);

  function traces(entry) {
    const cuts = ascending(entry);
    const curve = {
      x: cuts, y: cuts.map((_, k) => k / (cuts.length - 1)), line: { color: colourOf(entry.style), width: 2, simplify: false },
      hovertemplate: `%{y:.0%} of scores up to %{x:.3g}<extra>${text(entry.score)}</extra>`,
    };
    if (!entry.inactive_when) return [curve];
    return [curve, {
      x: marked.map((share) => entry.thresholds[share]), y: marked.map((share) => (falling(entry) ? 100 - share : share) / 100),
      mode: "markers", marker: { color: css("--ink"), size: 7, symbol: "line-ns-open", line: { width: 2 } }, customdata: marked,
      hovertemplate: `%{customdata}% of scores ${falling(entry) ? "above" : "below"} %{x:.4g}<extra>${text(entry.score)}</extra>`,
    }];
  }

  const axes = (entry, column) => ({
    x: { range: [ascending(entry)[1], ascending(entry)[entry.thresholds.length - 2]] },
    y: { range: [0, 1], tickvals: [0, 0.5, 1], tickformat: ".0%", showticklabels: column === 0 },
  });
  grid.size(place, scores);
  charts.register(place, () => grid.draw(place, scores, traces, axes));
};
