// Order: sizes at once, the head map as soon as the page is read, the plotting library after that.
setUpTheme();
setUpDownloads();
const chooseScore = data.map ? headMap() : null;
for (const [part, draw] of [
  [data.curves, accuracyChart], [data.divergence.length, divergenceChart], [data.map, distributionChart], [data.agreement, agreementMatrix], [data.stability, stabilityChart],
  [data.ranks, ranksChart], [data.layers, layersChart], [data.comparison, comparisonCharts], [data.paper, paperChart],
]) if (part) draw();
document.addEventListener("DOMContentLoaded", async () => {
  try {
    await chooseScore?.();
    performance.mark("map"); // benchmarks/page.py reads these
    sayMapDrawn();
    await profiles?.rest();
  } finally {
    performance.mark("ready");
    root.dataset.ready = "true";
  }
  charts.preload();
});
