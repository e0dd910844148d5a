"use strict";
/* The views. Texts enter the page through h() only, which makes text nodes and never markup. */

const $ = (id) => document.getElementById(id);
const read = (name) => JSON.parse($("data-" + name).textContent);
const S = read("summary"), ROWS = read("rows");
const BY_ID = new Map(ROWS.map((r, i) => [r.id, i]));

/* Details come in compressed chunks of S.chunk trajectories. */
async function unpack(n) {
  const bytes = Uint8Array.from(atob($("data-c" + n).textContent), (c) => c.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
}
const opened = new Map();
async function details(index) {
  const n = Math.floor(index / S.chunk);
  if (!opened.has(n)) { if (opened.size > 20) opened.clear(); opened.set(n, unpack(n)); }
  return (await opened.get(n))[index % S.chunk];
}

const ROW_HEIGHT = 56, PAGE_ROWS = 400;

function h(tag, attributes, ...children) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(attributes || {})) {
    if (v == null || v === false) continue;
    if (k.startsWith("on")) e.addEventListener(k.slice(2), v); else e.setAttribute(k, v === true ? "" : v);
  }
  for (const c of children.flat(3)) if (c != null && c !== false) e.append(c instanceof Node ? c : document.createTextNode(String(c)));
  return e;
}
const cut = (text, n) => { const line = String(text).replace(/\s+/g, " "); return line.length > n ? line.slice(0, n - 1) + "…" : line; };
const pct = (x) => (x == null ? "-" : (100 * x).toFixed(Math.abs(x) < 0.1 && x !== 0 ? 1 : 0) + " %");
const range = (low, high) => (low == null ? "" : `${(100 * low).toFixed(0)} to ${(100 * high).toFixed(0)}`);
const num = (x, d = 0) => (x == null ? "-" : x.toLocaleString("en", { maximumFractionDigits: d, minimumFractionDigits: d }));
const many = (n, word) => `${num(n)} ${word}${n === 1 ? "" : "s"}`;
const act = (text, n = 120) => h("code", { class: "act txt" }, text === "" ? "(nothing)" : cut(text, n));
const tag = (text, kind) => h("span", { class: "tag " + (kind || "") }, text);
const KINDS = { explored: "explored demonstration", expert: "demonstration", own: "agent's own, won", own_lost: "agent's own, lost", evaluation: "evaluation" };
const kindName = (k) => KINDS[k] || k;
const VERDICTS = { deviated: "went wrong", fatal: "fatal", kept: "no clear fall", tie: "tie", undecided: "undecided", same_action: "same action" };
const verdictName = (v) => (v.verdict === "kept" && v.note.includes("won anyway") ? "won anyway" : VERDICTS[v.verdict] || v.verdict);
const FATAL = { ended: "It ended the episode.", unwinnable: "The world says that the task cannot be won any more.", lost: "Every continuation of the agent's own after it was lost." };
const LOST_BY = { values: "step at which the values fell", demonstration: "first action that is not the demonstration's", refused: "first action that the world refused", end: "last step" };

/* A text that may be long: the beginning, and a button for all of it. */
function longText(text, attributes, limit = 700) {
  const e = h("div", { ...attributes, class: "txt " + ((attributes || {}).class || "") });
  if (text.length <= limit) { e.append(text); return e; }
  const button = h("button", { type: "button", class: "small noprint", onclick: (ev) => { ev.stopPropagation(); e.replaceChildren(text); } }, `show all ${num(text.length)} characters`);
  e.append(text.slice(0, limit) + "… ", button);
  return e;
}

/* -- overview ------------------------------------------------------------------------------------------------- */

function overview() {
  const main = h("div"), runs = S.runs, one = runs.length === 1, first = runs[0];
  main.append(h("h1", {}, one ? first.name : many(runs.length, "run") + " side by side"));
  main.append(h("p", { class: "muted" }, one ? `${first.method} on ${first.env || "?"}, seed ${first.seed} · ` : "", `made ${S.made} with steca-gym ${S.version}`));
  if (one) main.append(tiles(first));
  const advice = one ? first.next.map((t) => [null, t]) : runs.flatMap((r) => r.next.slice(0, 1).map((t) => [r.name, t]));
  main.append(h("section", { class: "next", "aria-label": "What to do next" }, h("h2", {}, "What to do next"),
    h("ul", {}, advice.slice(0, 12).map(([name, t]) => h("li", {}, name ? h("b", {}, name + ": ") : "", code(t))), advice.length > 12 ? h("li", {}, `and ${advice.length - 12} more runs`) : null)));
  const wait = [];
  const measured = S.groups.filter((g) => g.success != null);
  main.append(h("h2", {}, "Results"));
  if (!measured.length) main.append(h("p", { class: "muted" }, "Nothing was evaluated yet."));
  else {
    const chart = h("div", { class: "chart" });
    wait.push(() => draw(chart, successSpec(measured.map((g) => ({ name: g.method + (g.num_runs > 1 ? ` (${g.num_runs} seeds)` : ""), success: g.success, low: g.success_low, high: g.success_high, tip: `${g.method}\n${pct(g.success)} (${range(g.success_low, g.success_high)})\n${many(g.num_games, "game")}` })))));
    main.append(chart, table(["method", "runs", "success (95 %)", "games", "steps", "dnDTW", "after a wrong action", "tokens", "env steps", "seconds"],
      S.groups.map((g) => [g.method, g.num_runs + (g.num_unfinished ? ` (${g.num_unfinished} unfinished)` : ""), g.success == null ? "-" : `${pct(g.success)} (${range(g.success_low, g.success_high)})`, num(g.num_games), num(g.mean_steps, 1), num(g.mean_dndtw, 3), pct(g.robustness), num(g.num_sampled_tokens), num(g.num_env_steps), num(g.seconds)]), 1));
    main.append(h("p", { class: "muted small" }, "Interval: Wilson over the games of one run; over seeds Student's t of the runs' means. After a wrong action: success when the agent has to go on after one."));
  }
  if (S.pairs.length) {
    main.append(h("h2", {}, "Compared on the same games"), table(["", "points (95 %, paired)", "won only by it", "only by the other", "games", "McNemar p"],
      S.pairs.map((p) => [`${runs[p.second].name} − ${runs[p.first].name}`, `${(100 * p.difference).toFixed(1)} (${(100 * p.low).toFixed(1)} to ${(100 * p.high).toFixed(1)})`, num(p.only_second), num(p.only_first), num(p.num_games), p.p_value.toPrecision(2)]), 1));
  }
  const types = one && first.evaluation && first.evaluation.types.length > 1 ? first.evaluation.types : [];
  if (types.length) main.append(h("h2", {}, "By type of task"), table(["type", "won", "played", "success (95 %)"], types.map((t) => [t[0], t[1], t[2], `${pct(t[1] / t[2])} (${range(t[3], t[4])})`]), 1));
  const rounds = runs.flatMap((r) => r.rounds.map((x) => ({ ...x, run: r.name, tip: `${r.name}\nround ${x.round}: ${x.num_wrong} of ${x.num_steps} steps\n${x.accepted} calibrations accepted, ${x.refused} refused` })));
  if (rounds.length) {
    main.append(h("h2", {}, "Round by round"));
    if (new Set(rounds.map((r) => r.round)).size > 1) { const chart = h("div", { class: "chart" }); wait.push(() => draw(chart, roundsSpec(rounds))); main.append(chart); }
    main.append(fold(rounds.length > 12, "All rounds", table([...(one ? [] : ["run"]), "round", "went wrong", "steps asked", "share (95 %)", "accepted", "refused"],
      rounds.map((r) => [...(one ? [] : [r.run]), r.round, num(r.num_wrong), num(r.num_steps), `${pct(r.share)} (${range(r.low, r.high)})`, num(r.accepted), num(r.refused)]), one ? 0 : 1)));
  }
  main.append(h("h2", {}, "Cost by stage"));
  const costs = runs.flatMap((r) => r.stages.map((s, order) => ({ run: r.name, stage: s.name, seconds: s.seconds, order, tip: `${s.name}\n${num(s.seconds, 1)} s\n${num(s.tokens)} tokens sampled\n${num(s.env_steps)} environment steps` })));
  if (costs.length) {
    const chart = h("div", { class: "chart" });
    if (runs.length <= 40) { wait.push(() => draw(chart, costSpec(costs))); main.append(chart); }
    const rows = runs.flatMap((r) => r.stages.map((s) => [...(one ? [] : [r.name]), h("span", {}, s.name, s.unfinished ? tag("unfinished", "warn") : "", s.shared_from ? h("span", { class: "muted small" }, " done by " + s.shared_from) : ""), num(s.seconds, 1), num(s.tokens), num(s.tokens_read), num(s.env_steps), num(s.episodes), ...(S.currency ? [num(s.money, 2)] : [])]));
    main.append(fold(rows.length > 12, "All stages", table([...(one ? [] : ["run"]), "stage", "seconds", "tokens sampled", "prompt tokens read", "env steps", "episodes", ...(S.currency ? [S.currency] : [])], rows, one ? 1 : 2)));
  } else main.append(h("p", { class: "muted" }, "No stage has finished."));
  main.append(h("h2", {}, "Settings"));
  if (S.different.length && !one) main.append(h("h3", {}, "In which the runs differ"), table(["setting", ...runs.map((r) => r.name)], S.different.map(([k, v]) => [h("code", {}, k), ...v.map((x) => cut(x, 60))]), 99));
  for (const r of runs.slice(0, one ? 1 : 60)) {
    const parts = [h("h3", {}, one ? "Changed from the defaults" : r.name), r.changed.length ? h("div", { class: "changed" }, r.changed.map(([k, v]) => tag(cut(`${k} = ${v}`, 120)))) : h("p", { class: "muted" }, "All defaults.")];
    if (one) parts.push(fold(true, `All ${r.settings.length} settings`, table(["setting", "value"], r.settings.map(([k, v]) => [h("code", {}, k), h("span", { class: "txt" }, v)]), 99)));
    main.append(...parts);
  }
  return [main, () => wait.forEach((f) => f())];
}

function tiles(r) {
  const e = r.evaluation, f = r.found || {}, fatal = (f.num_fatal_ended || 0) + (f.num_fatal_unwinnable || 0) + (f.num_fatal_lost || 0), made = (f.num_accepted || 0) + (f.num_refused || 0);
  const total = (k) => r.stages.reduce((a, s) => a + s[k], 0);
  const tile = (big, small, href) => h(href ? "a" : "div", { class: "tile", href, style: null }, h("b", {}, big), h("span", {}, small));
  return h("div", { class: "tiles" },
    r.working ? tile("running", "still being written") : null,
    e ? tile(pct(e.success), `success, ${range(e.low, e.high)} %, ${many(e.num_games, "game")}`) : null,
    r.found ? tile(num((f.num_deviated || 0) + fatal), `of ${num(f.num_steps)} steps went wrong${fatal ? `, ${fatal} fatal` : ""}`) : null,
    made ? tile(`${num(f.num_accepted || 0)} of ${num(made)}`, "calibrations accepted") : null,
    e && e.robustness != null ? tile(pct(e.robustness), `success after a wrong action (${pct(e.robustness_reference)} without it)`) : null,
    tile(`${num(total("seconds"))} s`, `${num(total("tokens"))} tokens, ${num(total("env_steps"))} environment steps`),
    S.currency ? tile(`${num(total("money"), 2)} ${S.currency}`, "by the given prices") : null);
}

function code(text) { return text.split("`").map((part, i) => (i % 2 ? h("code", {}, part) : part)); }
function fold(closed, title, content) { return closed ? h("details", {}, h("summary", {}, title), content) : content; }
function table(head, rows, textColumns) {
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table: " + head.filter(Boolean).slice(0, 3).join(", ") }, h("table", {}, h("thead", {}, h("tr", {}, head.map((c, i) => h("th", { class: i >= textColumns ? "n" : "", scope: "col" }, c || h("span", {}, "runs"))))),
    h("tbody", {}, rows.map((r) => h("tr", {}, r.map((c, i) => h("td", { class: i >= textColumns ? "n" : "" }, c)))))));
}

/* -- the list ------------------------------------------------------------------------------------------------- */

let texts = null;
async function allTexts() { /* what is searched: built at the first search */
  if (texts) return texts;
  const made = [];
  for (let n = 0; n * S.chunk < ROWS.length; n++) for (const d of await unpack(n)) {
    const r = ROWS[made.length];
    made.push([r.task, r.goal, r.type, r.agent, ...d.turns.flatMap((t) => [t.action, t.thought || "", t.observation]), ...d.values.map((v) => v.agent_action), ...d.calibrations.flatMap((c) => [c.reflection, c.reason])].join("\n").toLowerCase());
  }
  return (texts = made);
}
const FILTERS = {
  run: (r, v) => String(r.run) === v,
  kind: (r, v) => r.kind === v,
  outcome: (r, v) => (v === "error" ? r.error !== "" : v === "wrong" ? r.lost != null : v === "won" ? r.won === true : v === "lost" ? r.won === false : r.lost == null && r.won == null),
  calibration: (r, v) => (v === "none" ? !r.calibration : v === "undecided" ? r.calibration && !r.decision : v === "approved" || v === "vetoed" ? r.decision === (v === "vetoed" ? "refused" : v) : r.calibration === v),
  type: (r, v) => r.type === v, step: (r, v) => String(r.lost) === v, verb: (r, v) => r.lost != null && r.verb === v, by: (r, v) => r.lost_by === v,
};
async function filtered(q) {
  const search = (q.get("q") || "").toLowerCase(), tests = Object.entries(FILTERS).filter(([k]) => q.get(k));
  const found = search ? await allTexts() : null, kept = [];
  ROWS.forEach((r, i) => { if (tests.every(([k, f]) => f(r, q.get(k))) && (!found || found[i].includes(search))) kept.push(i); });
  return kept;
}
function select(name, label, q, options) {
  if (options.length < 2) return null;
  return h("select", { "aria-label": label, onchange: (e) => setFilter(name, e.target.value) }, h("option", { value: "" }, label), options.map(([v, t]) => h("option", { value: v, selected: q.get(name) === v }, t)));
}
const distinct = (f) => [...new Set(ROWS.map(f))].filter((x) => x !== "" && x != null).sort();
function setFilter(name, value) { const q = route().query; if (value) q.set(name, value); else q.delete(name); location.replace("#/trajectories?" + q); }

let LIST = { indexes: [], position: 0, query: "" };
async function trajectories(q) {
  const indexes = await filtered(q), same = LIST.query === q.toString();
  LIST = { indexes, position: same ? LIST.position : 0, query: q.toString() };
  const ul = h("ul", { style: null }), list = h("div", { class: "list", tabindex: 0, role: "region", "aria-label": "Trajectories" }, ul);
  ul.style.height = indexes.length * ROW_HEIGHT + "px";
  let from = -1, to = -1;
  const fill = (all) => {
    const top = Math.max(0, Math.floor(list.scrollTop / ROW_HEIGHT) - 8), end = Math.min(indexes.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW_HEIGHT) + 8);
    const [a, b] = all ? [0, Math.min(indexes.length, PAGE_ROWS)] : [top, end];
    if (!all && a === from && b === to) return;
    [from, to] = [a, b];
    ul.replaceChildren(...indexes.slice(a, b).map((i, n) => item(i, a + n, indexes.length)));
  };
  list.addEventListener("scroll", () => fill(false), { passive: true });
  LIST.show = (position) => {
    LIST.position = Math.max(0, Math.min(indexes.length - 1, position));
    const y = LIST.position * ROW_HEIGHT;
    if (y < list.scrollTop) list.scrollTop = y; else if (y + ROW_HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = y + ROW_HEIGHT - list.clientHeight;
    from = -1; fill(false);
    const a = ul.querySelector("a[aria-current]"); if (a) a.focus({ preventScroll: true });
  };
  LIST.print = (on) => { from = -1; fill(on); };
  const place = ["step", "verb", "by"].filter((k) => q.get(k));
  const view = h("div", {}, h("h1", {}, "Trajectories"),
    h("div", { class: "filters", role: "search" },
      h("input", { type: "search", id: "search", placeholder: "Search in tasks, turns, reflections (press /)", "aria-label": "Search", value: q.get("q") || "", oninput: (e) => later(() => setFilter("q", e.target.value)) }),
      select("run", "all runs", q, S.runs.map((r, i) => [String(i), r.name])),
      select("kind", "all kinds", q, distinct((r) => r.kind).map((k) => [k, kindName(k)])),
      select("outcome", "any outcome", q, [["wrong", "went wrong"], ["won", "won"], ["lost", "lost"], ["error", "error"], ["fine", "nothing found"]]),
      select("calibration", "any calibration", q, [["accepted", "accepted"], ["refused", "refused"], ["undecided", "no decision yet"], ["approved", "approved by a person"], ["vetoed", "refused by a person"], ["none", "none"]]),
      select("type", "all types", q, distinct((r) => r.type).map((t) => [t, t])),
      place.length ? h("button", { type: "button", onclick: () => { const n = route().query; place.forEach((k) => n.delete(k)); location.replace("#/trajectories?" + n); } }, "lost at " + place.map((k) => (k === "step" ? `step ${+q.get(k) + 1}` : q.get(k))).join(", ") + " ✕") : null),
    h("p", { class: "muted", role: "status" }, indexes.length === ROWS.length ? many(ROWS.length, "trajectory").replace("trajectorys", "trajectories") : `${num(indexes.length)} of ${num(ROWS.length)} trajectories`),
    ROWS.length ? list : h("p", {}, "The run has stored no trajectories yet."));
  return [view, () => { list.scrollTop = Math.max(0, LIST.position * ROW_HEIGHT - list.clientHeight / 2); fill(false); if (LIST.query.startsWith("q=") || q.get("q")) { const s = $("search"); if (typing) { s.focus(); s.setSelectionRange(s.value.length, s.value.length); } } }];
}
function outcome(r) {
  if (r.error) return tag("error", "warn");
  if (r.won === false) return tag("lost", "bad");
  if (r.lost != null) return tag("went wrong", "bad");
  if (r.won === true) return tag("won", "good");
  return tag("nothing found");
}
function item(i, position, total) {
  const r = ROWS[i];
  return Object.assign(h("li", { "aria-setsize": total, "aria-posinset": position + 1 }, h("a", { href: "#/t/" + encodeURIComponent(r.id), "aria-current": position === LIST.position ? "true" : null },
    h("div", { class: "l1" }, outcome(r), h("b", { class: "txt" }, cut(r.task, 60)), h("span", { class: "grow" }, r.lost != null ? [`step ${r.lost + 1} of ${r.steps}: `, act(r.action, 60)] : ""),
      r.calibration ? tag([h("span", { class: "wide" }, "calibration "), (r.decision ? (r.decision === "approved" ? "approved" : "vetoed") : r.calibration)], r.calibration === "accepted" && r.decision !== "refused" ? "good" : "") : null),
    h("div", { class: "l2" }, h("span", {}, kindName(r.kind) + (r.round ? `, round ${r.round}` : "")), h("span", {}, many(r.steps, "step")), S.runs.length > 1 ? h("span", {}, cut(S.runs[r.run].name, 40)) : null, h("span", { class: "grow txt" }, r.goal)))), { style: `top:${position * ROW_HEIGHT}px` });
}

/* -- one trajectory ------------------------------------------------------------------------------------------- */

const valueText = (e) => (e ? `${pct(e.mean)} (${range(e.low, e.high)}${e.n ? `; ${many(e.n, "sample")}${e.num_cut ? `, ${e.num_cut} cut` : ""}` : "; exact"})` : "not sampled");
function evidenceText(v, t) {
  if (!v) return `step ${t + 1}: the agent was not asked here`;
  if (v.verdict === "same_action") return `step ${t + 1}: the agent does what the expert does` + (v.before ? `\nchance before: ${valueText(v.before)}` : "");
  return `step ${t + 1}: ${verdictName(v)}\nexpert: ${cut(v.expert_action, 60)}\nagent: ${cut(v.agent_action, 60)}\nchance before: ${valueText(v.before)}\nafter the agent's action: ${valueText(v.agent)}` + (v.after ? `\nafter the expert's action: ${valueText(v.after)}` : "");
}
function dots(e) { return e && e.outcomes.length ? h("span", { class: "dots", title: e.outcomes.length + " sampled outcomes" }, e.outcomes.slice(0, 60).map((x) => h("i", { class: x >= 0.5 ? "w" : "" }))) : ""; }

let DETAIL = null; /* {select, lost, count} of the open trajectory */
async function trajectory(id, wanted) {
  const index = BY_ID.get(id);
  DETAIL = null;
  if (index == null) return [h("div", {}, h("h1", {}, "No such trajectory"), h("p", {}, "The link belongs to another report. ", h("a", { href: "#/trajectories" }, "All trajectories"))), null];
  const r = ROWS[index], d = await details(index), values = d.values, at = new Map(values.map((v) => [v.t, v])), lostAt = r.lost_by === "values" ? at.get(r.lost) : null;
  const count = Math.max(d.turns.length, ...values.map((v) => v.t + 1), 0);
  const start = wanted != null && wanted < count ? wanted : r.lost != null ? r.lost : 0;
  const evidence = h("div", { class: "evidence", role: "status" }), turns = h("div", { class: "turns", tabindex: 0, role: "region", "aria-label": "Turns" });
  const chart = h("div", { class: "chart" });
  let view = null, selected = -1;
  for (let t = 0; t < count; t++) turns.append(turn(d.turns[t], at.get(t), t, t === r.lost, (s) => pick(s, true)));
  const pick = (t, moved) => {
    if (t < 0 || t >= count) return;
    turns.children[selected]?.classList.remove("on"); turns.children[selected]?.querySelector(".no").removeAttribute("aria-current");
    selected = t; DETAIL.selected = t;
    const e = turns.children[t]; e.classList.add("on"); e.querySelector(".no").setAttribute("aria-current", "step");
    if (e.offsetTop < turns.scrollTop || e.offsetTop + e.offsetHeight > turns.scrollTop + turns.clientHeight) turns.scrollTop = e.offsetTop - turns.clientHeight / 3;
    evidence.replaceChildren(...evidenceOf(at.get(t), d.turns[t], t));
    if (view) view.signal("selected", t).runAsync();
    if (moved) history.replaceState(null, "", `#/t/${encodeURIComponent(id)}/${t + 1}`);
  };
  DETAIL = { pick, lost: r.lost, selected: start };
  const list = LIST.indexes.length ? LIST.indexes : ROWS.map((_, i) => i), here = list.indexOf(index);
  if (here >= 0) { LIST.indexes = list; LIST.position = here; }
  const step = (n, text) => { const to = list[here + n]; return here >= 0 && to != null ? h("a", { href: "#/t/" + encodeURIComponent(ROWS[to].id) }, text) : null; };
  const body = h("div", {},
    h("div", { class: "crumbs noprint" }, h("a", { href: "#/trajectories?" + LIST.query }, "← All trajectories"), step(-1, "previous"), step(1, "next"), here >= 0 ? h("span", { class: "muted" }, `${here + 1} of ${list.length}`) : null),
    h("h1", { class: "txt" }, r.task), longText(d.goal || "", { class: "muted" }, 400),
    h("p", { class: "muted small" }, [kindName(r.kind) + (r.kind === "explored" ? ` (${r.phase})` : ""), r.type, r.agent && "played by " + r.agent, many(count, "step"), S.runs.length > 1 && S.runs[r.run].name].filter(Boolean).join(" · ")),
    verdict(r, d, lostAt),
    h("div", { class: "split" },
      h("section", { "aria-label": "Step values" }, values.length ? [h("div", { class: "legend" }, dotLegend("expert", "chance in the expert's states"), dotLegend("agent", "after the agent's own action"), dotLegend("bad", "where it went wrong")), chart] : h("p", { class: "muted" }, "No step values were sampled along this trajectory."), h("h3", {}, "At the chosen step"), evidence),
      h("section", { "aria-label": "What was said and seen" }, count ? turns : h("p", { class: "muted" }, "The turns were not stored."), h("details", {}, h("summary", {}, "First observation"), longText(d.first_observation, {}, 2000)))),
    d.calibrations.map((c) => card(c, d, r)));
  return [body, () => {
    pick(Math.min(start, count - 1), false);
    if (values.some((v) => v.before || v.agent || v.after || v.verdict === "fatal")) draw(chart, timelineSpec(values, count, lostAt ? r.lost : null, selected)).then((v) => { view = v; v.signal("selected", selected).runAsync(); v.addEventListener("click", (e, it) => { if (it && it.datum && it.datum.t != null) pick(it.datum.t, true); }); });
    else if (values.length) chart.replaceChildren(h("p", { class: "muted" }, "No values were needed: no action had to be compared."));
    body.querySelectorAll("[data-alignment]").forEach((e) => draw(e, alignmentSpec(d.calibrations[+e.dataset.alignment].alignment)));
  }];
}
const dotLegend = (color, text) => h("span", {}, Object.assign(h("i"), { style: `background:var(--${color})` }), text);

function inWords(c) {
  const last = c.decisions.findLast((x) => x.decision === c.decision);
  if (c.status !== "accepted") return `The correction was refused: ${cut(c.reason, 200)}. `;
  const use = last && c.decision === "refused" ? `, but ${last.who} refused it` : c.state === "waiting" ? "; it trains nothing until a person has decided on it (steca review)" : c.weight ? "; it is used in training" : "; this run does not train on it";
  const instead = c.demonstrated ? ` What is taught is "${cut(c.expert_action, 80)}"; the demonstration does not fit after the agent's action.` : "";
  return (c.kind === "fatal" ? "Nothing can follow this action, so the right one is taught in the state before it" : "A correction was executed and reached success") + use + "." + instead + " ";
}

function verdict(r, d, v) {
  if (r.error) return h("div", { class: "verdict bad" }, h("p", { class: "where" }, "It failed."), longText(d.error, {}, 400));
  if (v) return h("div", { class: "verdict bad" },
    h("p", {}, h("span", { class: "where" }, `${v.verdict === "fatal" ? "Fatal mistake" : "Went wrong"} at step ${v.t + 1} of ${r.steps || v.t + 1}: `), "the agent did ", act(v.agent_action), v.expert_action ? [" where the expert does ", act(v.expert_action)] : "", "."),
    v.before && v.agent ? h("p", {}, `The chance of success was ${pct(v.before.mean)} before the step and ${pct(v.agent.mean)} after the agent's action.`) : v.agent ? h("p", {}, `After it the chance of success is ${pct(v.agent.mean)}.`) : null,
    v.fatal ? h("p", {}, FATAL[v.fatal] || "") : null,
    h("p", {}, d.calibrations.map(inWords)));
  if (r.lost != null) return h("div", { class: "verdict bad" }, h("p", {}, h("span", { class: "where" }, `Lost; off course from step ${r.lost + 1} of ${r.steps}: `), act(r.action), "."), h("p", { class: "muted" }, `There are no step values here; this is the ${LOST_BY[r.lost_by]}.`));
  if (r.won === true) return h("div", { class: "verdict good" }, h("p", { class: "where" }, `Won in ${many(r.steps, "step")}.`));
  if (r.won === false) return h("div", { class: "verdict bad" }, h("p", { class: "where" }, "Lost."));
  return h("div", { class: "verdict good" }, h("p", { class: "where" }, d.values.length ? "The agent did not go wrong at any step that was looked at." : "Nothing was looked at here yet."));
}

function evidenceOf(v, turn, t) {
  const head = h("div", {}, h("b", {}, `Step ${t + 1} `), v ? tag(verdictName(v), v.verdict === "deviated" || v.verdict === "fatal" ? "bad" : "") : "", v && v.note ? h("span", { class: "muted" }, " " + v.note) : "", v && v.fatal ? h("span", { class: "muted" }, " " + (FATAL[v.fatal] || "")) : "");
  if (!v) return [head, h("div", { class: "muted" }, "The agent was not asked in this state.")];
  const line = (who, cls, action, label, e) => h("div", {}, h("span", { class: "who " + cls }, who), action == null ? "" : [act(action, 80), " "], h("span", {}, label + valueText(e) + " "), h("span", { class: "who " + cls }, dots(e)));
  return [head, line("before the step", "expert", null, "", v.before), v.verdict === "same_action" ? h("div", { class: "muted" }, "The agent chose the expert's action.") : line("agent", "agent", v.agent_action, "then ", v.agent), v.after ? line("expert", "expert", v.expert_action, "then ", v.after) : ""];
}

function turn(turn, v, t, lost, pick) {
  const differs = v && v.verdict !== "same_action" && v.agent_action !== "";
  return h("div", { class: "turn" + (lost ? " lost" : ""), onclick: () => pick(t) },
    h("div", {}, h("button", { type: "button", class: "no", "aria-label": `Step ${t + 1}` }, t + 1), turn ? [differs ? h("span", { class: "who expert" }, "expert") : "", h("code", { class: "act txt" }, turn.action === "" ? "(nothing)" : cut(turn.action, 400)), turn.refused ? [" ", tag("refused by the world", "warn")] : "", turn.unread != null ? [" ", tag("could not be read", "warn")] : "", lost && !differs ? [" ", tag("went wrong here", "bad")] : ""] : h("span", { class: "muted" }, "turn not stored")),
    turn && turn.thought ? longText(turn.thought, { class: "thought muted" }, 300) : null,
    turn && turn.unread ? longText(turn.unread, { class: "small muted" }, 300) : null,
    turn && turn.observation ? longText(turn.observation, { class: "obs" }, 400) : null,
    differs ? h("div", { class: "other" }, h("span", { class: "who agent" }, "agent instead"), act(v.agent_action), " ", tag(lost ? "went wrong here" : verdictName(v), lost ? "bad" : ""), v.agent && v.before ? h("b", { class: "small" }, ` ${pct(v.before.mean)} → ${pct(v.agent.mean)}`) : "", v.observation ? longText(v.observation, { class: "obs" }, 300) : null) : null);
}

function card(c, d, r) {
  const n = d.calibrations.indexOf(c), v = c.value, last = c.decision ? c.decisions.findLast((x) => x.decision === c.decision) : null;
  const steps = (list) => h("ol", { start: list.length ? list[0].t + 1 : 1 }, list.map((s) => h("li", {}, h("code", { class: "act txt" }, cut(s.action, 200)), s.thought ? longText(s.thought, { class: "thought muted" }, 240) : null, s.observation ? longText(s.observation, { class: "obs muted small" }, 200) : null)));
  return h("article", { class: "card", id: "c-" + c.id, "aria-label": "Calibration" },
    h("h3", {}, `Calibration at step ${c.step + 1}`, tag(c.status === "accepted" ? "accepted" : "refused", c.status === "accepted" ? "good" : "bad"), c.repaired ? tag("repaired", "warn") : "", c.kind === "fatal" ? tag("fatal", "bad") : "", last ? tag(`${last.decision} by ${last.who}`, last.decision === "approved" ? "good" : "bad") : tag(c.state === "waiting" ? "waits for a decision" : "no decision yet", c.state === "waiting" ? "warn" : ""), c.edited_by ? tag("edited by " + c.edited_by, "warn") : ""),
    h("div", { class: "grid2" },
      h("div", {}, h("h4", {}, "Wrong action"), h("div", {}, h("code", { class: "act txt" }, cut(c.wrong.action, 400))), c.wrong.thought ? longText(c.wrong.thought, { class: "thought muted" }, 300) : null, longText(c.wrong.observation || "", { class: "obs muted" }, 300)),
      h("div", {}, h("h4", {}, "Right action"), h("div", {}, h("code", { class: "act txt" }, cut(c.expert_action, 400))), c.demonstrated ? h("div", { class: "muted small" }, "The demonstration has ", act(c.demonstrated), " in the state before.") : null),
      h("div", {}, h("h4", {}, "Reflection", c.reflection ? `, written by ${c.reflection_source}` : ""), c.reflection ? h("blockquote", { class: "quote" }, longText(c.reflection, {}, 800)) : h("p", { class: "muted" }, "none: nothing is trained on it")),
      h("div", {}, h("h4", {}, "Samples"), v ? [h("div", {}, h("span", { class: "who expert" }, "before it ", dots(v.before)), valueText(v.before)), h("div", {}, h("span", { class: "who agent" }, "after it ", dots(v.agent)), valueText(v.agent)), h("div", { class: "muted small" }, `verdict: ${verdictName(v)}${v.note ? "; " + v.note : ""}. ● won, ○ lost; in brackets the interval at the estimator's stated level.`)] : h("p", { class: "muted" }, "none"))),
    h("h4", {}, "Execution"), h("p", {}, c.kind === "fatal" ? "Nothing can follow the wrong action, so the right one is taught in the state before it. " : c.status === "accepted" ? (c.repaired ? "The corrected trajectory was repaired and then reached success. " : "The corrected trajectory was executed and reached success. ") : "The corrected trajectory was executed and refused. ", c.reason ? h("span", { class: "txt" }, (c.repaired ? "Why it was repaired: " : "Reason: ") + c.reason + ".") : ""),
    h("h4", {}, "Weight in training"), h("p", {}, c.weight && c.alignment ? `${c.weight} (1 + w · dnDTW, dnDTW = ${c.alignment.distance}): the farther off course the agent was, the more the correction counts.` : c.state === "waiting" ? "0: it waits for a person's decision." : c.state === "refused" ? "0: a person refused it." : `${c.weight}: it trains nothing.`, c.encoder && c.alignment ? h("span", { class: "muted" }, " " + c.encoder + ".") : ""),
    c.alignment && c.alignment.cost && c.alignment.path.length > 1 ? h("details", { open: true }, h("summary", {}, "dnDTW alignment of the right actions with the agent's"), h("div", { class: "chart", "data-alignment": n })) : null,
    h("details", {}, h("summary", {}, `History: the ${many(c.step, "step")} before`), steps(d.turns.slice(0, c.step))),
    h("div", { class: "grid2" },
      h("details", {}, h("summary", {}, "The corrected trajectory from here"), steps(c.corrected)),
      c.failed ? h("details", {}, h("summary", {}, "How the agent continued"), steps(c.failed)) : null),
    c.decisions.length ? h("details", { open: true }, h("summary", {}, "Decisions"), h("ul", {}, c.decisions.map((x) => h("li", {}, `${x.at.slice(0, 16).replace("T", " ")} ${x.decision} by ${x.who}`, x.why ? ": " + x.why : "")))) : null);
}

/* -- failure map ---------------------------------------------------------------------------------------------- */

function failures(q) {
  const by = q.get("rows") || "verb", only = q.get("all") !== "1", name = { verb: "kind of action", type: "type of task", kind: "kind of trajectory" };
  const field = (r) => (by === "kind" ? kindName(r.kind) : r[by] || "(none)");
  const lost = ROWS.filter((r) => r.lost != null && (!only || r.lost_by === "values"));
  const cells = new Map(), totals = new Map();
  let last = 0, most = 0;
  for (const r of lost) { const k = field(r) + "\n" + r.lost, n = (cells.get(k) || 0) + 1; cells.set(k, n); most = Math.max(most, n); last = Math.max(last, r.lost); totals.set(field(r), (totals.get(field(r)) || 0) + 1); }
  const names = [...totals.keys()].sort((a, b) => totals.get(b) - totals.get(a)), columns = Array.from({ length: last + 1 }, (_, t) => t);
  const link = (row, t) => { const p = new URLSearchParams(); if (row != null) p.set(by, by === "kind" ? lost.find((r) => field(r) === row).kind : row === "(none)" ? "" : row); if (t != null) p.set("step", t); if (only) p.set("by", "values"); p.set("outcome", "wrong"); return "#/trajectories?" + p; };
  const set = (k, v) => { const n = route().query; if (v) n.set(k, v); else n.delete(k); location.replace("#/failures?" + n); };
  const red = document.documentElement.dataset.theme === "dark" ? "255,120,110" : "190,40,30";
  const cell = (row, t) => { const n = cells.get(row + "\n" + t) || 0, a = n ? 0.12 + 0.75 * n / most : 0; return n ? Object.assign(h("td", { class: a > 0.62 ? "dark" : "" }, h("a", { href: link(row, t), "aria-label": `${n} lost at step ${t + 1}, ${row}` }, n)), { style: `background:rgba(${red},${a})` }) : h("td", {}); };
  const worst = [...cells].sort((a, b) => b[1] - a[1])[0];
  return [h("div", {}, h("h1", {}, "Where trajectories are lost"),
    h("div", { class: "filters" }, h("label", {}, "rows: ", h("select", { onchange: (e) => set("rows", e.target.value) }, Object.entries(name).map(([k, t]) => h("option", { value: k, selected: k === by }, t)))),
      h("label", {}, h("input", { type: "checkbox", checked: !only, onchange: (e) => set("all", e.target.checked ? "1" : "") }), " also lost episodes without step values")),
    worst ? h("p", {}, h("b", {}, `${lost.length} lost. `), `Most often at step ${+worst[0].split("\n")[1] + 1}, ${name[by]} “${worst[0].split("\n")[0]}”: ${worst[1]}. A cell leads to its trajectories.`) : h("p", { class: "muted" }, only ? "No trajectory was lost by its step values." : "No trajectory was lost."),
    worst ? h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Failure map" }, h("table", { class: "map" }, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, name[by]), columns.map((t) => h("th", { scope: "col" }, t + 1)), h("th", { scope: "col" }, "all"))),
      h("tbody", {}, names.slice(0, 200).map((n) => h("tr", {}, h("th", { scope: "row" }, cut(n, 40)), columns.map((t) => cell(n, t)), h("td", {}, h("a", { href: link(n, null) }, totals.get(n)))))))) : null,
    h("p", { class: "muted small" }, only ? "Counted: the step at which the sampled values fell (went wrong, fatal)." : "Counted too: lost episodes without step values, at the first action that is not the demonstration's; without a demonstration the first that the world refused; else the last step.")), null];
}
