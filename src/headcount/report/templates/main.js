// Order: sizes at once, the head map as soon as the page is read, the plotting library after that.
setUpTheme();
setUpDownloads();
const chooseScore = data.heads ? sections.heads() : null;
for (const [id, draw] of Object.entries(sections)) if (id !== "heads" && data[id]) draw();
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
