// Cumulative distributions of every score over all heads and inputs, small and side by side.
function distributionChart() {
  const place = byId("distributions-chart");
  const { scores } = data.map;
  const { text, colourOf, axis } = charts;
  const marked = [10, 20, 30]; // shares of heads, percent

  function size() {
    const columns = root.clientWidth < 480 ? 2 : root.clientWidth < 900 ? 3 : 4;
    const rows = Math.ceil(scores.length / columns);
    place.style.height = `${rows * 165 + 30}px`;
    return [columns, rows];
  }

  function draw() {
    const [columns, rows] = size();
    const gap = { x: 0.045, y: 0.3 / rows };
    const panel = { x: (1 - gap.x * (columns - 1)) / columns, y: (1 - gap.y * (rows - 1)) / rows };
    const shape = { height: place.clientHeight, margin: { l: 34, r: 8, t: 26, b: 28 }, annotations: [] };
    const traces = scores.flatMap((entry, index) => {
      const key = index ? index + 1 : "";
      const column = index % columns, row = Math.floor(index / columns);
      const left = column * (panel.x + gap.x), top = 1 - row * (panel.y + gap.y);
      const falling = entry.inactive_when === "high", last = entry.thresholds.length - 1;
      const cuts = falling ? [...entry.thresholds].reverse() : entry.thresholds;
      const colour = colourOf(entry.style);
      shape[`xaxis${key}`] = axis("", { domain: [left, left + panel.x], anchor: `y${key}`, range: [cuts[1], cuts[last - 1]], nticks: 4, automargin: false, tickfont: { size: 10 } });
      shape[`yaxis${key}`] = axis("", { domain: [Math.max(0, top - panel.y), top], anchor: `x${key}`, range: [0, 1], tickvals: [0, 0.5, 1], tickformat: ".0%", showticklabels: column === 0, automargin: false, tickfont: { size: 10 } });
      shape.annotations.push({ xref: "paper", yref: "paper", x: left, y: top, xanchor: "left", yanchor: "bottom", showarrow: false, text: `<b>${text(entry.score)}</b>`, font: { size: 12 } });
      const drawnLine = {
        x: cuts, y: cuts.map((_, k) => k / last), xaxis: `x${key}`, yaxis: `y${key}`, type: "scatter", mode: "lines", line: { color: colour, width: 2 },
        hovertemplate: `%{y:.0%} of scores up to %{x:.3g}<extra>${text(entry.score)}</extra>`,
      };
      if (!entry.inactive_when) return [drawnLine];
      return [drawnLine, {
        x: marked.map((share) => entry.thresholds[share]), y: marked.map((share) => (falling ? 1 - share / 100 : share / 100)),
        xaxis: `x${key}`, yaxis: `y${key}`, type: "scatter", mode: "markers", marker: { color: css("--ink"), size: 7, symbol: "line-ns-open", line: { width: 2 } },
        customdata: marked, hovertemplate: `%{customdata}% of scores ${falling ? "above" : "below"} %{x:.4g}<extra>${text(entry.score)}</extra>`,
      }];
    });
    return charts.react(place, traces, shape);
  }
  size();
  charts.register(place, draw);
}
