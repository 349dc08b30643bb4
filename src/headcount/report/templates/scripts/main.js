// Order: sizes at once, the head map as soon as the page is read, the plotting library after that.
setUpTheme();
setUpDownloads();
const chooseScore = data.map ? headMap() : null;
document.addEventListener("DOMContentLoaded", async () => {
  try {
    if (chooseScore) {
      await chooseScore();
      root.dataset.map = "drawn";
    }
    if (data.curves) accuracyChart();
    if (profiles) await profiles.rest();
  } finally {
    root.dataset.ready = "true";
  }
});
