/* Text that is followed as it comes: a log of a host, what tasks write. Without this the page loads itself anew.
   A log is a stream that is opened first (data-log-start) and holds bytes; output is there anyway, and comes in pieces of streams and hosts. */
const doc = document;
const button = doc.querySelector("[data-log-follow]"), state = doc.querySelector("[data-log-state]"), panes = [...doc.querySelectorAll("[data-log]")];
const MOST_CHARACTERS = 400000;
const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });
const seen = () => new Promise((done) => { doc.hidden ? doc.addEventListener("visibilitychange", done, { once: true }) : done(); });
const say = (key) => { state.textContent = key ? state.dataset["t" + key] : ""; };
const headers = { "X-CSRFToken": doc.querySelector("meta[name=csrf-token]").content };
const isAtEnd = (out) => out.scrollHeight - out.scrollTop - out.clientHeight < 40;
const toEnd = (out) => { out.scrollTop = out.scrollHeight; };
const span = (className, ...inside) => {
  const made = Object.assign(doc.createElement("span"), { className });
  made.append(...inside);
  return made;
};

/* a line that somebody's next piece goes on with */
let open = {};
const addLines = (out, { hostname, stream, text }) => {
  const by = hostname + " " + stream;
  (text.match(/[^\n]*\n|[^\n]+/g) || []).forEach((line) => {
    if (open.by === by) open.node.append(line);
    else {
      if (open.node) open.node.append("\n");
      open = { by, node: out.appendChild(span(stream === "stderr" ? "l e" : "l", span("t", hostname + " "), line)) };
    }
    if (line.endsWith("\n")) open = {};
  });
};
const add = (out, piece) => {
  const stick = isAtEnd(out), empty = out.parentNode.querySelector(".empty");
  if (out.held === undefined) out.held = out.textContent.length;
  out.hidden = false;
  if (empty) empty.remove();
  if (out.dataset.log === "hosts") addLines(out, piece);
  else out.append(piece.text);
  if (piece.cut) out.append(span("cut", state.dataset.tCut));
  out.held += piece.text.length;
  while (out.held > MOST_CHARACTERS && out.childNodes.length > 1) {
    out.held -= out.firstChild.textContent.length;
    out.firstChild.remove();
  }
  if (stick) toEnd(out);
};
const paneOf = (stream) => panes.find((out) => out.dataset.log === stream) || panes[0];
const clear = () => panes.forEach((out) => { out.textContent = ""; out.held = 0; });

let isOn = false, stream = "", attempt = button ? +button.dataset.logAttempt : 0;
const take = (answer, isFirst) => {
  if (answer.skipped) add(panes[0], { text: state.dataset.tSkipped + "\n" });
  if (answer.text) add(panes[0], answer);
  const pieces = answer.pieces || [];
  if (isFirst && pieces.length) clear();
  pieces.forEach((piece) => {
    if (attempt && piece.attempt < attempt) return;
    /* tried again: what was written before belongs to the attempt before */
    if (attempt && piece.attempt > attempt) clear(attempt = piece.attempt);
    add(paneOf(piece.stream), piece);
  });
};
const read = async () => {
  const isOutput = !button.dataset.logStart, address = button.dataset.logRead + (button.dataset.logRead.includes("?") ? "&" : "?");
  for (let after = button.dataset.logNext || (isOutput ? "" : 0); isOn;) {
    const mine = stream;
    try {
      if (isOutput) await seen();
      const answer = await fetch(`${address}stream=${encodeURIComponent(mine)}&after=${encodeURIComponent(after)}`, { redirect: "manual" });
      if (answer.type === "opaqueredirect") return location.reload();
      if (answer.status === 404) return stop("Over");
      if (!answer.ok) throw answer;
      const piece = await answer.json();
      if (!isOn || mine !== stream) return;
      take(piece, after === "");
      after = button.dataset.logNext = piece.next;
      if (piece.over) return stop("Over");
      say(piece.silent ? "Silent" : after ? "Run" : "Wait");
      if (isOutput && !piece.more) await pause(250);
    } catch (error) {
      say("Away");
      await pause(3000);
    }
  }
};
const label = button && button.querySelector("span"), idle = label && label.textContent;
const stop = (why) => {
  if (button.dataset.logEnd) {
    const data = new FormData();
    data.append("stream", stream);
    fetch(button.dataset.logEnd, { method: "POST", headers, body: data }).catch(() => 0);
    button.dataset.logNext = "";
  }
  isOn = false;
  stream = "";
  label.textContent = idle;
  button.setAttribute("aria-pressed", false);
  if (why && !button.dataset.logEnd) button.hidden = true;
  say(why);
};
const start = async () => {
  button.disabled = true;
  say(button.dataset.logNext ? "Run" : "Wait");
  try {
    if (button.dataset.logStart) {
      const answer = await fetch(button.dataset.logStart, { method: "POST", headers });
      if (!answer.ok) throw answer;
      stream = (await answer.json()).stream;
    }
    isOn = true;
    label.textContent = button.dataset.tStop;
    button.setAttribute("aria-pressed", true);
    panes.forEach(toEnd);
    read();
  } catch (error) {
    say("Away");
  }
  button.disabled = false;
};

panes.forEach(toEnd);
if (button && panes.length) {
  button.hidden = false;
  button.addEventListener("click", () => (isOn ? stop("") : start()));
  if (!button.dataset.logStart) start();
}
