"use strict";
// Chooses, sorts and filters what is on the page, and draws the curves of chosen cells. data.cells: [title, seeds, values
// of each measure, curve or null]; a curve: [steps, means, least, greatest]. All text goes through esc() or textContent.
(() => {
  const data = JSON.parse(document.getElementById("cells").textContent);
  const esc = (s) => String(s).replace(/[&<>"']/g, (c) => "&#" + c.charCodeAt(0) + ";");
  const all = (query, from = document) => [...from.querySelectorAll(query)];
  const [, , , CURVE] = Array(4).keys(), MOST_LINES = 8, MOST_MAPS = 6;
  const chosen = new Set(data.first);
  for (const hidden of all(".choosers")) hidden.hidden = false;

  // Which maps are shown: those of one measure, and of the values chosen for the settings that are neither rows nor columns.
  const form = document.getElementById("choosers");
  function choose() {
    const measure = form.querySelector("[name=measure]").value;
    const wanted = all("[data-axis]", form).map((s) => s.value);
    for (const map of all("[data-measure]")) {
      const place = map.dataset.place ? map.dataset.place.split(",") : [];
      map.hidden = map.dataset.measure !== measure || place.some((v, i) => wanted[i] && wanted[i] !== v);
    }
  }
  if (form) {
    // Of more maps than anybody reads the first is shown, and the others by choice.
    const maps = all(".map[data-place]").filter((m) => m.dataset.measure === data.measures[0][0]);
    if (maps.length > MOST_MAPS) {
      const first = maps[0].dataset.place.split(",");
      all("[data-axis]", form).forEach((s, i) => { s.value = first[i]; });
    }
    form.addEventListener("change", choose);
    choose();
  }

  // The tiles of a map are one stop for the tab key; arrows go from one to the next, and Enter chooses.
  const status = document.getElementById("status");
  const number = (v, m) => v.toFixed(data.measures[m][2]).replace("-", "−");
  function say(index) {
    const [title, seeds, values] = data.cells[index];
    const each = data.measures.map(([, name], m) => `${name}: ${values[m].map((v) => number(v, m)).join(", ")}`);
    status.textContent = `${title}. Seeds ${seeds.join(", ") || "none"}. ${each.join("; ")}.`;
  }
  for (const map of all("table.heat")) {
    const tiles = all("td[data-c]", map);
    tiles.forEach((tile, i) => {
      const index = +tile.dataset.c;
      tile.tabIndex = i ? -1 : 0;
      tile.onmouseenter = tile.onfocus = () => say(index);
      if (!data.cells[index][CURVE]) return;
      tile.setAttribute("role", "button");
      tile.onclick = () => toggle(index);
    });
    map.addEventListener("keydown", (event) => {
      const tile = event.target.closest("td");
      const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!tile) return;
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); tile.click(); }
      if (!step) return;
      event.preventDefault();
      const row = map.rows[tile.parentNode.rowIndex + step[0]], next = row && row.cells[tile.cellIndex + step[1]];
      if (!next || next.tagName !== "TD" || next.dataset.c === undefined) return;
      tile.tabIndex = -1; next.tabIndex = 0; next.focus();
    });
  }

  // ------------------------------------------------------------------------------------------------------------ curves

  const place = document.getElementById("lines");
  const DASHES = ["", "6 3", "2 3", "8 3 2 3", "12 4", "4 2", "1 2", "10 2 2 2"];
  function toggle(index) {
    if (!chosen.delete(index)) {
      chosen.add(index);
      if (chosen.size > MOST_LINES) chosen.delete([...chosen][0]);
    }
    draw();
  }
  function ticks(low, high, most) {
    const rough = (high - low) / most || 1, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((f) => f >= rough * 0.999), found = [];
    for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + 1e-9 * step; t += step) found.push(+t.toFixed(9));
    return found;
  }
  function draw() {
    for (const tile of all("td[data-c]")) {
      const pressed = chosen.has(+tile.dataset.c);
      if (tile.getAttribute("role")) tile.setAttribute("aria-pressed", pressed);
    }
    if (!place) return;
    const shown = [...chosen].filter((i) => data.cells[i][CURVE]);
    if (!shown.length) { place.innerHTML = '<p class="empty">No cell is chosen.</p>'; return; }
    const W = Math.min(900, place.clientWidth || 900), H = Math.round(Math.max(220, Math.min(380, W * 0.5)));
    const left = 38, right = W - 10, top = 18, bottom = H - 34;
    const curves = shown.map((i) => data.cells[i][CURVE]);
    const last = Math.max(1, ...curves.flatMap((c) => c[0])), values = curves.flatMap((c) => [...c[2], ...c[3]]);
    const marks = ticks(Math.min(...values), Math.max(...values), 5), unit = marks.length > 1 ? marks[1] - marks[0] : Math.abs(values[0]) || 1;
    const low = unit * Math.floor(Math.min(...values) / unit + 1e-9), high = Math.max(low + unit, unit * Math.ceil(Math.max(...values) / unit - 1e-9));
    const x = (t) => (left + (right - left) * t / last).toFixed(1), y = (v) => (top + (bottom - top) * (high - v) / (high - low)).toFixed(1);
    let s = "";
    for (const t of ticks(low, high, 5)) s += `<line class="rule" x1="${left}" x2="${right}" y1="${y(t)}" y2="${y(t)}"/><text class="soft" x="${left - 5}" y="${+y(t) + 4}" text-anchor="end">${t}</text>`;
    for (const t of ticks(0, last, 5)) s += `<line class="rule" x1="${x(t)}" x2="${x(t)}" y1="${bottom}" y2="${bottom + 4}"/><text class="soft" x="${x(t)}" y="${bottom + 16}" text-anchor="${t ? (t === last ? "end" : "middle") : "start"}">${t}</text>`;
    s += `<text class="soft" x="2" y="10">${esc(data.unit)}</text><text class="soft" x="${(left + right) / 2}" y="${H - 3}" text-anchor="middle">step</text>`;
    shown.forEach((index, i) => {
      const [steps, means, least, most] = data.cells[index][CURVE], colour = `var(--p${i % 8})`;
      const line = (v) => steps.map((t, k) => `${x(t)} ${y(v[k])}`);
      s += `<polygon fill="${colour}" fill-opacity=".13" points="${line(least).concat(line(most).reverse()).join(" ")}"/>`
        + `<polyline fill="none" stroke="${colour}" stroke-width="2" stroke-dasharray="${DASHES[i % 8]}" points="${line(means).join(" ")}"><title>${esc(data.cells[index][0])}</title></polyline>`;
    });
    const legend = shown.map((index, i) => `<span><svg class="mark" viewBox="0 0 24 12"><path d="M0 6h24" stroke="var(--p${i % 8})" stroke-width="2.5" stroke-dasharray="${DASHES[i % 8]}"/></svg>${esc(data.cells[index][0] || "all runs")} <button type="button" data-drop="${index}" aria-label="${esc("leave out " + data.cells[index][0])}">×</button></span>`).join("");
    place.innerHTML = `<svg viewBox="0 0 ${W} ${H}" style="max-width:${W}px" role="img" aria-label="${esc(data.unit)} over the steps, of the cells below">${s}</svg><div class="legend">${legend}</div>`;
    for (const button of all("[data-drop]", place)) button.onclick = () => toggle(+button.dataset.drop);
  }
  draw();
  let wide = document.documentElement.clientWidth;
  addEventListener("resize", () => { if (document.documentElement.clientWidth !== wide) { wide = document.documentElement.clientWidth; draw(); } });

  // ------------------------------------------------------------------------------------------------------------- table

  const table = document.getElementById("every");
  if (table) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    const value = (row, i) => { const cell = row.cells[i]; return cell.dataset.v ?? cell.textContent; };
    let order = [-1, 1];
    heads.forEach((th, i) => {
      if (th.textContent === "each seed") return;
      const sort = () => {
        order = [i, order[0] === i ? -order[1] : 1];
        const numbers = rows.every((r) => value(r, i) === "" || !isNaN(parseFloat(value(r, i))));
        const compare = (a, b) => (numbers ? (parseFloat(a) || 0) - (parseFloat(b) || 0) : a < b ? -1 : a > b ? 1 : 0);
        // What has no value stands last, whichever way.
        rows.sort((a, b) => (value(a, i) === "") - (value(b, i) === "") || compare(value(a, i), value(b, i)) * order[1]);
        body.append(...rows);
        heads.forEach((h, k) => h.setAttribute("aria-sort", k !== i ? "none" : order[1] > 0 ? "ascending" : "descending"));
      };
      th.tabIndex = 0; th.dataset.sort = i; th.onclick = sort;
      th.onkeydown = (event) => { if (event.key === "Enter") sort(); };
    });
    const wanted = document.getElementById("wanted"), found = document.getElementById("found");
    const known = new Map(rows.map((r) => [r, r.textContent.toLowerCase()]));
    wanted.addEventListener("input", () => {
      const words = wanted.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const r of rows) { r.hidden = !words.every((w) => known.get(r).includes(w)); count += !r.hidden; }
      found.textContent = words.length ? `${count} of ${rows.length}` : "";
    });
  }
  document.documentElement.dataset.cells = "ready";
})();
