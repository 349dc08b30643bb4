// Neurons: each layer's means in a row, from the lowest to the highest, and those at both ends.
sections.neurons = () => {
  const { scores, layers, counts } = data.neurons;
  const canvas = byId("neurons-map"), choice = byId("neurons-score"), readout = byId("neurons-readout");
  const place = { left: 34, top: 4, width: 0, cell: 0 };
  let ranked = []; // all values of the score that is shown, ascending
  scores.forEach((entry, index) => choice.append(element("option", { value: index }, entry.score)));
  choice.value = Math.max(0, scores.findIndex((entry) => entry.score.startsWith("fhon"))); // what a neuron adds to the stream
  const current = () => scores[Number(choice.value)];

  // The part of all values that lie below one, 0 to 1: dark is towards inactive.
  function shade(value) {
    let from = 0, to = ranked.length;
    while (from < to) {
      const middle = (from + to) >> 1;
      if (ranked[middle] < value) from = middle + 1; else to = middle;
    }
    const part = ranked.length > 1 ? from / (ranked.length - 1) : 0.5;
    return colours.viridis(current().inactive_when === "high" ? 1 - part : part);
  }

  function draw() {
    const ratio = window.devicePixelRatio || 1;
    place.width = canvas.parentElement.clientWidth - place.left - 2;
    place.cell = layers.length > 60 ? 7 : 13;
    const height = place.top + layers.length * place.cell + 18;
    canvas.style.width = "100%";
    canvas.style.height = `${height}px`;
    canvas.width = Math.round((place.width + place.left + 2) * ratio);
    canvas.height = Math.round(height * ratio);
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    pen.textAlign = "right";
    pen.textBaseline = "middle";
    current().rows.forEach((row, at) => {
      const y = place.top + at * place.cell;
      row.forEach((value, column) => {
        const x = Math.round((column / row.length) * place.width), end = Math.round(((column + 1) / row.length) * place.width);
        pen.fillStyle = shade(value);
        pen.fillRect(place.left + x, y, end - x, place.cell - 1);
      });
      if (at % (place.cell < 11 ? 4 : 2) === 0) {
        pen.fillStyle = css("--soft");
        pen.fillText(layers[at], place.left - 6, y + place.cell / 2);
      }
    });
    pen.fillStyle = css("--soft");
    pen.textBaseline = "alphabetic";
    pen.textAlign = "left";
    pen.fillText("lowest mean of the layer", place.left, height - 4);
    pen.textAlign = "right";
    pen.fillText("highest", place.left + place.width, height - 4);
  }

  function fill(name) {
    byId(`neurons-${name}`).replaceChildren(...current()[name].map(([layer, unit, ...numbers]) => element("tr", {},
      ...[whole(layer), whole(unit), ...numbers.map(number)].map((text) => element("td", { className: "n" }, text)))));
  }

  function legend() {
    const bar = byId("neurons-bar"), pen = bar.getContext("2d"), high = current().inactive_when === "high";
    for (let i = 0; i < bar.width; i++) {
      pen.fillStyle = colours.viridis((high ? bar.width - 1 - i : i) / (bar.width - 1));
      pen.fillRect(i, 0, 1, bar.height);
    }
    byId("neurons-from").textContent = number(ranked[0] ?? null);
    byId("neurons-to").textContent = `${number(ranked[ranked.length - 1] ?? null)} ${current().unit}`;
  }

  function show() {
    ranked = current().rows.flat().sort((a, b) => a - b);
    const [rows, what] = current().score.endsWith("/token") ? [data.neurons.tokens, "token"] : [data.neurons.inputs, "input"];
    readout.textContent = `${current().name}, mean over ${whole(rows)} ${what}${rows === 1 ? "" : "s"}. Point at the map to read it.`;
    draw();
    legend();
    fill("largest");
    fill("smallest");
  }

  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const at = Math.floor((event.clientY - box.top - place.top) / place.cell), row = current().rows[at];
    const column = row && Math.floor(((event.clientX - box.left - place.left) / place.width) * row.length);
    if (!row || column < 0 || column >= row.length) return;
    const first = Math.floor((column * counts[at]) / row.length) + 1, last = Math.floor(((column + 1) * counts[at]) / row.length);
    const which = first < last ? `${whole(first)} to ${whole(last)}` : whole(first);
    readout.textContent = `Layer ${layers[at]}, ${which} of ${whole(counts[at])} from the lowest: mean ${number(row[column])}.`;
  });
  choice.addEventListener("change", show);
  redraws.push(draw);
  show();
};
