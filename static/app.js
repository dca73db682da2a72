/* What a page gains when there is JavaScript. Nothing here is needed: every link, form and menu works without it.
   Loaded as a module: strict, deferred, without globals. */
const doc = document, root = doc.documentElement, lang = root.lang;
const say = (key) => doc.body.dataset["t" + key];
const all = (what, where = doc) => [...where.querySelectorAll(what)];
const byId = (id) => doc.getElementById(id);
const hear = (type, act, early) => doc.addEventListener(type, act, early);
const on = (type, what, act, early) => hear(type, (event) => {
  const hit = event.target.closest && event.target.closest(what);
  if (hit) act(hit, event);
}, early);
const stop = (event) => event.preventDefault();
const make = (parent, kind, className = "", textContent = "") => parent.appendChild(Object.assign(doc.createElement(kind), { className, textContent }));

/* toasts: bad news stays until it is dismissed */
const wakeToast = (item) => {
  item.querySelector("[data-dismiss]").hidden = false;
  if (!/bad|error|danger|warn/.test(item.className)) setTimeout(() => item.remove(), 8000);
};
const toast = (level, text) => {
  if (all("#toasts p").some((p) => p.textContent === text)) return;
  const item = byId("toasts").appendChild(byId("toast-template").content.firstElementChild.cloneNode(true));
  item.className = "toast " + level;
  item.querySelector("p").textContent = text;
  wakeToast(item);
};
on("click", "[data-dismiss]", (button) => button.closest("[data-toast]").remove());

/* for what came with the page and what comes by htmx */
const enliven = (where) => {
  all("[data-copy], [data-reveal], [data-all]", where).forEach((node) => { node.hidden = false; });
  all("[data-live] > button", where).forEach((button) => { button.hidden = true; });
  all("[data-all] + .sr", where).forEach((node) => node.remove());
  all("[data-confirm-words]", where).forEach(checkWords);
  all("form[data-bulk]", where).forEach(count);
  all("[data-roving]", where).forEach((list) => all("a", list).forEach((link, n) => { link.tabIndex = n ? -1 : 0; }));
  all("[data-focus]", where).forEach((node) => node.focus());
};

/* "2 minutes ago" stays true */
const words = new Intl.RelativeTimeFormat(lang);
const spans = [[31536e3, "year"], [2592e3, "month"], [86400, "day"], [3600, "hour"], [60, "minute"], [2, "second", 1]];
const tick = () => all("time[data-ago]").forEach((node) => {
  const seconds = (new Date(node.dateTime) - Date.now()) / 1000, span = spans.find(([least]) => Math.abs(seconds) >= least);
  if (span) node.textContent = words.format(Math.trunc(seconds / (span[2] || span[0])), span[1]);
});
setInterval(() => doc.hidden || tick(), 10000);

/* lists */
const boxes = (id) => all(`input[name=ids][form="${id}-bulk"]`);
const count = (form) => {
  const id = form.dataset.bulk, every = boxes(id), ticked = every.filter((box) => box.checked).length;
  const label = form.querySelector("[data-count]"), master = doc.querySelector(`[data-all=${id}]`);
  label.textContent = label.dataset.text.replace("{n}", ticked.toLocaleString(lang));
  form.hidden = !ticked;
  master.checked = ticked && ticked === every.length;
  master.indeterminate = ticked && ticked < every.length;
};
on("change", "[data-all]", (master) => {
  const id = master.dataset.all;
  boxes(id).forEach((box) => { box.checked = master.checked; });
  count(byId(id + "-bulk"));
});
on("change", "input[name=ids][form$=-bulk]", (box) => count(box.form));
on("change", "[data-filters] select, select[data-auto]", ({ form }) => {
  if (form.dispatchEvent(new Event("submit", { bubbles: true, cancelable: true }))) form.submit();
});

/* copy, reveal, confirm; a form is sent once */
on("click", "[data-copy]", (button) => {
  const source = button.parentNode.querySelector("[data-copy-source]"), label = button.querySelector("span"), before = label.textContent;
  const done = () => { label.textContent = say("Copied"); setTimeout(() => { label.textContent = before; }, 1600); };
  /* the clipboard API is there on secure pages only */
  if (navigator.clipboard) return navigator.clipboard.writeText(source.value || source.textContent).then(done);
  if (source.select) source.select(); else getSelection().selectAllChildren(source);
  doc.execCommand("copy") && done();
});
on("click", "[data-reveal]", (button) => {
  const field = byId(button.dataset.reveal), show = field.type === "password";
  field.type = show ? "text" : "password";
  button.setAttribute("aria-pressed", show);
});
const checkWords = (field) => {
  field.form.querySelector("[type=submit]").disabled = field.value.trim() !== field.dataset.confirmWords;
};
on("input", "[data-confirm-words]", checkWords);
on("submit", "form[data-confirm]", (form, event) => {
  if (!confirm(form.dataset.confirm)) { stop(event); event.stopImmediatePropagation(); }
}, true);
const sent = new WeakSet();
on("submit", "form[method=post]:not([hx-post])", (form, event) => {
  if (sent.has(form)) stop(event);
  sent.add(form);
  setTimeout(() => sent.delete(form), 4000);
});

/* menus and keys */
hear("click", ({ target }) => all("details[data-menu][open]").forEach((menu) => { if (!menu.contains(target)) menu.open = false; }));
let typed = "", typedAt = 0;
hear("keydown", (event) => {
  const { key } = event, here = doc.activeElement, typing = /^(INPUT|TEXTAREA|SELECT)$/.test(here.tagName);
  const menu = doc.querySelector("details[data-menu][open]"), list = here.closest("[data-roving]"), shown = dialog && !dialog.hidden;
  if (key === "Escape" && menu) {
    menu.open = false;
    menu.firstElementChild.focus();
  } else if (key === "Escape" && shown) closeDialog();
  if (key === "Tab" && shown) return trap(event);
  if (list && /^Arrow/.test(key)) return rove(list, here, event);
  if (typing || event.ctrlKey || event.metaKey || event.altKey || shown) return;
  if (key === "/") {
    const field = doc.querySelector("[data-search]") || doc.querySelector("main input[type=search]");
    if (field) { stop(event); field.select(); }
  } else if (key.length === 1) {
    typed = typed && event.timeStamp - typedAt < 1200 ? `${typed} ${key}` : key;
    typedAt = event.timeStamp;
    const goal = doc.querySelector(`[data-shortcut="${CSS.escape(typed)}"]`);
    if (goal) goal.click();
  }
});
const rove = (list, here, event) => {
  const links = all("a", list), at = links.indexOf(here), across = links.filter((link) => link.offsetTop === links[0].offsetTop).length;
  const goal = links[{ ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + across, ArrowUp: at - across }[event.key]];
  if (!goal) return;
  stop(event);
  here.tabIndex = -1;
  goal.tabIndex = 0;
  goal.focus();
};

/* a page in a dialog */
const dialog = byId("dialog");
let opener, title;
on("click", "a[data-dialog]", (link, event) => {
  if (!window.htmx || event.ctrlKey || event.metaKey || event.shiftKey) return;
  stop(event);
  opener = link;
  htmx.ajax("GET", link.href, { target: "#dialog-body", swap: "innerHTML" });
});
const showDialog = () => {
  byId("dialog-title").textContent = title;
  dialog.hidden = false;
  root.classList.add("dialog-open");
  all("form[method=post]", dialog).forEach((form) => {
    form.setAttribute("hx-post", form.getAttribute("action") || opener.href);
    form.setAttribute("hx-target", "#dialog-body");
    form.setAttribute("hx-encoding", form.enctype);
    form.setAttribute("hx-sync", "this:drop");
    htmx.process(form);
  });
  (dialog.querySelector("[data-focus]") || dialog.querySelector(".body :is(input:not([type=hidden]), select, textarea, .btn)") || dialog.firstElementChild).focus();
};
const closeDialog = () => {
  dialog.hidden = true;
  root.classList.remove("dialog-open");
  byId("dialog-body").textContent = "";
  opener.focus();
};
const trap = (event) => {
  const stops = all("a[href], button, input, select, textarea, summary, [tabindex='0']", dialog).filter((node) => !node.disabled && node.offsetParent);
  if (event.shiftKey) stops.reverse();
  if (doc.activeElement === stops[stops.length - 1] || !dialog.contains(doc.activeElement)) { stop(event); stops[0].focus(); }
};
on("click", "#dialog [data-dismiss-dialog]", (link, event) => closeDialog(stop(event)));
on("mousedown", "#dialog", (node, { target }) => target === node && closeDialog());

/* htmx */
const path = (url) => new URL(url, location.href).pathname;
hear("htmx:configRequest", ({ detail }) => {
  if (detail.verb !== "get") detail.headers["X-CSRFToken"] = doc.querySelector("meta[name=csrf-token]").content;
  else if (detail.elt.matches("[data-filters]")) [...detail.formData.keys()].forEach((name) => detail.formData.get(name) || detail.formData.delete(name));
});
hear("htmx:beforeRequest", (event) => {
  const list = event.detail.elt;
  if (list.matches("[data-poll]") && (doc.hidden || list.querySelector("tbody :checked") || list.contains(doc.activeElement))) stop(event);
});
hear("htmx:beforeSwap", ({ detail }) => {
  const { xhr, target } = detail, moved = xhr.responseURL && path(xhr.responseURL) !== path(detail.pathInfo.requestPath);
  const inside = target.id === "dialog-body";
  if (moved && (inside || /<html/i.test(xhr.responseText))) {
    /* accepted, or signed out: go where the server points */
    detail.shouldSwap = false;
    location.href = xhr.responseURL;
  } else if (inside && detail.shouldSwap) {
    const page = new DOMParser().parseFromString(detail.serverResponse, "text/html"), main = page.querySelector("main") || page.body;
    title = (main.querySelector("h1") || opener).textContent;
    all("header.head, h1", main).forEach((node) => node.remove());
    detail.serverResponse = main.innerHTML;
  }
});
hear("htmx:afterSwap", ({ detail }) => detail.target.id === "dialog-body" && showDialog());
hear("htmx:load", ({ detail }) => enliven(detail.elt.parentNode || detail.elt));
const told = (html) => (new DOMParser().parseFromString(html, "text/html").querySelector(".error-page .lead") || {}).textContent;
hear("htmx:responseError", ({ detail: { xhr } }) => toast("bad", xhr.status === 401 ? say("Expired") : told(xhr.responseText) || say("Failed")));
hear("htmx:sendError", () => toast("bad", say("Away")));

/* charts: what every series said under the pointer */
const worded = (value, unit) => {
  if (unit === "percent") return value.toFixed(1) + "%";
  if (unit === "seconds") return value < 1 ? Math.round(value * 1000) + " ms" : value.toFixed(1) + " s";
  if (!unit.startsWith("bytes")) return value.toLocaleString(lang, { maximumFractionDigits: unit === "count" ? 0 : 2 });
  let rank = 0;
  for (; value >= 1024 && rank < 5; rank++) value /= 1024;
  return value.toFixed(rank && 1) + " " + ["B", "KiB", "MiB", "GiB", "TiB", "PiB"][rank] + (unit === "bytes" ? "" : "/s");
};
const nearest = (times, t) => times.reduce((best, time, n) => (Math.abs(time - t) < Math.abs(times[best] - t) ? n : best), 0);
const hide = (area) => all(".readout, .cursor", area).forEach((node) => node.remove());
const read = (area, { clientX }) => {
  const figure = area.closest("[data-chart]"), box = area.getBoundingClientRect();
  const data = figure.known || (figure.known = JSON.parse(figure.dataset.chart)), span = data.to - data.from;
  const t = (clientX - box.left) / box.width * span;
  /* nothing is read out in a hole */
  const rows = data.series.map((one) => ({ one, n: nearest(one.t, t) })).filter(({ one, n }) => one.t.length && Math.abs(one.t[n] - t) < span / 40);
  hide(area);
  if (!rows.length) return;
  const at = rows[0].one.t[rows[0].n], left = at / span * box.width, cursor = make(area, "div", "cursor"), sheet = make(area, "div", "readout");
  make(sheet, "p", "", new Date((data.from + at) * 1000).toLocaleString(lang, { timeZone: data.tz, dateStyle: "short", timeStyle: "medium" }));
  rows.forEach(({ one, n }) => {
    const row = make(sheet, "div");
    make(row, "span", "key s" + one.slot, one.name);
    make(row, "b", "", worded(one.v[n], data.unit));
  });
  sheet.setAttribute("aria-hidden", true);
  cursor.style.height = figure.dataset.height + "px";
  cursor.style.left = left + "px";
  sheet.style.left = (left + sheet.offsetWidth + 14 > box.width ? Math.max(left - sheet.offsetWidth - 14, 0) : left + 14) + "px";
};
on("pointermove", "[data-chart] .area", read);
on("pointerdown", "[data-chart] .area", read);
on("pointerout", "[data-chart] .area", (area, { relatedTarget }) => area.contains(relatedTarget) || hide(area));

/* live charts: the last minute of a host, a value a second, asked for as it comes */
const SPAN = 60;
const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });
const seen = () => new Promise((done) => { doc.hidden ? doc.addEventListener("visibilitychange", done, { once: true }) : done(); });
const shape = (parent, kind, attributes) => {
  const node = parent.appendChild(doc.createElementNS("http://www.w3.org/2000/svg", kind));
  Object.keys(attributes).forEach((key) => node.setAttribute(key, attributes[key]));
  return node;
};
/* the chart that the server drew, taken over: its lines, its scale, its read-out */
const takeOver = (box) => {
  const figure = box.querySelector("[data-chart]"), data = figure.known = JSON.parse(figure.dataset.chart), height = +figure.dataset.height;
  const lines = figure.querySelector(".area > svg > svg"), scale = figure.querySelector("svg.y"), grid = figure.querySelector(".grid");
  const keys = box.dataset.followed.split(" "), legend = all(".legend li", figure).map((item) => item.querySelector("b") || make(item, "b"));
  lines.textContent = "";
  all(".x", figure).forEach((node) => { node.textContent = ""; });
  const paths = data.series.map(({ slot }) => ["fill", "line"].map((kind) => shape(lines, "path", { class: `${kind} s${slot}` })));
  data.series.forEach((one) => { one.t = one.t.map((t) => t + data.from); });
  const top = () => {
    if (data.unit === "percent") return [100, 25];
    const high = Math.max(1024, ...data.series.flatMap((one) => one.v)), step = 2 ** Math.ceil(Math.log2(high / 4));
    return [Math.ceil(high / step) * step, step];
  };
  const draw = () => {
    const [most, step] = top(), gutter = +figure.dataset.gutter, place = (value) => height * (1 - value / most);
    scale.textContent = grid.textContent = "";
    for (let value = 0; value <= most; value += step) {
      const y = place(value) + 8;
      shape(scale, "text", { x: gutter - 8, y: y + 4, "text-anchor": "end" }).textContent = worded(value, data.unit).replace(/\.0(?=\D)/, "");
      shape(grid, "line", { x1: 0, x2: "100%", y1: y, y2: y });
    }
    data.series.forEach((one, n) => {
      const runs = [], x = (t) => ((t - data.from) / SPAN * 1000).toFixed(1);
      one.t.forEach((t, at) => {
        if (!at || t - one.t[at - 1] > 5) runs.push({ left: x(t), way: "M" });
        const run = runs[runs.length - 1];
        run.way += `${run.way === "M" ? "" : "L"}${x(t)} ${place(one.v[at]).toFixed(1)}`;
      });
      paths[n][1].setAttribute("d", runs.map((run) => run.way).join(""));
      paths[n][0].setAttribute("d", runs.map((run) => `${run.way}V${height}H${run.left}z`).join(""));
      legend[n].textContent = runs.length ? worded(one.v[one.v.length - 1], data.unit) : "";
    });
    if (data.series.some((one) => one.t.length)) all(".none", figure).forEach((node) => node.remove());
  };
  return (samples) => {
    samples.forEach((sample) => data.series.forEach((one, n) => {
      if (typeof sample[keys[n]] !== "number") return;
      one.t.push(new Date(sample.timestamp) / 1000);
      one.v.push(sample[keys[n]]);
    }));
    data.to = Math.max(...data.series.flatMap((one) => one.t), data.to);
    data.from = data.to - SPAN;
    data.series.forEach((one) => {
      const first = one.t.findIndex((t) => t >= data.from), old = first < 0 ? one.t.length : first;
      one.t.splice(0, old);
      one.v.splice(0, old);
    });
    draw();
    /* the read-out counts from the left edge */
    figure.known = { ...data, series: data.series.map((one) => ({ ...one, t: one.t.map((t) => t - data.from) })) };
  };
};
const follow = async (box) => {
  const charts = all("[data-followed]", box).map(takeOver), badge = doc.querySelector("[data-follow-state]");
  const state = (name) => { badge.className = "badge " + name; badge.textContent = badge.dataset["t" + name[0].toUpperCase() + name.slice(1)]; };
  for (let after = +box.dataset.after; box.isConnected;) {
    await seen();
    try {
      const answer = await fetch(`${box.dataset.follow}?after=${after}`, { redirect: "manual" });
      if (answer.type === "opaqueredirect") return location.reload();
      if (!answer.ok) throw answer;
      const { samples, last, online } = await answer.json();
      after = last;
      if (samples.length) charts.forEach((add) => add(samples));
      state(samples.length ? "run" : online ? "idle" : "warn");
      await pause(online ? 200 : 5000);
    } catch (error) {
      state("bad");
      await pause(3000);
    }
  }
};

all("[data-toast]").forEach(wakeToast);
enliven(doc);
all("[data-follow]").forEach(follow);
