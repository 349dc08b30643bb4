// Several runs beside one another.
sections.comparison = () => {
  const { runs, panels, curves, metric } = data.comparison;
  const { text, axis, register, react } = charts;
  const light = ["#1f4e9c", "#b8460e", "#00796b", "#a83f8a", "#9a6a00"], dark = ["#6ea8ff", "#f28a52", "#45c4ab", "#e48fcd", "#e3b341"];
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash"];
  const line = (run, width = 2) => ({ color: (isDark() ? dark : light)[run % 5], dash: dashes[run % 5], width, simplify: false });
  const key = byId("comparison-key");
  const swatches = runs.map((name, run) => {
    const stroke = drawn("line", { x1: 0, x2: 34, y1: 6, y2: 6, "stroke-width": 2.5, "stroke-dasharray": ["none", "8 4", "2 3", "8 3 2 3", "12 4"][run % 5] });
    const swatch = drawn("svg", { width: 34, height: 12, "aria-hidden": "true" });
    swatch.append(stroke);
    key.append(element("li", {}, swatch, name));
    return stroke;
  });
  const paint = () => swatches.forEach((stroke, run) => stroke.setAttribute("stroke", line(run).color));
  redraws.push(paint);
  paint();

  const accuracy = byId("comparison-accuracy"), score = byId("comparison-score");
  if (accuracy) {
    for (const name of Object.keys(curves)) score.append(element("option", { value: name }, name));
    const draw = () => react(accuracy, curves[score.value].map(({ run, x, y }) => ({
      x, y, type: "scatter", mode: "lines+markers", line: line(run, 2.5), marker: { size: 7 }, hovertemplate: `%{y:.1f}% at %{x:.1f}%<extra>${text(runs[run])}</extra>`,
    })), {
      height: accuracy.clientHeight, xaxis: axis(`${data.units} off, realised`, { ticksuffix: "%", rangemode: "tozero" }),
      yaxis: axis(narrow() ? "" : text(`${metric}, % of untouched`), { ticksuffix: "%" }),
    });
    score.addEventListener("change", register(accuracy, draw));
  }

  const distributions = byId("comparison-distributions");
  if (!distributions) return;
  const traces = (panel) => panel.runs.map((run, k) => ({
    x: panel.values[k], y: panel.values[k].map((_, at) => at / 100), line: line(run), hovertemplate: `%{y:.0%} of scores up to %{x:.3g}<extra>${text(runs[run])}</extra>`,
  }));
  const axes = ({ values }, column) => ({
    x: { range: [Math.min(...values.map((of) => of[1])), Math.max(...values.map((of) => of[99]))] },
    y: { range: [0, 1], tickvals: [0, 0.5, 1], tickformat: ".0%", showticklabels: column === 0 },
  });
  grid.size(distributions, panels);
  register(distributions, () => grid.draw(distributions, panels, traces, axes));
};
