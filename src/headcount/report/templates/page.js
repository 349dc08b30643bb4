"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  // Okabe and Ito's colours, those that show on light and on dark; dashes tell repeats apart.
  const colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
  const coloursOnDark = ["#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2"];
  const dashes = ["solid", "dash", "dot"];
  const symbols = ["circle", "square", "diamond"];

  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const narrow = () => document.documentElement.clientWidth < 560;
  const see = (colour, alpha) =>
    `rgba(${[1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16)).join(",")},${alpha})`;
  // Plotly reads labels as a subset of HTML; data is text.
  const text = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

  function addOption(select, value, label) {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = label;
    select.append(option);
  }

  function axis(title, extra) {
    const line = css("--line");
    return {
      title: { text: title, font: { size: 13 }, standoff: 12 }, gridcolor: line, linecolor: line, zeroline: false,
      tickcolor: line, fixedrange: true, automargin: true, ...extra,
    };
  }

  function layout(extra) {
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      font: { family: getComputedStyle(document.body).fontFamily, color: css("--ink"), size: 12 },
      hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") }, namelength: -1 },
      ...extra,
    };
  }

  function curves(state) {
    const chart = document.getElementById("curves-chart");
    const bands = document.getElementById("curves-bands");
    const legend = document.getElementById("curves-legend");
    const style = (index) => {
      if (state.lines[index].score === "random") return { colour: "#8a8f94", dash: "solid", symbol: "x" };
      const cycle = Math.floor(index / colours.length) % dashes.length;
      const palette = dark.matches ? coloursOnDark : colours;
      return { colour: palette[index % palette.length], dash: dashes[cycle], symbol: symbols[cycle] };
    };
    const two = [state.best, "random"].filter((score) => state.lines.some((line) => line.score === score));
    addOption(bands, "two", two.join(" and "));
    addOption(bands, "all", "every score shown");
    addOption(bands, "none", "none");
    state.lines.forEach((line, index) => {
      const { dash } = style(index);
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = true;
      box.addEventListener("change", draw);
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      const stroke = document.createElementNS("http://www.w3.org/2000/svg", "line");
      for (const [name, value] of Object.entries({ width: 28, height: 10, "aria-hidden": "true" })) svg.setAttribute(name, value);
      const pattern = { solid: "none", dash: "7 4", dot: "2 3" }[dash];
      const drawn = { x1: 0, x2: 28, y1: 5, y2: 5, "stroke-width": 2.5, "stroke-dasharray": pattern };
      for (const [name, value] of Object.entries(drawn)) stroke.setAttribute(name, value);
      svg.append(stroke);
      label.append(box, svg, line.score);
      legend.append(label);
    });

    function draw() {
      const boxes = legend.querySelectorAll("input");
      legend.querySelectorAll("line").forEach((stroke, index) => stroke.setAttribute("stroke", style(index).colour));
      const shown = state.lines.map((line, index) => ({ line, ...style(index) })).filter((_, index) => boxes[index].checked);
      const banded = shown.filter(({ line }) => bands.value === "all" || (bands.value === "two" && two.includes(line.score)));
      const traces = banded.map(({ line, colour }) => ({
        x: [...line.x, ...[...line.x].reverse()], y: [...line.high, ...[...line.low].reverse()],
        fill: "toself", fillcolor: see(colour, 0.16), line: { width: 0 }, mode: "lines", hoverinfo: "skip", type: "scatter",
      }));
      for (const { line, colour, dash, symbol } of shown) {
        traces.push({
          x: line.x, y: line.y, name: text(line.score), type: "scatter", mode: "lines+markers",
          line: { color: colour, width: line.score === state.best ? 3.5 : 1.75, dash }, marker: { color: colour, size: 6, symbol },
          text: line.label.map((label, at) => `<b>${text(label)}</b><br>realised ${line.x[at].toFixed(1)}%<br>` +
            `${line.y[at].toFixed(1)}% [${line.low[at].toFixed(1)}, ${line.high[at].toFixed(1)}]`),
          hovertemplate: "%{text}<extra></extra>",
        });
      }
      const level = (y) => ({
        type: "line", xref: "paper", x0: 0, x1: 1, y0: y, y1: y, layer: "below",
        line: { color: css("--ink"), width: 1, dash: y === state.baseline ? "dash" : "dot" },
      });
      const height = narrow() ? 340 : 440;
      Plotly.react(chart, traces, layout({
        height, margin: { l: 8, r: 8, t: 24, b: 8 }, hovermode: "closest",
        xaxis: axis("Heads zeroed, realised", { ticksuffix: "%", rangemode: "tozero" }),
        yaxis: axis(narrow() ? "" : text(state.metric[0].toUpperCase() + state.metric.slice(1)), { ticksuffix: "%" }),
        shapes: [level(state.baseline), level(state.floor)],
        annotations: [{
          xref: "paper", x: 1, xanchor: "right", y: state.baseline, yanchor: "bottom", showarrow: false,
          text: `baseline ${state.baseline.toFixed(1)}%`, font: { color: css("--ink") },
        }],
      }), config);
    }
    bands.addEventListener("change", draw);
    return draw;
  }

  function headMap(state) {
    const chart = document.getElementById("map-chart");
    const score = document.getElementById("map-score");
    const share = document.getElementById("map-share");
    const caption = document.getElementById("map-caption");
    state.scores.forEach((entry, index) => addOption(score, index, `${entry.score} – ${entry.name}`));
    const preferred = state.scores.findIndex((entry) => entry.score === (data.curves && data.curves.best));
    score.value = String(Math.max(0, preferred));
    addOption(share, "", "mean score");
    state.shares.forEach((value, index) => addOption(share, index, `how often inactive at share ${+(100 * value).toFixed(2)}%`));

    function summary(entry, frequency) {
      const cells = [];
      (frequency || entry.mean).forEach((row, layer) => row.forEach((value, head) => {
        if (value !== null) cells.push({ value, place: `layer ${state.layers[layer]} head ${state.heads[head]}` });
      }));
      if (!cells.length) return "No head has a value for this score.";
      const inputs = `${state.inputs.toLocaleString("en")} input${state.inputs === 1 ? "" : "s"}`;
      if (frequency) {
        const count = (test) => cells.filter(({ value }) => test(value)).length;
        return `Percent of ${inputs} on which each head is inactive. Of ${cells.length} heads, ` +
          `${count((value) => value === 0)} never are, ${count((value) => value > 50)} are on more than half of the inputs, ` +
          `${count((value) => value === 100)} on all.`;
      }
      const sorted = cells.sort((a, b) => a.value - b.value);
      const name = ({ value, place }) => `${place} (${value.toPrecision(3)})`;
      const side = entry.inactive_when ? ` Inactive when ${entry.inactive_when}.` : "";
      return `Mean over ${inputs}${entry.unit ? `, in ${entry.unit === "activation" ? "units of activation" : entry.unit}` : ""}.${side} ` +
        `Lowest: ${name(sorted[0])}. Highest: ${name(sorted[sorted.length - 1])}.`;
    }

    function draw() {
      const entry = state.scores[Number(score.value)];
      const frequency = share.value === "" ? null : entry.inactive[Number(share.value)];
      const missing = share.value !== "" && !frequency;
      const values = frequency || entry.mean;
      const hover = values.map((row, layer) => row.map((value, head) => {
        if (value === null) return "";
        const mean = `mean ${text(entry.score)} ${entry.mean[layer][head].toPrecision(4)}`;
        return `<b>layer ${state.layers[layer]}, head ${state.heads[head]}</b><br>${mean}` +
          (frequency ? `<br>inactive on ${value.toFixed(1)}% of inputs` : "");
      }));
      const height = Math.min(1100, Math.max(260, 90 + state.layers.length * 15));
      const many = (labels, room) => Math.max(1, Math.ceil(labels.length / room));
      const ticks = (labels, every) => ({ tickvals: labels.map((_, i) => i).filter((i) => i % every === 0), ticktext: labels.filter((_, i) => i % every === 0).map(String) });
      Plotly.react(chart, [{
        type: "heatmap", z: values, text: hover, hovertemplate: "%{text}<extra></extra>", hoverongaps: false,
        colorscale: "Viridis", xgap: 1, ygap: 1, ...(frequency ? { zmin: 0, zmax: 100 } : {}),
        colorbar: {
          thickness: 12, outlinewidth: 0, ticksuffix: frequency ? "%" : "",
          title: { text: frequency ? "inactive" : text(entry.unit), side: "top", font: { size: 12 } },
        },
      }], layout({
        height, margin: { l: 8, r: 8, t: 8, b: 8 },
        xaxis: axis("Head", { ...ticks(state.heads, many(state.heads, narrow() ? 9 : 32)), showgrid: false }),
        yaxis: axis("Layer", { ...ticks(state.layers, many(state.layers, 32)), autorange: "reversed", showgrid: false }),
      }), config);
      caption.textContent = (missing ? "There is no threshold for this score; its mean is shown. " : "") + summary(entry, frequency);
    }
    score.addEventListener("change", draw);
    share.addEventListener("change", draw);
    return draw;
  }

  const drawings = [];
  if (data.curves && data.curves.lines.length) drawings.push(curves(data.curves));
  if (data.maps) drawings.push(headMap(data.maps));
  const drawAll = () => drawings.forEach((draw) => draw());
  drawAll();
  dark.addEventListener("change", drawAll);
  let wasNarrow = narrow();
  addEventListener("resize", () => {
    if (narrow() !== wasNarrow) {
      wasNarrow = narrow();
      drawAll();
    }
  });
})();
