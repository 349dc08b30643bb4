// Small panels side by side, one a score, in one chart.
const grid = (() => {
  const columnsNow = () => (root.clientWidth < 480 ? 2 : root.clientWidth < 900 ? 3 : 4);
  const rowsOf = (panels) => Math.ceil(panels.length / columnsNow());

  // The height it will have, so that nothing below moves when it is drawn.
  function size(place, panels) {
    place.style.height = `${rowsOf(panels) * 165 + 30}px`;
  }

  // `traces(panel)` gives plotly's traces; `axes(panel)` more of its { x, y } axes.
  function draw(place, panels, traces, axes) {
    size(place, panels);
    const columns = columnsNow(), rows = rowsOf(panels);
    const gap = { x: axes.apart ? 0.075 : 0.045, y: 0.3 / rows };
    const one = { x: (1 - gap.x * (columns - 1)) / columns, y: (1 - gap.y * (rows - 1)) / rows };
    const shape = { height: place.clientHeight, margin: { l: 38, r: 8, t: 26, b: 28 }, annotations: [] };
    const drawnTraces = panels.flatMap((panel, index) => {
      const key = index ? index + 1 : "", column = index % columns;
      const left = column * (one.x + gap.x), top = 1 - Math.floor(index / columns) * (one.y + gap.y);
      const small = { automargin: false, tickfont: { size: 10 } };
      const { x, y } = axes(panel, column);
      shape[`xaxis${key}`] = charts.axis("", { ...small, domain: [left, left + one.x], anchor: `y${key}`, nticks: 5, ...x });
      shape[`yaxis${key}`] = charts.axis("", { ...small, domain: [Math.max(0, top - one.y), top], anchor: `x${key}`, nticks: 4, ...y });
      shape.annotations.push({
        xref: "paper", yref: "paper", x: left, y: top, xanchor: "left", yanchor: "bottom", showarrow: false,
        text: `<b>${charts.text(panel.score)}</b>${panel.note ? `  ${charts.text(panel.note)}` : ""}`, font: { size: 12 },
      });
      return traces(panel).map((trace) => ({ type: "scatter", mode: "lines", xaxis: `x${key}`, yaxis: `y${key}`, ...trace }));
    });
    return charts.react(place, drawnTraces, shape);
  }

  return { size, draw };
})();
