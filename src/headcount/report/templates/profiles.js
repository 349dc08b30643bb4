// Each score of every head over all inputs, unpacked when first needed.
const profiles = (() => {
  if (!data.heads) return null;
  const { scores, layers, heads, always } = data.heads;
  const cells = layers.length * heads;
  const known = [];

  async function load(index) {
    const bytes = await unpack(`score-${index}`);
    const count = 4 * cells; // mean, low, median, high of each head
    const raw = new Uint8Array(4 * count);
    for (let plane = 0; plane < 4; plane++) {
      for (let i = 0; i < count; i++) raw[4 * i + plane] = bytes[plane * count + i];
    }
    const numbers = new Float32Array(raw.buffer);
    const steps = scores[index].thresholds.length;
    const deciles = bytes.subarray(4 * count, 4 * count + 9 * cells);
    const often = bytes.slice(4 * count + 9 * cells);
    for (let cell = 0; cell < cells; cell++) {
      for (let step = 1, at = cell * steps + 1; step < steps; step++, at++) often[at] += often[at - 1]; // modulo 256
    }
    const [mean, low, median, high] = [0, 1, 2, 3].map((k) => numbers.subarray(k * cells, (k + 1) * cells));
    const profile = { ...scores[index], mean, low, median, high, often, steps };
    // The part of its inputs on which a head is inactive, 0 to 1.
    profile.part = (cell, step) => often[cell * steps + step] / always;
    profile.exists = (cell) => !Number.isNaN(mean[cell]);
    // Rank 1 is the head nearest to inactive; heads with equal means share a rank.
    const sign = profile.inactive_when === "high" ? -1 : 1;
    const sorted = Float32Array.from(mean.filter((value) => !Number.isNaN(value)), (value) => sign * value).sort();
    profile.measured = sorted.length;
    profile.rank = (cell) => {
      let from = 0, to = sorted.length;
      while (from < to) {
        const middle = (from + to) >> 1;
        if (sorted[middle] < sign * mean[cell]) from = middle + 1; else to = middle;
      }
      return from + 1;
    };
    // Cumulative share of the head's inputs up to a value: at the thresholds and at its own deciles, by straight lines.
    const ascending = sign === 1 ? profile.thresholds : [...profile.thresholds].reverse();
    profile.edges = ascending;
    profile.cumulative = (cell) => {
      const points = [[low[cell], 0]];
      ascending.forEach((value, k) => {
        if (value <= low[cell] || value >= high[cell]) return;
        points.push([value, sign === 1 ? profile.part(cell, k) : 1 - profile.part(cell, steps - 1 - k)]);
      });
      for (let tenth = 1; tenth < 10; tenth++) {
        points.push([low[cell] + (deciles[9 * cell + tenth - 1] / always) * (high[cell] - low[cell]), tenth / 10]);
      }
      points.push([high[cell], 1]);
      points.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
      for (let k = 1; k < points.length; k++) points[k][1] = Math.max(points[k][1], points[k - 1][1]);
      return points;
    };
    return profile;
  }

  return {
    get: (index) => (known[index] ??= load(index)),
    async rest() {
      for (let index = 0; index < scores.length; index++) {
        await idle();
        await this.get(index);
      }
    },
  };
})();
