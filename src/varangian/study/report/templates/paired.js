"use strict";
// Draws what the filters choose. data.runs: [group, rule, attack, n, f, attackers, nesterov, rate, place, seed, max, final],
// accuracies in per cent, attack "" for none. data.curves: the same without seed and accuracies, then steps, median,
// least, greatest, ratio. All text goes through esc().
const data = JSON.parse(document.getElementById("data").textContent);
const esc = (s) => String(s).replace(/[&<>"']/g, (c) => "&#" + c.charCodeAt(0) + ";");
const PLACES = [["server", "var(--server)", ""], ["worker", "var(--worker)", "5 3"]];
const PALETTE = Array.from({ length: 8 }, (_, i) => `var(--p${i})`);
const MOST = 60; // panels that are drawn at a time
const [G, RULE, ATTACK, N, F, REAL, KIND, RATE, PLACE, SEED, MAX, FINAL] = Array(12).keys();
const byId = (id) => document.getElementById(id);
const ruleTitle = (r) => data.rules[r] || r;
const attackTitle = (a) => data.attacks[a] || a;
const kindTitle = (k) => (k ? "Nesterov momentum" : "Classical momentum");
const shareTitle = (c) => `${c[2]} of ${c[0]} Byzantine` + (c[1] === c[2] ? "" : ` (f = ${c[1]})`);
const column = (r) => [r[N], r[F], r[REAL], r[ATTACK]];
const unique = (list) => [...new Map(list.map((v) => [JSON.stringify(v), v])).values()];
const quantile = (s, q) => { const p = (s.length - 1) * q, i = Math.floor(p);
  return s[i] + (p - i) * ((s[i + 1] ?? s[i]) - s[i]); };
const mean = (list) => list.reduce((sum, v) => sum + v, 0) / list.length;
const median = (list) => quantile([...list].sort((a, b) => a - b), 0.5);
const signed = (v) => (v > 0 ? "+" : v < 0 ? "−" : "±") + Math.abs(v).toFixed(1);

function choices() {
  const chosen = {};
  for (const s of document.querySelectorAll("#filters select")) chosen[s.name] = s.value;
  return chosen;
}

function options(select, list, all) {
  const former = select.value;
  const items = (all ? [["", all]] : []).concat(list);
  select.innerHTML = items.map(([v, t]) => `<option value="${esc(v)}">${esc(t)}</option>`).join("");
  if (items.some(([v]) => String(v) === former)) select.value = former;
}

function refill() {
  const form = document.getElementById("filters");
  const g = +form.querySelector("[name=group]").value;
  const attacked = data.runs.filter((r) => r[G] === g && r[ATTACK]);
  options(form.querySelector("[name=rate]"), data.groups[g].rates.map((r) => [r, r]));
  options(form.querySelector("[name=kind]"), data.groups[g].kinds.map((k) => [+k, kindTitle(k)]), "both");
  options(form.querySelector("[name=rule]"), data.groups[g].rules.map((r) => [r, ruleTitle(r)]), "all");
  options(form.querySelector("[name=attack]"), unique(attacked.map((r) => r[ATTACK])).map((a) => [a, attackTitle(a)]), "all");
  const shares = unique(data.groups[g].columns.map((c) => c.slice(0, 3)));
  options(form.querySelector("[name=share]"), shares.map((c) => [c.join("/"), shareTitle(c)]), "all");
}

const passes = (r, c, one) => r[G] === +c.group && r[ATTACK] && (!one || r[RATE] === c.rate) && (c.kind === "" || +r[KIND] === +c.kind)
  && (!c.rule || r[RULE] === c.rule) && (!c.attack || r[ATTACK] === c.attack) && (!c.share || [r[N], r[F], r[REAL]].join("/") === c.share);
// Without attack: the honest workers alone, averaged; else whatever ran without attack.
function references(rows, g, col, kind, rate) {
  const calm = rows.filter((r) => r[G] === g && !r[ATTACK] && r[KIND] === kind && r[RATE] === rate), honest = col[0] - col[2];
  const averaged = calm.filter((r) => r[RULE] === "average" && r[N] === honest);
  return averaged.length ? averaged : calm.filter((r) => r[N] === honest || r[N] === col[0]);
}
const columnsOf = (g, rows) => data.groups[g].columns.filter((c) => rows.some((r) => column(r).join() === c.join()));
const kindsOf = (g, rows) => data.groups[g].kinds.filter((k) => rows.some((r) => r[KIND] === k));
const empty = (text) => `<p class="empty">${esc(text)}</p>`;

// Panels are drawn as wide as they are shown, so that letters are as large in all of them.
function layout(id, count) {
  const box = byId(id).clientWidth || 1100, across = Math.min(count, box < 700 ? (count > 1 && box > 330 ? 2 : 1) : 4);
  return [across, Math.max(150, Math.floor((box - 13 * (across - 1)) / across))];
}

function ticks(low, high, most) {
  const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((f) => f * power).find((f) => f >= rough * 0.999), found = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + 1e-9 * step; t += step) found.push(+t.toFixed(9));
  return found;
}

// The shape of a rule: hollow at the server, full at the workers.
const SHAPES = ["M-1 0a1 1 0 1 0 2 0a1 1 0 1 0-2 0z", "M-.9-.9h1.8v1.8h-1.8z", "M0-1.3 1.3 0 0 1.3-1.3 0z", "M0-1.2 1.15.9h-2.3z",
  "M0 1.2 1.15-.9h-2.3z", "M-.4-1.2h.8v.8h.8v.8h-.8v.8h-.8v-.8h-.8v-.8h.8z", "M-1.2-.5 0-1.3 1.2-.5.75 1h-1.5z", "M1.2 0-.9 1.15v-2.3z"];
function point(shape, x, y, colour, full, tip) {
  return `<path transform="translate(${x.toFixed(1)} ${y.toFixed(1)}) scale(3.1)" d="${SHAPES[shape % SHAPES.length]}" stroke="${colour}" stroke-width=".38" fill="${full ? colour : "var(--page)"}">${tip}</path>`;
}

function upright(left, right, y, values, name) {
  return values.map((t) => `<line class="rule" x1="${left}" x2="${right}" y1="${y(t)}" y2="${y(t)}"/><text class="soft" x="${left - 5}" y="${y(t) + 4}" text-anchor="end">${t}</text>`).join("")
    + `<text class="soft" x="2" y="11">${name}</text>`;
}

function boxes(c) {
  const g = +c.group, value = c.measure === "final" ? FINAL : MAX;
  const rows = data.runs.filter((r) => passes(r, c, true));
  if (!rows.length) return empty("No runs pass the filters.");
  const columns = columnsOf(g, rows), [across, W] = layout("boxes", columns.length), rules = data.groups[g].rules;
  const calm = columns.flatMap((col) => kindsOf(g, rows).flatMap((kind) => references(data.runs, g, col, kind, c.rate)));
  const seen = rows.concat(calm).map((r) => r[value]), low = 5 * Math.floor((Math.min(...seen) - 0.5) / 5), high = Math.min(100, 5 * Math.ceil((Math.max(...seen) + 0.5) / 5));
  const legend = `<div class="legend">${rules.filter((r) => rows.some((x) => x[RULE] === r)).map((r) => `<span><svg class="mark" viewBox="0 0 12 12">${point(rules.indexOf(r), 6, 6, "var(--soft)", false, "")}</svg>${esc(ruleTitle(r))}</span>`).join("")}</div>`;
  return legend + kindsOf(g, rows).map((kind) => `<h3>${kindTitle(kind)}</h3><div class="grid" style="--columns:${across}">`
    + columns.map((col) => {
      const H = Math.round(Math.max(200, Math.min(320, W * 0.75))), top = 20, bottom = 24, left = 30;
      const y = (v) => top + (H - top - bottom) * (high - v) / (high - low);
      let s = upright(left, W, y, ticks(low, high, 5), "accuracy, %");
      const found = PLACES.map(([place]) => rows.filter((r) => r[PLACE] === place && r[KIND] === kind && column(r).join() === col.join()));
      PLACES.forEach(([place, colour], i) => {
        const x = left + (W - left) * (i + 0.5) / 2, v = found[i].map((r) => r[value]).sort((a, b) => a - b), half = Math.min(60, (W - left) / 6);
        s += `<text x="${x}" y="${H - 7}" text-anchor="middle">${place === "server" ? "server" : "workers"}</text>`;
        if (!v.length) { s += `<text class="soft" x="${x}" y="${H / 2}" text-anchor="middle">no runs</text>`; return; }
        const [q1, q2, q3] = [0.25, 0.5, 0.75].map((q) => quantile(v, q)), reach = 1.5 * (q3 - q1);
        const lo = v.find((a) => a >= q1 - reach), hi = [...v].reverse().find((a) => a <= q3 + reach);
        s += `<g stroke="${colour}"><path fill="none" d="M${x} ${y(lo)}V${y(q1)}M${x} ${y(q3)}V${y(hi)}M${x - half / 2} ${y(lo)}h${half}M${x - half / 2} ${y(hi)}h${half}"/>`
          + `<rect x="${x - half}" width="${2 * half}" y="${y(q3)}" height="${Math.max(0.5, y(q1) - y(q3))}" fill="${colour}" fill-opacity=".16"/>`
          + `<path stroke-width="2.5" d="M${x - half} ${y(q2)}h${2 * half}"/></g>`;
        for (const r of found[i]) {
          const number = rules.indexOf(r[RULE]), px = x + 1.6 * half * ((number + 0.5) / rules.length - 0.5);
          s += point(number, px, y(r[value]), colour, place !== "server", `<title>${esc(ruleTitle(r[RULE]))}, seed ${r[SEED]}: ${r[value].toFixed(2)} %</title>`);
        }
      });
      const ref = references(data.runs, g, col, kind, c.rate).map((r) => r[value]);
      if (ref.length) s += `<line x1="${left}" x2="${W}" y1="${y(median(ref))}" y2="${y(median(ref))}" stroke="var(--ink)" stroke-width="1.4" stroke-dasharray="2 3"/>`;
      const change = found[0].length && found[1].length ? `; medians ${median(found[0].map((r) => r[value])).toFixed(1)} and ${median(found[1].map((r) => r[value])).toFixed(1)}` : "";
      const label = `${shareTitle(col)}, ${attackTitle(col[3])}`;
      return `<figure><figcaption><b>${esc(attackTitle(col[3]))}</b>, ${esc(shareTitle(col))}<span class="soft">${change}</span></figcaption>`
        + `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${esc(kindTitle(kind) + ", " + label)}">${s}</svg></figure>`;
    }).join("") + "</div>").join("");
}

const STEPS = 9, MEDIAN = 10, LOW = 11, HIGH = 12, RATIO = 13; // of data.curves, whose first fields are those of a run up to place
const condition = (r) => data.conditions[[r[RULE], r[N], r[F]].join("/")];
const RAISED = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };
const power = (t) => (t >= -1 && t <= 2 ? String(+(10 ** t).toFixed(1)) : "10" + [...String(t)].map((d) => RAISED[d]).join(""));

function curves(c, ratios) {
  const g = +c.group, id = ratios ? "ratios" : "curves";
  const rows = data.curves.filter((r) => passes(r, c, true) && (!ratios || (condition(r) && r[RATIO].some((v) => v > 0))));
  if (!rows.length) return "";
  const columns = columnsOf(g, rows), rules = data.groups[g].rules.filter((r) => rows.some((x) => x[RULE] === r)), [across, W] = layout(id, columns.length);
  const positive = rows.flatMap((r) => r[RATIO]).filter((v) => v > 0), limits = rows.map(condition).filter((v) => v > 0);
  const span = ratios ? [Math.floor(Math.log10(Math.min(...positive, ...limits))), Math.ceil(Math.log10(Math.max(...positive, ...limits)))] : [0, 100];
  const kinds = kindsOf(g, rows), panels = kinds.flatMap((kind) => rules.flatMap((rule) => columns.map((col) => [kind, rule, col])));
  const note = panels.length > MOST ? `<p class="soft">The first ${MOST} of ${panels.length} panels: choose a rule, an attack or a kind of momentum above to see others.</p>` : "";
  const shown = panels.slice(0, MOST);
  const draw = ([kind, rule, col]) => {
    const H = Math.round(Math.max(140, Math.min(220, W * 0.55))), top = 20, bottom = 34, left = 34, right = W - 8;
    const mine = rows.filter((r) => r[RULE] === rule && r[KIND] === kind && column(r).join() === col.join());
    const title = `<figcaption><b>${esc(ruleTitle(rule))}</b>, ${esc(attackTitle(col[3]))}, ${esc(shareTitle(col))}</figcaption>`;
    if (!mine.length) return `<figure>${title}<p class="empty small">${rule === "bulyan" ? "Bulyan needs n ≥ 4f + 3." : "no runs"}</p></figure>`;
    const last = Math.max(1, ...mine.flatMap((r) => r[STEPS]));
    const x = (t) => left + (right - left) * t / last, y = (v) => (H - top - bottom) * (span[1] - v) / (span[1] - span[0]) + top;
    const place = (v) => y(ratios ? Math.log10(v) : v);
    const line = (r, values) => r[STEPS].map((t, i) => [t, values[i]]).filter(([, v]) => v !== null && (!ratios || v > 0)).map(([t, v]) => `${x(t).toFixed(1)} ${place(v).toFixed(1)}`);
    let s = "";
    const every = ratios ? Math.max(1, Math.ceil((span[1] - span[0]) / 4)) : 25;
    for (let t = span[0]; t <= span[1]; t += every)
      s += `<line class="rule" x1="${left}" x2="${right}" y1="${y(t)}" y2="${y(t)}"/><text class="soft" x="${left - 4}" y="${y(t) + 4}" text-anchor="end">${ratios ? power(t) : t}</text>`;
    for (const t of ticks(0, last, 4))
      s += `<line class="rule" x1="${x(t)}" x2="${x(t)}" y1="${H - bottom}" y2="${H - bottom + 4}"/><text class="soft" x="${x(t)}" y="${H - bottom + 15}" text-anchor="${t ? (t === last ? "end" : "middle") : "start"}">${t}</text>`;
    s += `<text class="soft" x="2" y="11">${ratios ? "ratio" : "accuracy, %"}</text><text class="soft" x="${(left + right) / 2}" y="${H - 4}" text-anchor="middle">step</text>`;
    if (!ratios) {
      const ref = references(data.curves, g, col, kind, c.rate)[0];
      if (ref) s += `<polyline fill="none" stroke="var(--ink)" stroke-width="1.2" stroke-dasharray="2 3" points="${line(ref, ref[MEDIAN]).join(" ")}"/>`;
    }
    for (const [where, colour, dash] of PLACES) {
      const r = mine.find((m) => m[PLACE] === where);
      if (!r) continue;
      if (!ratios) s += `<polygon fill="${colour}" fill-opacity=".18" points="${line(r, r[LOW]).concat(line(r, r[HIGH]).reverse()).join(" ")}"/>`;
      const points = line(r, ratios ? r[RATIO] : r[MEDIAN]);
      s += `<polyline fill="none" stroke="${colour}" stroke-width="1.8" stroke-dasharray="${dash}" points="${points.join(" ")}"/>`;
      if (points.length === 1) { // makes no line
        const [cx, cy] = points[0].split(" ");
        s += `<circle cx="${cx}" cy="${cy}" r="3.2" fill="${colour}"/>`;
      }
    }
    if (ratios) {
      const limit = place(condition(mine[0]));
      s += `<line x1="${left}" x2="${right}" y1="${limit}" y2="${limit}" stroke="var(--ink)" stroke-width="1.3" stroke-dasharray="2 3"/>`;
    }
    return `<figure>${title}<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="${esc(ruleTitle(rule) + ", " + kindTitle(kind))}">${s}</svg></figure>`;
  };
  return note + kinds.filter((kind) => shown.some(([k]) => k === kind)).map((kind) => `<h3>${kindTitle(kind)}</h3><div class="grid" style="--columns:${across}">`
    + shown.filter(([k]) => k === kind).map(draw).join("") + "</div>").join("");
}

function pairing(c) {
  const value = c.measure === "final" ? FINAL : MAX, key = (r) => [r[RULE], r[ATTACK], r[N], r[F], r[REAL], r[KIND], r[RATE]].join("|");
  const rows = data.runs.filter((r) => passes(r, c, false)), found = new Map();
  const servers = new Map(rows.filter((r) => r[PLACE] === "server").map((r) => [key(r) + "|" + r[SEED], r]));
  // As paper.py finds them: at the server, or elsewhere where that changes nothing.
  const calm = data.runs.filter((r) => r[G] === +c.group && !r[ATTACK] && r[RULE] === "average" && !r[F] && (r[PLACE] === "server" || !r[KIND]));
  const references = new Map(calm.sort((a, b) => (a[PLACE] === "server") - (b[PLACE] === "server"))
    .map((r) => [[r[N], r[KIND], r[RATE], r[SEED]].join("|"), r]));
  for (const worker of rows.filter((r) => r[PLACE] === "worker")) {
    const server = servers.get(key(worker) + "|" + worker[SEED]);
    if (!server) continue;
    const ref = references.get([worker[N] - worker[REAL], worker[KIND], worker[RATE], worker[SEED]].join("|"));
    const entry = found.get(key(worker)) || { run: worker, pairs: [] };
    entry.pairs.push({ seed: worker[SEED], server: server[value], worker: worker[value], loss: ref ? ref[value] - server[value] : null });
    found.set(key(worker), entry);
  }
  return [...found.values()].map((e) => {
    const known = e.pairs.map((p) => p.loss).filter((l) => l !== null);
    return { ...e, server: mean(e.pairs.map((p) => p.server)), worker: mean(e.pairs.map((p) => p.worker)),
      gain: mean(e.pairs.map((p) => p.worker - p.server)), loss: known.length ? mean(known) : null };
  });
}

function mark(shape, x, y, colour, tip) {
  return shape % 2 ? `<rect x="${x - 3}" y="${y - 3}" width="6" height="6" fill="none" stroke="${colour}" stroke-width="1.5">${tip}</rect>`
    : `<circle cx="${x}" cy="${y}" r="3.2" fill="${colour}" fill-opacity=".75">${tip}</circle>`;
}

function scatter(c, lines) {
  const g = +c.group, W = 420, H = 420, left = 34, bottom = 34, top = 8, right = 14;
  const rules = data.groups[g].rules, attacks = unique(data.groups[g].columns.map((k) => k[3]));
  const points = lines.flatMap((l) => l.pairs.map((p) => [l.run, p]));
  if (!points.length) return empty("No pairs pass the filters.");
  const low = 10 * Math.floor(Math.min(...points.flatMap(([, p]) => [p.server, p.worker])) / 10);
  const x = (v) => left + (W - left - right) * (v - low) / (100 - low), y = (v) => H - bottom - (H - top - bottom) * (v - low) / (100 - low);
  let s = "";
  for (let t = low; t <= 100; t += low < 50 ? 20 : 10)
    s += `<path d="M${x(t)} ${top}V${H - bottom}M${left} ${y(t)}H${W - right}" class="rule"/><text class="soft" x="${left - 5}" y="${y(t) + 4}" text-anchor="end">${t}</text><text class="soft" x="${x(t)}" y="${H - bottom + 14}" text-anchor="middle">${t}</text>`;
  s += `<line x1="${x(low)}" y1="${y(low)}" x2="${x(100)}" y2="${y(100)}" stroke="var(--ink)" stroke-dasharray="2 3"/>`;
  for (const [r, p] of points)
    s += mark(attacks.indexOf(r[ATTACK]), x(p.server), y(p.worker), PALETTE[rules.indexOf(r[RULE]) % PALETTE.length],
      `<title>${esc(ruleTitle(r[RULE]))}, ${esc(attackTitle(r[ATTACK]))}, ${esc(shareTitle(column(r)))}, ${kindTitle(r[KIND])}, ${esc(r[RATE])}, seed ${p.seed}: ${p.server.toFixed(2)} → ${p.worker.toFixed(2)} %</title>`);
  s += `<text x="${(W + left) / 2}" y="${H - 4}" text-anchor="middle">momentum at the server: accuracy, %</text><text transform="translate(10 ${(H - bottom) / 2}) rotate(-90)" text-anchor="middle">at the workers: accuracy, %</text>`;
  const legend = rules.map((r, i) => `<span><svg class="mark" viewBox="0 0 10 10">${mark(0, 5, 5, PALETTE[i % PALETTE.length], "")}</svg>${esc(ruleTitle(r))}</span>`)
    .concat(attacks.map((a, i) => `<span><svg class="mark" viewBox="0 0 10 10">${mark(i, 5, 5, "var(--soft)", "")}</svg>${esc(attackTitle(a))}</span>`)).join("");
  return `<svg viewBox="0 0 ${W} ${H}" role="img" aria-label="A point a pair: accuracy with momentum at the server and at the workers">${s}</svg><div class="legend">${legend}</div><p class="small soft">Above the dotted line momentum at the workers is better.</p>`;
}

let order = ["gain", 1];
const NUMBERS = new Set(["gain", "server", "worker", "loss", "rate"]);
const SORTS = { rule: (l) => ruleTitle(l.run[RULE]), attack: (l) => l.run[ATTACK], share: (l) => l.run[REAL] / l.run[N], kind: (l) => +l.run[KIND],
  rate: (l) => parseFloat(l.run[RATE]), loss: (l) => l.loss ?? -1e9, server: (l) => l.server, worker: (l) => l.worker, gain: (l) => l.gain };

function table(lines) {
  if (!lines.length) return "";
  const by = SORTS[order[0]];
  lines.sort((a, b) => (by(a) < by(b) ? -1 : by(a) > by(b) ? 1 : 0) * order[1]);
  const gains = lines.flatMap((l) => l.pairs.map((p) => p.worker - p.server)), low = Math.min(-5, ...gains), high = Math.max(5, ...gains);
  const x = (v) => 4 + 122 * (v - low) / (high - low);
  const bar = (l) => `<svg class="bar" viewBox="0 0 130 14"><line x1="${x(0)}" x2="${x(0)}" y1="0" y2="14" stroke="var(--ink)"/><line x1="${x(0)}" x2="${x(l.gain)}" y1="7" y2="7" stroke="${l.gain < 0 ? "var(--server)" : "var(--worker)"}" stroke-width="5" stroke-opacity=".3"/>`
    + l.pairs.map((p) => { const v = p.worker - p.server; return `<circle cx="${x(v)}" cy="7" r="2.3" fill="${v < 0 ? "var(--server)" : "var(--worker)"}"><title>seed ${p.seed}: ${signed(v)}</title></circle>`; }).join("") + "</svg>";
  const heads = [["rule", "rule"], ["attack", "attack"], ["gain", "gain"], ["server", "server"], ["worker", "workers"], ["", "each seed"], ["share", "Byzantine"], ["kind", "momentum"], ["loss", "cost"], ["rate", "rate"]];
  return `<p class="hint small soft">Columns go on to the right: swipe the table, or turn the screen.</p><div class="scroll wide"><table><thead><tr>${heads.map(([k, t], i) => k ? `<th data-sort="${k}" tabindex="0" class="${NUMBERS.has(k) ? "n" : ""}">${t}${order[0] === k ? (order[1] > 0 ? " ↑" : " ↓") : ""}</th>` : `<th>${t}</th>`).join("")}</tr></thead><tbody>`
    + lines.map((l) => `<tr><td>${esc(ruleTitle(l.run[RULE]))}</td><td>${esc(attackTitle(l.run[ATTACK]))}</td><td class="n"><b>${signed(l.gain)}</b></td><td class="n">${l.server.toFixed(1)}</td><td class="n">${l.worker.toFixed(1)}</td>`
      + `<td>${bar(l)}</td><td>${l.run[REAL]} of ${l.run[N]}</td><td>${l.run[KIND] ? "Nesterov" : "classical"}</td><td class="n">${l.loss === null ? "" : l.loss.toFixed(1)}</td><td class="n">${esc(l.run[RATE])}</td></tr>`).join("") + "</tbody></table></div>";
}

function drawPairs(c) {
  const lines = pairing(c), pairs = lines.flatMap((l) => l.pairs), up = pairs.filter((p) => p.worker > p.server).length, down = pairs.filter((p) => p.worker < p.server).length;
  byId("pair-note").textContent = pairs.length ? `Of ${pairs.length} pair${pairs.length === 1 ? "" : "s"} at all learning rates, momentum at the workers raises ${up} and lowers ${down}. Means over seeds, in per cent and points; cost: what the attack takes from the usual formulation.` : "";
  byId("scatter").innerHTML = scatter(c, lines);
  byId("table").innerHTML = table(lines);
  for (const th of byId("table").querySelectorAll("th[data-sort]")) {
    const sort = () => { order = [th.dataset.sort, order[0] === th.dataset.sort ? -order[1] : 1]; drawPairs(choices()); };
    th.onclick = sort;
    th.onkeydown = (event) => { if (event.key === "Enter") sort(); };
  }
}

function fill(id, html) {
  const place = byId(id), section = place && place.closest("section");
  if (!place) return;
  if (section) section.hidden = !html; // a heading over nothing looks broken
  place.innerHTML = html;
}

function redraw() {
  const c = choices();
  for (const section of document.querySelectorAll("section")) section.hidden = false; // what is hidden has no width
  fill("boxes", boxes(c));
  for (const [id, ratios] of [["curves", false], ["ratios", true]]) if (byId(id)) fill(id, curves(c, ratios));
  drawPairs(c);
}

let wide = document.documentElement.clientWidth;
addEventListener("resize", () => { if (document.documentElement.clientWidth !== wide) { wide = document.documentElement.clientWidth; redraw(); } });

const form = document.getElementById("filters");
options(form.querySelector("[name=group]"), data.groups.map((g, i) => [i, `${g.title} (${g.study})`]));
refill();
form.addEventListener("change", (event) => { if (event.target.name === "group") refill(); redraw(); });
form.querySelector("button").onclick = () => { for (const s of form.querySelectorAll("select")) s.selectedIndex = 0; refill(); redraw(); };
redraw();
document.documentElement.dataset.ready = "yes";
