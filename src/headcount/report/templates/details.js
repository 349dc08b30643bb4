// What is known of one head: every score with its rank, and the chosen score's distribution over inputs.
function headDetails() {
  const { layers, heads, groups, scores } = data.heads;
  const title = byId("head-title"), about = byId("head-about"), unpin = byId("head-unpin"), canvas = byId("head-chart");
  const rows = scores.map((entry, index) => {
    const button = element("button", { type: "button", title: entry.name }, entry.score);
    const cells = [element("td", { className: "n" }, "–"), element("td", { className: "n" }, "–"), element("td", { className: "n" }, "–")];
    const row = element("tr", {}, element("th", { scope: "row" }, button), ...cells);
    byId("head-rows").append(row);
    return { row, button, cells, index };
  });

  async function fill(cell, { current, step }) {
    for (const { row, cells, index } of rows) {
      const profile = scores[index].score === current.score ? current : await profiles.get(index);
      if (cell !== shown) return;
      row.toggleAttribute("aria-current", profile === current);
      const values = cell < 0 ? ["–", "–", "–"] : [
        number(profile.mean[cell]),
        profile.exists(cell) ? whole(profile.rank(cell)) : "–",
        profile.exists(cell) && profile.inactive_when ? percent(profile.part(cell, step)) : "–",
      ];
      cells.forEach((td, k) => { td.textContent = values[k]; });
    }
  }

  // Between thresholds the cumulative share is taken as straight lines; bars are its differences.
  function histogram(points, from, to, bars) {
    const at = (value) => {
      if (value < points[0][0]) return 0;
      if (value >= points[points.length - 1][0]) return 1;
      let k = 1;
      while (points[k][0] <= value) k++;
      const [[x0, y0], [x1, y1]] = [points[k - 1], points[k]];
      return y0 + ((value - x0) / (x1 - x0)) * (y1 - y0);
    };
    const edges = Array.from({ length: bars + 1 }, (_, i) => from + ((to - from) * i) / bars);
    return edges.slice(1).map((edge, i) => (i === bars - 1 ? 1 : at(edge)) - (i === 0 ? 0 : at(edges[i])));
  }

  function drawDistribution(cell, { current, step }) {
    const ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    if (cell < 0 || !current.exists(cell)) {
      canvas.setAttribute("aria-label", "No head is chosen.");
      return;
    }
    const base = height - 16, bars = 44;
    const overall = current.edges.map((value, k) => [value, k / (current.steps - 1)]);
    const from = Math.min(current.low[cell], current.edges[1]), to = Math.max(current.high[cell], current.edges[current.steps - 2]);
    const side = (value) => ((value - from) / (to - from || 1)) * (width - 2) + 1;
    const own = histogram(current.cumulative(cell), from, to, bars), all = histogram(overall, from, to, bars);
    const tallest = Math.max(...own, ...all.slice(1, -1));
    const cut = side(current.thresholds[step]);
    if (current.inactive_when) {
      pen.fillStyle = css("--off");
      if (current.inactive_when === "low") pen.fillRect(0, 0, Math.max(0, cut), base);
      else pen.fillRect(cut, 0, Math.max(0, width - cut), base);
    }
    const left = (i) => 1 + (i * (width - 2)) / bars, top = (part) => base - Math.min(1, part / tallest) * (base - 4);
    pen.fillStyle = css("--accent");
    own.forEach((part, i) => pen.fillRect(left(i), top(part), left(1) - left(0) - 1, base - top(part)));
    pen.strokeStyle = css("--soft");
    pen.lineWidth = 1.25;
    pen.beginPath();
    all.forEach((part, i) => { pen.lineTo(left(i), top(part)); pen.lineTo(left(i + 1), top(part)); });
    pen.stroke();
    pen.strokeStyle = css("--line");
    pen.lineWidth = 1;
    pen.beginPath(); pen.moveTo(0, base + 0.5); pen.lineTo(width, base + 0.5); pen.stroke();
    if (current.inactive_when) {
      pen.strokeStyle = css("--ink");
      pen.setLineDash([3, 2]);
      pen.beginPath(); pen.moveTo(cut, 0); pen.lineTo(cut, base); pen.stroke();
      pen.setLineDash([]);
    }
    pen.fillStyle = css("--soft");
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    pen.textBaseline = "bottom";
    pen.textAlign = "left"; pen.fillText(number(from), 0, height);
    pen.textAlign = "right"; pen.fillText(number(to), width, height);
    pen.textAlign = "center"; pen.fillText(current.score, width / 2, height);
    canvas.setAttribute("aria-label", `Distribution of ${current.score} over inputs: from ${number(current.low[cell])} to ` +
      `${number(current.high[cell])}, median ${number(current.median[cell])}` +
      (current.inactive_when ? `; inactive on ${percent(current.part(cell, step))} of inputs.` : "."));
  }

  let shown = -1;
  return {
    show(cell, state) {
      shown = cell;
      const layer = Math.floor(cell / heads), head = cell % heads;
      title.textContent = cell < 0 ? "No head chosen" : `Layer ${layers[layer]}, head ${head}`;
      unpin.hidden = !state.pinned;
      if (cell < 0) about.textContent = "Point at a head, or focus the map and use the arrow keys. A click or Enter pins it.";
      else {
        const group = groups[layer] !== 1 ? `Key-value head ${groupOf(groups[layer], head)}. ` : "";
        const often = state.current.inactive_when ? `Inactive on ${percent(state.current.part(cell, state.step))} of inputs by ${state.current.score}.` : "";
        about.textContent = group + often;
      }
      drawDistribution(cell, state);
      fill(cell, state);
    },
    onChoose: (then) => rows.forEach(({ button, index }) => button.addEventListener("click", () => then(index))),
    onUnpin: (then) => unpin.addEventListener("click", then),
  };
}
