// Order: sizes at once, the head map as soon as the page is read, the plotting library after that.
setUpTheme();
setUpDownloads();
const chooseScore = data.map ? headMap() : null;
if (data.curves) accuracyChart();
if (data.map) distributionChart();
document.addEventListener("DOMContentLoaded", async () => {
  try {
    await chooseScore?.();
    sayMapDrawn();
    if (profiles) await profiles.rest();
  } finally {
    root.dataset.ready = "true";
  }
});
