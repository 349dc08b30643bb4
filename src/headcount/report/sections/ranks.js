// Ranks of the scores by the area under their curves, beside the paper's.
sections.ranks = () => {
  const place = byId("ranks-chart");
  const { scores, tasks, ranks, paper } = data.ranks;
  const { text, colourOf, axis } = charts;
  place.style.height = `${scores.length * 24 + 70}px`;
  charts.register(place, () => {
    const names = scores.map(({ score }) => text(score));
    const traces = [{
      x: paper, y: names, name: "paper", type: "scatter", mode: "markers",
      marker: { symbol: "line-ns-open", size: 13, color: css("--soft"), line: { width: 2 } }, hovertemplate: "%{y}: mean rank %{x:.1f} over the paper's 14 models<extra></extra>",
    }];
    ranks.slice(1).forEach((values, index) => traces.push({
      x: values, y: names, type: "scatter", mode: "markers", marker: { symbol: "circle-open", size: 7, color: css("--soft") },
      hovertemplate: `%{y}: rank %{x} on ${text(tasks[index + 1])}<extra></extra>`,
    }));
    traces.push({
      x: ranks[0], y: names, type: "scatter", mode: "markers",
      marker: { size: 10, color: scores.map(({ style }) => colourOf(style)), symbol: scores.map(({ style }) => style.symbol) },
      hovertemplate: "%{y}: rank %{x}<extra></extra>",
    });
    return charts.react(place, traces, {
      height: place.clientHeight, xaxis: axis("Rank, 1 is best", { range: [0.4, scores.length + 0.6], dtick: scores.length > 8 ? 2 : 1, tick0: 1 }),
      yaxis: axis("", { autorange: "reversed", type: "category" }),
    });
  });
};
