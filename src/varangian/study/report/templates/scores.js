"use strict";
// Tables sort by the column whose heading is clicked; a second click turns it round. Without scripts they stand by score.
for (const table of document.querySelectorAll("table.scores")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const value = (row, i) => {
    const text = row.cells[i].dataset.v ?? "";
    return text !== "" && isFinite(text) ? Number(text) : text;
  };
  const sort = (i) => {
    const down = heads[i].getAttribute("aria-sort") !== "ascending";
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a, i), value(b, i)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what is not known comes last either way
      const order = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return down ? order : -order;
    });
    for (const head of heads) head.removeAttribute("aria-sort");
    heads[i].setAttribute("aria-sort", down ? "ascending" : "descending");
    body.append(...rows);
  };
  heads.forEach((head, i) => {
    head.dataset.sort = i;
    head.tabIndex = 0;
    head.addEventListener("click", () => sort(i));
    head.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(i); } });
  });
}
document.documentElement.dataset.cells = "ready";
