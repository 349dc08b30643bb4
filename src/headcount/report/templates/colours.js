// Matplotlib's viridis at nine places, and what lies between them.
const colours = (() => {
  const places = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];
  const rgb = places.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const table = Array.from({ length: 256 }, (_, i) => {
    const at = (i / 255) * (rgb.length - 1);
    const from = Math.min(Math.floor(at), rgb.length - 2);
    return `rgb(${rgb[from].map((c, k) => Math.round(c + (at - from) * (rgb[from + 1][k] - c))).join(",")})`;
  });
  // part 0 to 1
  return { viridis: (part) => table[Math.max(0, Math.min(255, Math.round(255 * part)))] };
})();
