// Sends the form of the playground from its page, and shows the answer while it comes. Without this the answer is a page at its end.

const form = document.querySelector("main form[action$='/playground']");

function showEnd(section, end) {
  const [refusal, figures, link] = [".refusal", "dl", "a"].map((each) => section.querySelector(each));
  refusal.textContent = end.refusal;
  refusal.hidden = !end.refusal;
  for (const [title, value] of end.figures) {
    const [term, description] = ["dt", "dd"].map((each) => figures.appendChild(document.createElement(each)));
    term.textContent = title;
    description.textContent = value;
  }
  if (end.path) link.href = end.path;
  link.hidden = !end.path;
}

async function* readLines(body) {
  let rest = "";
  for (const reader = body.pipeThrough(new TextDecoderStream()).getReader(); ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    yield* lines.map((each) => JSON.parse(each));
  }
}

async function send() {
  const section = document.querySelector("#result");
  const headers = { accept: "application/x-ndjson" };
  const answer = await fetch(form.action, { method: "POST", body: new URLSearchParams(new FormData(form)), headers });
  if (!answer.ok) return form.submit(); // refused before anything was sent: the page says why
  const text = section.querySelector("pre");
  text.textContent = "";
  section.querySelector("dl").replaceChildren();
  section.hidden = false;
  for await (const line of readLines(answer.body)) {
    if ("text" in line) text.append(line.text);
    else showEnd(section, line);
  }
}

form?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true;
  try {
    await send();
  } finally {
    button.disabled = false;
  }
});
