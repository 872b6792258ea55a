// Follows the list of requests: a button starts and ends it, and new rows come first. Without scripts a reload shows them.

const ROWS_MAX = 50;
const body = document.querySelector("tbody[data-live]");

function showRows(text, isAll) {
  const rows = document.createElement("template");
  rows.innerHTML = text; // of our own server, which has escaped what is in it
  if (isAll) body.replaceChildren();
  body.prepend(rows.content);
  for (const row of [...body.rows].slice(ROWS_MAX)) row.remove();
  body.closest("[hidden]")?.removeAttribute("hidden");
  document.querySelector("main p.empty")?.remove();
}

function addButton() {
  const button = document.createElement("button");
  let source = null;
  function show() {
    button.textContent = source ? body.dataset.stop : body.dataset.start;
    button.setAttribute("aria-pressed", String(Boolean(source)));
  }
  function stop() {
    source.close();
    source = null;
    show();
  }
  button.type = "button";
  button.className = "plain";
  button.addEventListener("click", () => {
    if (source) return stop();
    source = new EventSource(body.dataset.live);
    source.addEventListener("all", (event) => showRows(event.data, true));
    source.addEventListener("new", (event) => showRows(event.data, false));
    source.addEventListener("end", stop);
    source.addEventListener("error", () => source?.readyState === EventSource.CLOSED && stop());
    show();
  });
  show();
  document.querySelector("form.filters").append(button);
}

if (body) addButton();
