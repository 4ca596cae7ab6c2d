// Keeps a page current: when something that it shows has changed, its content is read again from the server.
// Without this script the page refreshes itself every 15 seconds.
"use strict";
(() => {
  const watch = document.body.dataset.watch;
  if (watch === undefined || !("EventSource" in window)) return;
  const pulse = document.getElementById("pulse");
  const SETTLE_MS = 400, AGES_MS = 30000;
  let timer = null, busy = false, again = false;

  async function refresh() {
    timer = null;
    if (busy) { again = true; return; }
    busy = true;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, redirect: "manual" });
      if (answer.type === "opaqueredirect") { location.reload(); return; }
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("main");
      const old = document.getElementById("main");
      const typing = old.contains(document.activeElement) && document.activeElement.tagName === "INPUT";
      if (!fresh || typing || fresh.innerHTML === old.innerHTML) return;
      const open = [...old.querySelectorAll("details")].map((one) => one.open);
      old.replaceChildren(...fresh.childNodes);
      old.querySelectorAll("details").forEach((one, n) => { one.open = open[n] === true; });
    } catch { /* the server is away; the stream will tell when it is back */ } finally {
      busy = false;
      if (again) { again = false; soon(); }
    }
  }
  function soon() { if (timer === null) timer = setTimeout(refresh, SETTLE_MS); }

  const stream = new EventSource("/api/v1/events" + watch);
  for (const kind of ["device", "events", "resync"]) stream.addEventListener(kind, soon);
  stream.onopen = () => { pulse.hidden = false; };
  stream.onerror = () => { pulse.hidden = true; };
  setInterval(() => { if (!document.hidden) soon(); }, AGES_MS);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) soon(); });
})();
