// The four forms. They speak to this page's own server and to nobody else.
(() => {
  "use strict";
  const tabs = [...document.querySelectorAll("[role=tab]")];
  const make = (tag, text = "") => Object.assign(document.createElement(tag), { textContent: text });
  const percent = (p) => `${(100 * p).toFixed(1)}%`;

  // Tabs: by click, by arrow keys, by the address (#classify).
  function show(id) {
    const chosen = tabs.find((tab) => tab.getAttribute("aria-controls") === id) ?? tabs[0];
    for (const tab of tabs) {
      tab.setAttribute("aria-selected", tab === chosen);
      tab.tabIndex = tab === chosen ? 0 : -1;
      document.getElementById(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
    }
    return chosen;
  }
  tabs.forEach((tab, i) => {
    tab.onclick = () => history.replaceState(null, "", `#${show(tab.getAttribute("aria-controls")).getAttribute("aria-controls")}`);
    tab.onkeydown = (event) => {
      const step = { ArrowRight: 1, ArrowLeft: tabs.length - 1 }[event.key];
      if (!step) return;
      const next = tabs[(i + step) % tabs.length];
      next.click();
      next.focus();
    };
  });
  addEventListener("hashchange", () => show(location.hash.slice(1)));
  show(location.hash.slice(1));

  // An empty number is left to the server's default.
  function values(form) {
    const fields = [...new FormData(form)].map(([name, value]) => {
      const is_number = form.elements[name].type === "number";
      return [name, is_number ? (value === "" ? undefined : Number(value)) : value];
    });
    return Object.fromEntries(fields);
  }

  async function ask(path, question, signal) {
    let answer;
    try {
      answer = await fetch(path, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question), signal,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Error("No answer: is `gpt2core ui` still running?");
    }
    if (answer.ok) return answer;
    const text = await answer.text();
    let said = text;
    try { said = JSON.parse(text).error ?? text; } catch { /* it is no JSON: a failure of the server */ }
    throw new Error(said);
  }

  // One question at a time in a tab; `work` is given its values and a signal that the stop button sets off.
  function onSubmit(id, work) {
    const section = document.getElementById(id), form = section.querySelector("form");
    if (!form) return;
    const find = (selector) => section.querySelector(selector);
    const button = form.querySelector("button"), stop = form.querySelector(".stop");
    form.onsubmit = async (event) => {
      event.preventDefault();
      if (button.disabled) return;
      const control = new AbortController();
      button.disabled = true;
      if (stop) Object.assign(stop, { disabled: false, onclick: () => control.abort() });
      find(".error").hidden = true;
      find(".status").textContent = "…";
      try {
        find(".status").textContent = await work(values(form), find, control.signal);
      } catch (error) {
        find(".status").textContent = error.name === "AbortError" ? "Stopped." : "";
        if (error.name !== "AbortError") Object.assign(find(".error"), { textContent: error.message, hidden: false });
      } finally {
        button.disabled = false;
        if (stop) stop.disabled = true;
      }
    };
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
  }

  // Lines of JSON as they come.
  async function* lines(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let held = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const parts = (held + value).split("\n");
      held = parts.pop();
      for (const part of parts) yield JSON.parse(part);
    }
  }

  async function write(path, question, given, find, signal) {
    const text = find(".text"), written = make("span");
    text.replaceChildren(Object.assign(make("span", given), { className: "given" }), written);
    let end = null;
    for await (const line of lines(await ask(path, question, signal))) {
      if (line.text !== undefined) written.append(line.text);
      else end = line;
    }
    if (!end) throw new Error("The answer broke off: look at what `gpt2core ui` says in the terminal.");
    const speed = end.seconds > 0 ? `, ${(end.tokens / end.seconds).toFixed(0)} a second` : "";
    return `${end.tokens} token${end.tokens === 1 ? "" : "s"}${speed}`;
  }

  onSubmit("generate", (question, find, signal) => write("api/generate", question, question.prompt, find, signal));
  onSubmit("respond", (question, find, signal) => write("api/respond", question, "", find, signal));

  onSubmit("classify", async ({ model, texts }, find) => {
    const rows = texts.split("\n").map((text) => text.trim()).filter(Boolean);
    if (!rows.length) throw new Error("There is no text: write one a line.");
    const { labels, probabilities } = await (await ask("api/classify", { model, texts: rows })).json();
    const table = make("table"), head = make("tr");
    // Of many classes a column for each would be too wide: the likeliest one's probability alone.
    const shown = labels.length > 8 ? ["probability"] : labels;
    head.append(...["text", "class", ...shown].map((name) => make("th", name)));
    table.append(head);
    probabilities.forEach((p, i) => {
      const line = make("tr");
      const text = Object.assign(make("td", rows[i]), { className: "cell" });
      const best = make("td"), most = Math.max(...p);
      best.append(make("strong", labels[p.indexOf(most)]));
      line.append(text, best, ...(labels.length > 8 ? [most] : p).map((each) => Object.assign(make("td", percent(each)), { className: "number" })));
      table.append(line);
    });
    find(".result").replaceChildren(table);
    return `${rows.length} text${rows.length === 1 ? "" : "s"}`;
  });

  onSubmit("inside", async (question, find) => {
    const html = await (await ask("api/inspect", question)).text();
    const frame = find("iframe");
    frame.hidden = false;
    await new Promise((loaded) => { frame.onload = loaded; frame.srcdoc = html; });
    const body = frame.contentDocument.body;
    const fit = () => { frame.style.height = `${body.scrollHeight + 4}px`; };
    new ResizeObserver(fit).observe(body);
    fit();
    return "";
  });
})();
