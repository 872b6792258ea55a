// What scripts add to every page: the viewer's own time beside UTC, a button that copies a secret, and Escape, which closes the menu of the
// viewer or an action that was opened. Pages work without them.

for (const time of document.querySelectorAll("time[datetime*='T']")) {
  const at = new Date(time.dateTime);
  time.title = new Intl.DateTimeFormat(document.documentElement.lang, { dateStyle: "medium", timeStyle: "long" }).format(at);
}

for (const code of document.querySelectorAll("[data-copy]")) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "plain";
  button.textContent = { de: "Kopieren" }[document.documentElement.lang] ?? "Copy";
  button.addEventListener("click", () => navigator.clipboard.writeText(code.textContent));
  code.after(" ", button);
}

document.addEventListener("keydown", (event) => {
  const opened = event.key === "Escape" && document.activeElement.closest("details.menu[open], details.danger[open]");
  if (opened) {
    opened.open = false;
    opened.querySelector("summary").focus();
  }
});
