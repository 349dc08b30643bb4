// Every score layer by layer: what heads have, or how often they are inactive.
sections.layers = () => {
  const place = byId("layers-chart"), show = byId("layers-show");
  const { layers, shares, panels } = data.layers;
  const { text, see, colourOf } = charts;
  show.append(element("option", { value: "" }, "score: median and middle 80%"));
  shares.forEach((share, index) => {
    if (share > 0) show.append(element("option", { value: index }, `how often inactive at share ${+(100 * share).toFixed(2)}%`));
  });

  function traces(panel) {
    const colour = colourOf(panel.style), line = { color: colour, width: 2 };
    if (show.value !== "") {
      const y = panel.often?.[Number(show.value)] ?? [];
      return [{ x: layers, y, line, fill: "tozeroy", fillcolor: see(colour, 0.12), hovertemplate: `layer %{x}: inactive on %{y:.0%}<extra>${text(panel.score)}</extra>` }];
    }
    return [
      { x: [...layers, ...[...layers].reverse()], y: [...panel.q90, ...[...panel.q10].reverse()], fill: "toself", fillcolor: see(colour, 0.18), line: { width: 0 }, hoverinfo: "skip" },
      { x: layers, y: panel.q50, line, customdata: panel.mean, hovertemplate: `layer %{x}: median %{y:.3g}, mean %{customdata:.3g}<extra>${text(panel.score)}</extra>` },
    ];
  }

  const axes = (_, column) => (show.value === ""
    ? { x: {}, y: { rangemode: "tozero" } }
    : { x: {}, y: { range: [0, 1], tickvals: [0, 0.5, 1], tickformat: ".0%", showticklabels: column === 0 } });
  const shown = () => (show.value === "" ? panels : panels.filter((panel) => panel.often));
  axes.apart = true;
  grid.size(place, panels);
  show.addEventListener("change", charts.register(place, () => grid.draw(place, shown(), traces, axes)));
};
