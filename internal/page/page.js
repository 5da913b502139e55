"use strict";
(() => {
  const pace = 3000; // ms between two questions to the provider
  const patience = 10000; // ms that an answer may take
  const noEnd = 50 * 365 * 24 * 3600; // more seconds than anything has left that ends
  const first = { rows: 100, events: 30, leases: 3, vaults: 6 }; // how many are shown unless more are asked for
  const newest = 200; // events are asked for at all

  const at = id => document.getElementById(id);
  const list = at("rows");
  let report = null, events = [], asked = 0; // the last answers, and when they came
  let away = null; // since when there is no answer, and why
  const all = { rows: false, events: false }; // whether more was asked for
  let places = new Map(); // where each grant stood when the order was last made
  const open = new Set(); // ids of the grants whose facts are shown

  // Whoever makes a name may put characters into it that hide, or turn the text around them: these are shown as their numbers.
  const plain = text => String(text ?? "").replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, c => `\\u{${c.codePointAt(0).toString(16)}}`);
  const put = (node, text) => { if (node.textContent !== text) node.textContent = text; };
  const show = (node, shown) => { if (node.hidden === shown) node.hidden = !shown; };
  const count = (n, one, many = one + "s") => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

  // make returns a copy of a template, with its slots by name.
  function make(id) {
    const root = at(id + "-template").content.firstElementChild.cloneNode(true);
    root.slots = Object.fromEntries([...root.querySelectorAll("[data-at]")].map(slot => [slot.dataset.at, slot]));
    return root;
  }

  function fill(root, texts) {
    for (const [name, text] of Object.entries(texts)) put(root.slots[name], plain(text));
    return root;
  }

  // keep makes the children of parent those of items, in their order. What has the same key stays the same node, so that focus, selection
  // and what is open survive. When the focus was in what goes, it moves on to what takes its place.
  function keep(parent, items, key, template, write) {
    const names = items.map(item => String(key(item))), wanted = new Set(names), kept = new Map();
    let lost = -1;
    for (const [i, child] of [...parent.children].entries()) {
      if (wanted.has(child.dataset.key)) {
        kept.set(child.dataset.key, child);
        continue;
      }
      if (child.contains(document.activeElement)) lost = i;
      child.remove();
    }
    let place = parent.firstElementChild;
    for (const [i, item] of items.entries()) {
      const node = kept.get(names[i]) ?? make(template);
      node.dataset.key = names[i];
      if (node === place) place = place.nextElementSibling;
      else parent.insertBefore(node, place);
      write(node, item);
    }
    if (lost >= 0) parent.children[Math.min(lost, items.length - 1)]?.querySelector("button")?.focus();
  }

  // ---- time

  function span(seconds) {
    if (seconds > noEnd) return "no end";
    const s = Math.max(0, Math.round(seconds));
    const parts = [[Math.floor(s / 86400), "d"], [Math.floor(s / 3600) % 24, "h"], [Math.floor(s / 60) % 60, "m"], [s % 60, "s"]];
    const from = parts.findIndex(([n]) => n > 0);
    if (from < 0) return "0s";
    return parts.slice(from, from + 2).filter(([n]) => n > 0).map(([n, unit]) => n + unit).join(" ");
  }

  const clock = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
  function moment(date) {
    const today = date.toDateString() === new Date().toDateString();
    return date.toLocaleString("en", today ? clock : { ...clock, month: "short", day: "numeric" });
  }

  // ago is coarse: what changes every second draws eyes that should be elsewhere.
  const ago = seconds => seconds < 2 ? "just now" : span(seconds < 60 ? seconds : Math.floor(seconds / 60) * 60) + " ago";
  const since = () => Math.max(0, (Date.now() - asked) / 1000); // seconds since the last answer

  // ---- what is held

  const failing = g => Boolean(g.problem || g.failures);
  const leases = g => (g.leases ?? []).toSorted((a, b) => Boolean(a.superseded) - Boolean(b.superseded) || a.seconds - b.seconds || (a.path < b.path ? -1 : 1));
  const current = g => (g.leases ?? []).filter(l => !l.superseded);
  // What nobody renews ends then: a lease also ends with its token.
  const ends = g => Math.max(0, Math.min(...current(g).map(l => Math.min(l.seconds, g.tokenSeconds ?? Infinity)), Infinity) - since());
  const rank = g => failing(g) ? 0 : g.state === "Superseded" ? 2 : 1;
  const lapse = () => Math.min(...report.grants.filter(g => g.state === "Active").map(ends).filter(s => s > 0), Infinity);

  // What fails comes first, then what ends first; what was replaced comes last.
  function byUrgency(a, b) {
    const [x, y] = [ends(a), ends(b)];
    return rank(a) - rank(b) || (x === y ? 0 : x - y) ||
      `${a.namespace}/${a.pod}/${a.volume}/${a.id}`.localeCompare(`${b.namespace}/${b.pod}/${b.volume}/${b.id}`, "en");
  }

  // While the focus is in the list nothing moves from under it: what is new comes last, and the page says so.
  function ordered(grants) {
    const sorted = grants.toSorted(byUrgency);
    if (!list.contains(document.activeElement)) places = new Map(sorted.map((g, i) => [g.id, i]));
    const place = g => places.get(g.id) ?? places.size;
    const found = sorted.toSorted((a, b) => place(a) - place(b));
    return { found, kept: found.some((g, i) => g !== sorted[i]) };
  }

  const filters = [
    ["All", () => true], ["Failing", failing],
    ...["Active", "Pending", "Partial", "Superseded", "Revoking"].map(state => [state, g => g.state === state]),
  ];
  let chosen = "All";
  const sought = () => at("filter").value.trim().toLowerCase();
  const named = it => `${it.namespace}/${it.pod}`.toLowerCase().includes(sought());

  // ---- writing it down

  const tones = new Map([["Active", "good"], ["Partial", "warn"], ["Revoking", "warn"]]);

  function writeLease(node, g, l) {
    const endless = l.seconds > noEnd, rest = Math.max(0, l.seconds - since());
    const share = endless || !l.ofSeconds ? 1 : Math.min(1, rest / l.ofSeconds);
    const past = l.superseded || g.state === "Superseded";
    node.className = past ? "past" : share > 1 / 3 ? "" : share > 1 / 10 ? "warn" : "bad";
    const life = endless ? "no end" : rest > 0 ? span(rest) : "ended";
    const stated = `renewed ${ago(l.renewedSecondsAgo + since())}${endless || !l.ofSeconds ? "" : ", for " + span(l.ofSeconds)}`;
    const last = l.fixed && !past ? "; no renewal lengthens it any more" : "";
    const sooner = g.tokenSeconds < l.seconds ? `; its token has ${span(g.tokenSeconds - since())}` : "";
    fill(node, { path: l.path, left: life, foot: past ? "replaced, runs out by itself" : stated + last + sooner });
    node.slots.path.title = plain(l.path);
    const meter = node.querySelector(".meter");
    meter.setAttribute("aria-valuenow", Math.round(share * 100));
    meter.setAttribute("aria-valuetext", `${life} left of ${plain(l.path)}`);
    meter.firstElementChild.style.transform = `scaleX(${share.toFixed(3)})`;
  }

  function writeLeases(row, g, opened) {
    const held = leases(g), some = opened ? held : held.slice(0, first.leases), rest = held.length - some.length;
    keep(row.querySelector(".leases"), some.map((l, i) => ({ l, i })), ({ i }) => i, "lease", (node, { l }) => writeLease(node, g, l));
    const token = g.tokenSeconds === undefined ? "no token yet" : `token: ${span(g.tokenSeconds - since())}`;
    fill(row, { rest: rest > 0 ? `and ${count(rest, "more lease")}` : held.length === 0 ? `No lease; ${token}` : "" });
  }

  function facts(g) {
    return [
      ["Problem", g.problem, "wide"], ["Tries that failed", g.failures], ["Being revoked because", g.cause, "wide"],
      ["Volume", g.volume], ["SecretProviderClass", g.class], ["Service account", g.serviceAccount], ["Role", g.role], ["Auth mount", g.authMount],
      ["Vault", g.vault], ["Vault namespace", g.vaultNamespace],
      ["Why the pod's end revokes nothing", g.keeps, "wide"],
      ["Token left", g.tokenSeconds === undefined ? "none" : span(g.tokenSeconds - since())],
      ["Next renewal", g.renewSeconds === undefined ? "none" : "in " + span(g.renewSeconds - since())], ["Pod UID", g.uid], ["Grant", g.id],
    ].filter(([, value]) => value);
  }

  function writeRow(row, g) {
    const opened = open.has(g.id), bad = failing(g);
    row.classList.toggle("bad", bad);
    row.classList.toggle("open", opened);
    fill(row, { namespace: g.namespace, pod: g.pod, state: g.state, volume: g.volume, role: g.role || "no role", problem: g.problem || g.cause });
    row.slots.state.className = "badge " + (tones.get(g.state) ?? "");
    show(row.querySelector(".problem"), Boolean(g.problem || g.cause));
    row.querySelector(".problem").classList.toggle("muted", !g.problem);
    row.querySelector("button").setAttribute("aria-expanded", opened);
    writeLeases(row, g, opened);
    const more = row.querySelector(".facts");
    show(more, opened);
    keep(more, opened ? facts(g) : [], ([name]) => name, "fact", (node, [name, value, wide]) => {
      node.className = wide ?? "";
      fill(node, { name, value });
    });
  }

  function writeCounters() {
    const grants = report.grants, next = lapse();
    const number = (id, n, tone = "") => {
      put(at(id), n.toLocaleString("en"));
      at(id).className = n ? tone : "none";
    };
    number("count-pods", new Set(grants.map(g => g.uid)).size);
    number("count-grants", grants.length);
    number("count-leases", grants.reduce((n, g) => n + (g.leases?.length ?? 0), 0));
    number("count-revoking", grants.filter(g => g.state === "Revoking").length, "warn");
    number("count-failing", grants.filter(failing).length, "bad");
    put(at("count-lapse"), next === Infinity ? "none" : span(next));
    at("count-lapse").className = next === Infinity ? "none" : "";
  }

  function writeVaults() {
    const vaults = new Map();
    for (const g of report.grants) {
      const address = (g.vault || "no address") + (g.vaultNamespace ? ` (${g.vaultNamespace})` : "");
      const v = vaults.get(address) ?? { address, grants: 0, failing: 0 };
      v.grants++;
      v.failing += failing(g);
      vaults.set(address, v);
    }
    const sorted = [...vaults.values()].sort((a, b) => b.failing - a.failing || b.grants - a.grants || a.address.localeCompare(b.address, "en"));
    const rest = sorted.slice(first.vaults), some = sorted.slice(0, first.vaults);
    if (rest.length > 0) {
      const sum = name => rest.reduce((n, v) => n + v[name], 0);
      some.push({ address: `and ${count(rest.length, "more Vault")}`, grants: sum("grants"), failing: sum("failing") });
    }
    keep(at("vaults"), some, v => v.address, "vault", (node, v) => {
      node.className = v.failing ? "bad" : "";
      fill(node, { address: v.address, says: v.failing ? `${v.failing} of ${count(v.grants, "grant")} failing` : `${count(v.grants, "grant")}, none failing` });
    });
  }

  function writeStates() {
    keep(at("states"), filters, ([name]) => name, "state", (node, [name, fits]) => {
      fill(node, { name, count: report.grants.filter(fits).length.toLocaleString("en") });
      node.firstElementChild.value = name;
      node.firstElementChild.checked = name === chosen;
    });
  }

  function writeRows() {
    const fits = filters.find(([name]) => name === chosen)[1];
    const { found, kept } = ordered(report.grants.filter(g => fits(g) && named(g)));
    const some = all.rows ? found : found.slice(0, first.rows);
    keep(list, some, g => g.id, "row", writeRow);
    const part = found.length === report.grants.length ? "" : `${found.length.toLocaleString("en")} of ${count(report.grants.length, "grant")}`;
    put(at("shown"), [part, kept ? "Order kept; Escape sorts anew" : ""].filter(Boolean).join(" · "));
    put(at("nothing"), report.grants.length === 0 ? "Nothing is held on this node." : "Nothing fits. Escape clears the filter.");
    show(at("nothing"), found.length === 0);
    put(at("more-rows"), `Show all ${found.length.toLocaleString("en")}`);
    show(at("more-rows"), some.length < found.length);
  }

  function writeEvents() {
    const found = events.filter(named), some = all.events ? found : found.slice(0, first.events);
    keep(at("told"), some, e => e.key, "event", (node, e) => {
      const when = new Date(e.last);
      node.className = e.warning ? "warn" : "";
      fill(node, {
        kind: e.kind, trouble: e.trouble, times: e.count > 1 ? `× ${e.count}` : "", whose: `${e.namespace}/${e.pod}${e.volume ? " · " + e.volume : ""}`, says: e.says,
        ago: ago((Date.now() - when) / 1000), at: moment(when),
      });
      node.slots.at.dateTime = when.toISOString();
      node.slots.says.title = plain(e.says);
    });
    put(at("quiet"), events.length === 0 ? "Nothing happened lately." : "No event of such a pod.");
    show(at("quiet"), found.length === 0);
    put(at("more-events"), `Show all ${found.length.toLocaleString("en")}`);
    show(at("more-events"), some.length < found.length);
  }

  function writeHealth() {
    const live = at("live");
    live.className = "live " + (away ? "bad" : report ? "good" : "");
    put(at("since"), away ? `Not reachable since ${moment(away.since)}` : report ? `Live, ${ago(since())}` : "Asking the provider…");
    put(at("away"), !away ? "" : `The provider is not reachable since ${moment(away.since)}: ${plain(away.why)}. ` +
      (report ? "What is shown is from then, and lives go on counting down." : "Is kubectl port-forward running?"));
    show(at("away"), Boolean(away));
    if (!report) return;
    show(at("breaker"), Boolean(report.breakerOpen));
    put(at("node"), plain(report.node));
    put(at("version"), plain(report.provider));
    const bad = report.grants.filter(failing).length;
    document.title = `${away ? "! " : bad ? `(${bad}) ` : ""}${plain(report.node)} · Leasehold`;
  }

  function write() {
    writeHealth();
    if (!report) return;
    for (const part of [writeCounters, writeVaults, writeStates, writeRows, writeEvents]) part();
  }

  // ---- asking

  async function ask(path) {
    const answer = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(patience) });
    if (!answer.ok) throw new Error(`it answered ${answer.status}`);
    return answer.json();
  }

  async function look() {
    try {
      const [held, told] = await Promise.all([ask("v1/leases"), ask("v1/events?limit=" + newest)]);
      report = held;
      events = told.events.sort((a, b) => Date.parse(b.last) - Date.parse(a.last)).map(e => ({ ...e, key: JSON.stringify([e.at, e.uid, e.volume, e.kind, e.says]) }));
      asked = Date.now();
      away = null;
    } catch (err) {
      away ??= { since: report ? new Date(asked) : new Date() };
      away.why = err.name === "TypeError" ? "no connection" : err.name === "TimeoutError" ? "no answer" : err.message;
    }
    write();
  }

  async function watch() {
    for (;;) {
      if (!document.hidden) await look();
      await new Promise(next => {
        const timer = setTimeout(done, pace);
        document.addEventListener("visibilitychange", done, { once: true });
        function done() {
          clearTimeout(timer);
          document.removeEventListener("visibilitychange", done);
          next();
        }
      });
    }
  }

  // ---- hands

  function toggle(row) {
    const id = row.dataset.key;
    if (!open.delete(id)) open.add(id);
    write();
  }

  list.addEventListener("click", event => {
    const row = event.target.closest(".row");
    const reading = event.target.closest(".facts") || String(getSelection());
    if (row && (event.target.closest("button") || !reading)) toggle(row);
  });
  list.addEventListener("keydown", event => {
    if (event.key === "Escape") {
      document.activeElement.blur();
      write();
    }
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const other = step && event.target.closest(".row")?.[step];
    if (!other) return;
    event.preventDefault();
    other.querySelector("button").focus();
  });
  at("states").addEventListener("change", event => { chosen = event.target.value; write(); });
  at("filter").addEventListener("input", write);
  at("filter").addEventListener("keydown", event => {
    if (event.key !== "Escape") return;
    if (event.target.value === "") event.target.blur();
    event.target.value = "";
    write();
  });
  document.addEventListener("keydown", event => {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input[type=search]")) return;
    event.preventDefault();
    at("filter").focus();
    at("filter").select();
  });
  at("more-rows").addEventListener("click", () => {
    all.rows = true;
    list.classList.add("many");
    write();
  });
  at("more-events").addEventListener("click", () => { all.events = true; write(); });

  setInterval(() => { if (report && !document.hidden) write(); }, 1000);
  watch();
})();
