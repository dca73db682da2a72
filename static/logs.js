/* A log that is followed: its stream is asked for as it comes. Without this the page loads itself anew. */
const doc = document;
const button = doc.querySelector("[data-log-follow]"), out = doc.querySelector("[data-log]"), state = doc.querySelector("[data-log-state]");
const MOST_CHARACTERS = 400000;
const pause = (ms) => new Promise((done) => { setTimeout(done, ms); });
const say = (key) => { state.textContent = key ? state.dataset["t" + key] : ""; };
const headers = { "X-CSRFToken": doc.querySelector("meta[name=csrf-token]").content };
const isAtEnd = () => out.scrollHeight - out.scrollTop - out.clientHeight < 40;
const toEnd = () => { out.scrollTop = out.scrollHeight; };

const add = (text) => {
  const stick = isAtEnd();
  out.hidden = false;
  const empty = out.parentNode.querySelector(".empty");
  if (empty) empty.remove();
  out.append(text);
  while (out.textContent.length > MOST_CHARACTERS && out.childNodes.length > 1) out.firstChild.remove();
  if (stick) toEnd();
};

let stream = "";
const read = async () => {
  for (let after = 0; stream;) {
    const mine = stream;
    try {
      const answer = await fetch(`${button.dataset.logRead}?stream=${encodeURIComponent(mine)}&after=${after}`, { redirect: "manual" });
      if (answer.type === "opaqueredirect") return location.reload();
      if (answer.status === 404) return stop("Over");
      if (!answer.ok) throw answer;
      const piece = await answer.json();
      if (mine !== stream) return;
      if (piece.skipped) add(state.dataset.tSkipped + "\n");
      if (piece.text) add(piece.text);
      after = piece.next;
      if (piece.over) return stop("Over");
      say(piece.silent ? "Silent" : after ? "Run" : "Wait");
    } catch (error) {
      say("Away");
      await pause(3000);
    }
  }
};
const label = button && button.querySelector("span"), idle = label && label.textContent;
const stop = (why) => {
  const data = new FormData();
  data.append("stream", stream);
  fetch(button.dataset.logEnd, { method: "POST", headers, body: data }).catch(() => 0);
  stream = "";
  label.textContent = idle;
  button.setAttribute("aria-pressed", false);
  say(why);
};
const start = async () => {
  button.disabled = true;
  say("Wait");
  try {
    const answer = await fetch(button.dataset.logStart, { method: "POST", headers });
    if (!answer.ok) throw answer;
    stream = (await answer.json()).stream;
    label.textContent = button.dataset.tStop;
    button.setAttribute("aria-pressed", true);
    toEnd();
    read();
  } catch (error) {
    say("Away");
  }
  button.disabled = false;
};

if (out) toEnd();
if (button && out) {
  button.hidden = false;
  button.addEventListener("click", () => (stream ? stop("") : start()));
}
