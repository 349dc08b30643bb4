// Which scores call the same heads inactive: a matrix that is a table.
sections.agreement = () => {
  const place = byId("agreement-matrix"), kind = byId("agreement-kind"), share = byId("agreement-share"), each = byId("agreement-each");
  const { scores, shares, kinds } = data.agreement;
  shares.forEach((value, index) => { if (value > 0) share.append(element("option", { value: index }, `${+(100 * value).toFixed(2)}%`)); });
  const nearest = shares.reduce((best, value, index) => (Math.abs(value - 0.1) < Math.abs(shares[best] - 0.1) ? index : best), 0);
  share.value = nearest;
  const cells = scores.map((row) => scores.map(() => element("td")));
  place.append(
    element("thead", {}, element("tr", {}, element("td"), ...scores.map((name) => element("th", { scope: "col" }, element("span", {}, name))))),
    element("tbody", {}, ...scores.map((name, row) => element("tr", {}, element("th", { scope: "row" }, name), ...cells[row]))),
  );

  function draw() {
    const matrix = kinds[kind.value + (each.checked ? "_per_input" : "")][Number(share.value)];
    matrix.forEach((values, row) => values.forEach((value, column) => {
      const cell = cells[row][column];
      cell.textContent = value === null ? "–" : value.toFixed(2).replace(/^0/, "");
      cell.className = row === column ? "same" : "";
      cell.style.background = row === column || value === null ? "" : colours.viridis(value);
      cell.style.color = row === column || value === null ? "" : value > 0.42 ? "#000" : "#fff";
    }));
  }
  for (const control of [kind, share, each]) control.addEventListener("change", draw);
  draw();
};
