// The head map: layers by heads, key-value groups bracketed.
sections.heads = () => {
  const { layers, heads, groups, scores, inputs, always, half, noun, plural, short } = data.heads;
  const canvas = byId("map-canvas"), spoken = byId("map-spoken"), readout = byId("map-readout");
  const score = byId("map-score"), show = byId("map-show"), rule = byId("map-rule"), slider = byId("map-slider");
  const cells = layers.length * heads;
  const grouped = groups.some((size) => size !== 1);
  const sameGroups = typeof groups[0] === "number" && groups.every((size) => size === groups[0]);
  const place = { left: 0, top: 0, cell: 0, gap: 0, split: 0, upright: false };
  let current = null; // the profile shown
  let off = new Uint8Array(cells); // 1 where a head counts as inactive
  let pointed = -1, pinned = -1, first = true;
  const details = headDetails();

  const layerOf = (cell) => Math.floor(cell / heads), headOf = (cell) => cell % heads;
  const layerAt = (layer) => layer * (place.cell + place.gap);
  const headAt = (cell) => headOf(cell) * (place.cell + place.gap) + groupOf(groups[layerOf(cell)], headOf(cell)) * place.split;
  const x = (cell) => place.left + (place.upright ? headAt(cell) : layerAt(layerOf(cell)));
  const y = (cell) => place.top + (place.upright ? layerAt(layerOf(cell)) : headAt(cell));
  const step = () => Number(slider.value);
  const counts = { half: (code) => code >= half && code <= always, all: (code) => code === always, any: (code) => code > 0 && code <= always };
  const rules = { half: "at least half of the inputs", all: "every input", any: "at least one input" };

  // On a narrow screen layers run from top to bottom, where that gives heads more room.
  function measure() {
    const width = canvas.parentElement.clientWidth;
    const sets = Math.max(...groups.map((of) => groupOf(of, heads - 1) + 1));
    const brackets = grouped && sameGroups ? 14 : 0;
    place.upright = narrow() && heads < layers.length;
    place.left = place.upright ? 36 : 30 + brackets;
    place.top = place.upright ? 34 + brackets : 6;
    const room = (width - place.left - 2 - (place.upright && grouped ? 4 * sets : 0)) / (place.upright ? heads : layers.length);
    place.gap = room >= 7 ? 1 : 0;
    place.cell = Math.max(2, Math.min(place.upright ? 20 : 28, Math.floor(room) - place.gap));
    place.split = grouped ? (place.cell >= 8 ? 4 : 2) : 0;
    const pitch = place.cell + place.gap;
    const layersLong = layers.length * pitch + 2, headsLong = heads * pitch + sets * place.split;
    const used = place.left + (place.upright ? headsLong : layersLong);
    const height = place.top + (place.upright ? layersLong : headsLong + 34);
    const ratio = window.devicePixelRatio || 1;
    canvas.style.width = `${used}px`;
    canvas.style.height = `${height}px`;
    canvas.width = Math.round(used * ratio);
    canvas.height = Math.round(height * ratio);
    const [along, across] = place.upright ? ["top to bottom", "left to right"] : ["left to right", "top to bottom"];
    canvas.setAttribute("aria-label", `Head map: ${layers.length} layers from ${along}, ${heads} ${plural} from ${across}. ` +
      "Arrow keys move, Enter pins a head, Escape lets it go.");
    return { ratio, height };
  }

  // Every so many labels that they do not touch.
  const every = (room, size) => [1, 2, 4, 5, 8, 10, 16, 20, 32].find((n) => n * room >= size) ?? 50;

  function draw() {
    const { ratio, height } = measure();
    const pen = canvas.getContext("2d");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    const size = place.cell, pitch = place.cell + place.gap;
    pen.font = `11px ${getComputedStyle(document.body).fontFamily}`;
    pen.fillStyle = css("--soft");
    pen.strokeStyle = css("--off-edge");
    pen.textBaseline = "middle";
    const label = (text, across, down, align) => { pen.textAlign = align; pen.fillText(text, across, down); };
    const brackets = grouped && sameGroups ? groups[0] : 0;
    const clear = brackets ? 16 : 8; // between labels and heads
    const floor = height - 24;
    const layersEvery = every(pitch, place.upright ? 13 : 20), headsEvery = every(pitch, place.upright ? 16 : 13);
    for (let at = 0; at < layers.length; at += layersEvery) {
      const middle = layerAt(at) + size / 2;
      if (place.upright) label(layers[at], place.left - 8, place.top + middle, "right");
      else label(layers[at], place.left + middle, floor, "center");
    }
    for (let head = 0; head < heads; head += headsEvery) {
      const middle = headAt(head) + size / 2;
      if (place.upright) label(head, place.left + middle, place.top - clear - 2, "center");
      else label(head, place.left - clear, place.top + middle, "right");
    }
    const sides = place.upright ? [noun, "layer"] : ["layer", noun];
    label(sides[0], place.left + (canvas.width / ratio - place.left) / 2, place.upright ? 8 : floor + 16, "center");
    pen.save();
    pen.translate(6, place.top + (place.upright ? layers.length * pitch : floor - place.top) / 2);
    pen.rotate(-Math.PI / 2);
    label(sides[1], 0, 0, "center");
    pen.restore();
    for (let from = 0; brackets && from < heads; from += brackets) {
      const start = headAt(from) + 0.5, end = headAt(Math.min(heads, from + brackets) - 1) + size - 0.5;
      const edge = (place.upright ? place.top : place.left) - 5.5;
      const corners = [[edge + 3, start], [edge, start], [edge, end], [edge + 3, end]];
      pen.beginPath();
      for (const [far, along] of corners) pen.lineTo(...(place.upright ? [place.left + along, far] : [far, place.top + along]));
      pen.stroke();
    }
    if (current) drawCells(pen, size);
  }

  function drawCells(pen, size) {
    const often = show.value === "often";
    const [from, to] = often ? [0, 1] : range();
    const upside = !often && current.inactive_when === "high" ? -1 : 1;
    const ground = css("--off"), edge = css("--off-edge"), ink = css("--ink");
    for (let cell = 0; cell < cells; cell++) {
      if (!current.exists(cell)) continue;
      if (off[cell]) {
        pen.fillStyle = ground;
        pen.fillRect(x(cell), y(cell), size, size);
        if (size >= 6) {
          pen.strokeStyle = edge;
          pen.lineWidth = 1;
          pen.strokeRect(x(cell) + 0.5, y(cell) + 0.5, size - 1, size - 1);
        }
        continue;
      }
      const part = often ? 1 - current.part(cell, step()) : (current.mean[cell] - from) / (to - from || 1);
      pen.fillStyle = colours.viridis(upside === 1 ? part : 1 - part);
      pen.fillRect(x(cell), y(cell), size, size);
    }
    for (const [cell, width] of [[pointed, 1.5], [pinned, 2.5]]) {
      if (cell < 0) continue;
      pen.strokeStyle = ink;
      pen.lineWidth = width;
      pen.strokeRect(x(cell) - 1, y(cell) - 1, size + 2, size + 2);
    }
  }

  // Colours span the middle 98% of heads, so that one extreme head does not flatten all others.
  function range() {
    const sorted = current.mean.filter((value) => !Number.isNaN(value)).sort();
    const at = (part) => sorted[Math.round(part * (sorted.length - 1))];
    return [at(0.01), at(0.99)];
  }

  function decide() {
    off = new Uint8Array(cells);
    if (!current?.inactive_when) return;
    const counted = counts[rule.value];
    for (let cell = 0; cell < cells; cell++) off[cell] = Number(counted(current.often[cell * current.steps + step()]));
  }

  function say() {
    byId("map-share").textContent = `${step()}%`;
    slider.setAttribute("aria-valuetext", `${step()} percent`);
    if (!current.inactive_when) {
      readout.textContent = "This installation does not know the score, so neither on which side they are inactive. " +
        "Make the report with --scores-from and the file that defines it.";
      return;
    }
    let inactive = 0, existing = 0, wholly = 0, sets = 0;
    for (let layer = 0; layer < layers.length; layer++) {
      for (let from = 0, to; from < heads; from = to) {
        let members = 0, offs = 0;
        for (to = from; to < heads && groupOf(groups[layer], to) === groupOf(groups[layer], from); to++) {
          members += Number(current.exists(layer * heads + to));
          offs += off[layer * heads + to];
        }
        existing += members;
        inactive += offs;
        sets += Number(members > 0);
        wholly += Number(members > 0 && offs === members);
      }
    }
    const side = current.inactive_when === "low" ? "below" : "above";
    readout.replaceChildren(
      element("strong", {}, `${whole(inactive)} of ${whole(existing)} ${short} (${percent(inactive / existing, 1)})`),
      ` ${inactive === 1 ? "is" : "are"} inactive on ${rules[rule.value]}: ${current.score} ${side} ${number(current.thresholds[step()])}.`,
      grouped ? ` ${whole(wholly)} of ${whole(sets)} key-value groups ${wholly === 1 ? "is" : "are"} wholly inactive.` : "",
      ` Beyond this threshold lie ${step()}% of the scores of all ${short} on all ${whole(inputs)} inputs.`,
    );
  }

  function legend() {
    const often = show.value === "often";
    const [from, to] = often ? [1, 0] : range();
    const reversed = !often && current.inactive_when === "high";
    const bar = byId("map-bar"), pen = bar.getContext("2d");
    for (let i = 0; i < bar.width; i++) {
      pen.fillStyle = colours.viridis(reversed ? 1 - i / bar.width : i / bar.width);
      pen.fillRect(i, 0, 1, bar.height);
    }
    const unit = !often && current.unit ? ` ${current.unit === "activation" ? "(activation)" : current.unit}` : "";
    byId("map-from").textContent = often ? "inactive on 100% of inputs" : `${current.score} ≤ ${number(from)}`;
    byId("map-to").textContent = often ? "on none" : `≥ ${number(to)}${unit}`;
  }

  function refresh() {
    if (!current) return;
    decide();
    say();
    draw();
    details.show(pointed >= 0 ? pointed : pinned, { current, step: step(), pinned: pinned >= 0 && pointed < 0 });
  }

  async function choose() {
    slider.disabled = rule.disabled = !scores[Number(score.value)].inactive_when;
    const wanted = Number(score.value);
    const profile = await profiles.get(wanted);
    if (wanted !== Number(score.value)) return; // another was chosen meanwhile
    current = profile;
    if (first) { // so that the panel says something: the head nearest to inactive
      first = false;
      pinned = Array.from({ length: cells }, (_, cell) => cell).find((cell) => current.exists(cell) && current.rank(cell) === 1) ?? -1;
    }
    legend();
    refresh();
  }

  function cellAt(event) {
    const box = canvas.getBoundingClientRect(), pitch = place.cell + place.gap;
    const across = event.clientX - box.left - place.left, down = event.clientY - box.top - place.top;
    const [along, under] = place.upright ? [down, across] : [across, down];
    const layer = Math.floor(along / pitch);
    if (layer < 0 || layer >= layers.length) return -1;
    for (let cell = layer * heads; cell < (layer + 1) * heads; cell++) {
      if (under >= headAt(cell) && under < headAt(cell) + pitch) return exists(cell);
    }
    return -1;
  }
  const exists = (cell) => (current?.exists(cell) ? cell : -1);

  function pin(cell) {
    pinned = cell === pinned ? -1 : cell;
    pointed = -1;
    refresh();
  }

  function speak(cell) {
    if (cell < 0) return;
    spoken.textContent = `Layer ${layers[layerOf(cell)]}, head ${headOf(cell)}: ${current.score} ${number(current.mean[cell])}, ` +
      `rank ${whole(current.rank(cell))} of ${whole(current.measured)}` +
      (current.inactive_when ? `, inactive on ${percent(current.part(cell, step()))} of inputs` : "");
  }

  canvas.addEventListener("pointermove", (event) => {
    if (event.pointerType === "touch") return;
    const cell = cellAt(event);
    if (cell !== pointed) { pointed = cell; refresh(); }
  });
  canvas.addEventListener("pointerleave", () => { pointed = -1; refresh(); });
  canvas.addEventListener("click", (event) => {
    const cell = cellAt(event);
    if (cell < 0) return;
    pin(cell);
    speak(cell);
  });
  canvas.addEventListener("keydown", (event) => {
    const [back, on, up, down] = place.upright ? [[0, -1], [0, 1], [-1, 0], [1, 0]] : [[-1, 0], [1, 0], [0, -1], [0, 1]];
    const moves = { ArrowLeft: back, ArrowRight: on, ArrowUp: up, ArrowDown: down, Home: [-layers.length, 0], End: [layers.length, 0] };
    const from = pointed >= 0 ? pointed : Math.max(0, pinned);
    if (moves[event.key]) {
      const layer = Math.max(0, Math.min(layers.length - 1, layerOf(from) + moves[event.key][0]));
      const head = Math.max(0, Math.min(heads - 1, headOf(from) + moves[event.key][1]));
      const cell = exists(layer * heads + head);
      if (cell >= 0) pointed = cell;
    } else if (event.key === "Enter" || event.key === " ") pin(from);
    else if (event.key === "Escape") { pinned = pointed = -1; }
    else return;
    event.preventDefault();
    refresh();
    speak(pointed >= 0 ? pointed : pinned);
  });
  canvas.addEventListener("blur", () => { pointed = -1; refresh(); });

  scores.forEach((entry, index) => score.append(element("option", { value: index }, `${entry.score} – ${entry.name}`)));
  score.value = Math.max(0, scores.findIndex((entry) => entry.score === data.accuracy?.best));
  score.addEventListener("change", choose);
  show.addEventListener("change", () => { legend(); refresh(); });
  for (const control of [rule, slider]) control.addEventListener("input", refresh);
  details.onChoose((index) => { score.value = index; choose(); });
  details.onUnpin(() => pin(pinned));
  redraws.push(() => { if (current) { legend(); refresh(); } else draw(); });
  csvMakers["head-map"] = async () => {
    await choose();
    const lines = [["layer", "head", "key_value_head", "score", "mean", "lowest", "median", "highest", "threshold", "inactive_share"]];
    for (let cell = 0; cell < cells; cell++) {
      if (!current.exists(cell)) continue;
      const numbers = [current.mean, current.low, current.median, current.high].map((values) => Number(values[cell].toPrecision(7)));
      lines.push([layers[layerOf(cell)], headOf(cell), groupOf(groups[layerOf(cell)], headOf(cell)), current.score, ...numbers,
        current.thresholds[step()], current.inactive_when ? current.part(cell, step()).toFixed(3) : ""]);
    }
    return csv(lines);
  };
  draw(); // its size, before anything is unpacked
  return choose;
};
