// Charts by plotly, which is unpacked after the first paint and draws each chart when it comes near the window.
const charts = (() => {
  // Plotly reads labels as a subset of HTML; data is text.
  const text = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const see = (colour, alpha) => `rgba(${[1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)).join(",")},${alpha})`;
  const colourOf = (style) => (isDark() ? style.dark : style.light);
  let loading;
  const load = () => (loading ??= mapDrawn.then(() => unpackText("plotly")).then((code) => {
    document.head.append(element("script", { textContent: code }));
    if (!window.Plotly) throw new Error("The plotting library did not start.");
  }));

  function axis(title, extra) {
    const line = css("--grid");
    return {
      title: { text: title, font: { size: 13, color: css("--soft") }, standoff: 10 }, gridcolor: line, linecolor: css("--line"),
      zeroline: false, tickcolor: line, fixedrange: true, automargin: true, ...extra,
    };
  }

  function layout(extra) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, margin: { l: 8, r: 12, t: 16, b: 8 },
      font: { family: getComputedStyle(document.body).fontFamily, color: css("--ink"), size: 12 }, hovermode: "closest",
      hoverlabel: { bgcolor: css("--raised"), bordercolor: css("--line"), font: { color: css("--ink") }, namelength: -1 },
      ...extra,
    };
  }

  function react(place, traces, shape) {
    const save = { name: "Save as SVG", title: "Save as SVG", icon: Plotly.Icons.camera, click: (chart) =>
      Plotly.downloadImage(chart, { format: "svg", filename: place.id, width: place.clientWidth, height: place.clientHeight }) };
    place.classList.remove("loading");
    if (!place.classList.contains("js-plotly-plot")) place.textContent = "";
    return Plotly.react(place, traces, layout(shape), {
      responsive: true, displaylogo: false, displayModeBar: "hover", modeBarButtons: [[save]],
    });
  }

  // Draws when the chart comes near the window, and again whenever `redrawAll` runs after that.
  function register(place, draw) {
    let ready = false;
    const watch = new IntersectionObserver(async ([entry]) => {
      if (!entry.isIntersecting) return;
      watch.disconnect();
      try {
        await load();
        await idle();
        await draw();
        ready = true;
        performance.mark(place.id);
      } catch (error) {
        place.textContent = "This chart could not be drawn in this browser; its numbers are in the table below.";
        console.error(error);
      }
    }, { rootMargin: "400px" });
    watch.observe(place);
    const again = () => { if (ready) draw(); };
    redraws.push(again);
    return again;
  }

  // Plotly's markers around (14, 6), as polygons.
  const around = (corners, radius, turn = -0.25) => Array.from({ length: corners }, (_, k) => {
    const angle = 2 * Math.PI * (k / corners + turn), far = Array.isArray(radius) ? radius[k % radius.length] : radius;
    return `${(14 + far * Math.cos(angle)).toFixed(1)},${(6 + far * Math.sin(angle)).toFixed(1)}`;
  }).join(" ");
  const markers = {
    square: around(4, 5, 0.125), diamond: around(4, 5), "triangle-up": around(3, 5), "triangle-down": around(3, 5, 0.25),
    pentagon: around(5, 4.5), circle: around(24, 3.8), star: around(10, [5.5, 2.4]), x: around(8, [5, 2], 0.125),
  };

  // A fieldset of check boxes, one a score, that shows colour, dash and marker; `emphasise` is told which one is pointed at.
  function legend(place, lines, { changed, emphasise = () => {} }) {
    const patterns = { solid: "none", dash: "7 4", dot: "2 3" };
    const entries = lines.map((line) => {
      const box = element("input", { type: "checkbox", checked: true });
      const marker = drawn("polygon", { points: markers[line.style.symbol] });
      const stroke = drawn("line", { x1: 0, x2: 28, y1: 6, y2: 6, "stroke-width": 2.5, "stroke-dasharray": patterns[line.style.dash] });
      const swatch = drawn("svg", { width: 28, height: 12, "aria-hidden": "true" });
      swatch.append(stroke, marker);
      const label = element("label", {}, box, swatch, line.score);
      box.addEventListener("change", changed);
      for (const event of ["pointerenter", "focusin"]) label.addEventListener(event, () => emphasise(line.score));
      for (const event of ["pointerleave", "focusout"]) label.addEventListener(event, () => emphasise(null));
      place.append(label);
      return { box, ink: [[stroke, "stroke"], [marker, "fill"]], line };
    });
    const title = place.querySelector("legend");
    for (const [name, checked] of [["all", true], ["none", false]]) {
      const button = element("button", { type: "button" }, name);
      button.addEventListener("click", () => { entries.forEach(({ box }) => { box.checked = checked; }); changed(); });
      title.append(button);
    }
    return {
      paint: () => entries.forEach(({ ink, line }) => ink.forEach(([part, name]) => part.setAttribute(name, colourOf(line.style)))),
      shown: () => entries.filter(({ box }) => box.checked).map(({ line }) => line),
    };
  }

  // Ahead of need, so that a chart that comes near the window is drawn at once.
  const preload = async () => {
    await idle();
    if (Object.keys(data).some((part) => data[part])) load().catch(() => {}); // said where a chart is missing
  };

  return { text, preload, see, colourOf, axis, react, register, legend };
})();
