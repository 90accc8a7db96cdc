// The four forms. They send requests to the server of this page only.
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

  // The values of the fields in an element; an empty number is left to the server's default.
  function values(element) {
    const fields = [...element.querySelectorAll("[name]")].filter((field) => !field.closest("fieldset:disabled"));
    return Object.fromEntries(fields.map(({ name, type, value }) => {
      return [name, type === "number" ? (value === "" ? undefined : Number(value)) : value];
    }));
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
    try { said = JSON.parse(text).error ?? text; } catch { /* not JSON: the server failed */ }
    throw new Error(said);
  }

  // One request at a time per tab; `work` gets the form's values and a signal that the stop button sets off.
  function onSubmit(id, work) {
    const section = document.getElementById(id), form = section.querySelector("form");
    if (!form) return;
    const find = (selector) => section.querySelector(selector);
    const button = form.querySelector(".buttons button"), stop = form.querySelector(".stop");
    const status = (text) => section.querySelectorAll(".status").forEach((line) => { line.textContent = text; });
    form.onsubmit = async (event) => {
      event.preventDefault();
      if (button.disabled) return;
      const control = new AbortController();
      button.disabled = true;
      if (stop) Object.assign(stop, { disabled: false, onclick: () => control.abort() });
      find(".error").hidden = true;
      status("…");
      try {
        const text = await work(values(form), find, control.signal);
        if (text !== undefined) status(text);
      } catch (error) {
        control.abort(); // of two sides, one failed
        status(error.name === "AbortError" ? "Stopped." : "");
        if (error.name !== "AbortError") Object.assign(find(".error"), { textContent: error.message, hidden: false });
      } finally {
        button.disabled = false;
        if (stop) stop.disabled = true;
      }
    };
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
    // An invalid setting must be visible to be corrected.
    form.addEventListener("invalid", (event) => event.target.closest("details")?.setAttribute("open", ""), true);
    for (const chip of form.querySelectorAll("[data-fill]")) {
      chip.onclick = () => fill(form, JSON.parse(chip.dataset.fill));
    }
  }

  const fill = (element, fields) => {
    for (const [name, value] of Object.entries(fields)) {
      const field = element.querySelector(`[name="${name}"]`);
      if (field) Object.assign(field, { value: value ?? "" }).dispatchEvent(new Event("change", { bubbles: true }));
    }
  };

  // What the chosen model is.
  const notes = JSON.parse(document.getElementById("notes").textContent);
  for (const select of document.querySelectorAll("select[name=model]")) {
    const note = select.closest("fieldset, form").querySelector(".note");
    select.onchange = () => { note.textContent = notes[select.value] ?? ""; };
    select.onchange();
  }

  // Two sides: the second one is enabled by a check box, and starts with the settings of the first one.
  for (const box of document.querySelectorAll(".compare")) {
    const sides = box.closest("form").querySelector(".sides"), [first, second] = sides.children;
    box.onchange = () => {
      sides.classList.toggle("compared", box.checked);
      Object.assign(second, { hidden: !box.checked, disabled: !box.checked });
      if (!box.checked) return;
      fill(second, values(first));
      second.querySelector(".settings").open = first.querySelector(".settings").open = true;
    };
    box.onchange(); // a browser may keep the check mark when the page is loaded again
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.onclick = async () => {
      const text = button.parentElement.querySelector(".text");
      try {
        await navigator.clipboard.writeText(text.textContent);
        button.textContent = "Copied";
      } catch { // the browser forbids it: select the text, for Ctrl+C
        getSelection().selectAllChildren(text);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    };
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

  // Write a text into a side while it is generated.
  async function write(path, question, given, side, signal) {
    const text = side.querySelector(".text"), written = make("span"), status = side.querySelector(".status");
    text.replaceChildren(Object.assign(make("span", given), { className: "given" }), written);
    side.querySelector(".copy").disabled = false;
    let end = null;
    for await (const line of lines(await ask(path, question, signal))) {
      if (line.text !== undefined) written.append(line.text);
      else end = line;
    }
    if (!end) throw new Error("The answer is incomplete: see the messages of `gpt2core ui` in the terminal.");
    const speed = end.seconds > 0 ? `, ${(end.tokens / end.seconds).toFixed(0)} per second` : "";
    status.textContent = `${end.tokens} token${end.tokens === 1 ? "" : "s"}${speed}`;
  }

  // One request per side, both at the same time; then an entry of the history.
  async function writeSides(id, given, signal) {
    const section = document.getElementById(id), form = section.querySelector("form");
    const sides = [...form.querySelectorAll(".side:not([hidden])")];
    const shared = values(form);
    const questions = sides.map((side) => ({ ...shared, ...values(side) }));
    await Promise.all(sides.map((side, i) => write(`api/${id}`, questions[i], given(shared), side, signal)));
    remember(section, questions, sides.map((side) => side.querySelector(".text").textContent));
  }

  const MAX_REMEMBERED = 50;
  function remember(section, questions, texts) {
    const list = section.querySelector(".history ol"), form = section.querySelector("form"), entry = make("li");
    questions.forEach((question, i) => {
      const { model, prompt, instruction, input, ...settings } = question;
      const named = Object.entries(settings).filter(([, value]) => value !== undefined && value !== "");
      entry.append(Object.assign(make("span", `${model}: ${named.map(([name, value]) => `${name} ${value}`).join(", ")}`), { className: "soft" }));
      entry.append(make("p", prompt === undefined ? `${instruction}\n${texts[i]}` : texts[i]));
    });
    const again = Object.assign(make("button", "Use these settings"), { type: "button", className: "chip" });
    again.onclick = () => {
      const box = form.querySelector(".compare");
      box.checked = questions.length > 1;
      box.onchange();
      fill(form, questions[0]);
      form.querySelectorAll(".side:not([hidden])").forEach((side, i) => fill(side, questions[i]));
      form.scrollIntoView();
    };
    entry.append(again);
    list.prepend(entry);
    if (list.children.length > MAX_REMEMBERED) list.lastChild.remove();
    list.parentElement.hidden = false;
  }

  onSubmit("generate", (_, find, signal) => writeSides("generate", ({ prompt }) => prompt, signal));
  onSubmit("respond", (_, find, signal) => writeSides("respond", () => "", signal));

  onSubmit("classify", async ({ model, texts }, find) => {
    const rows = texts.split("\n").map((text) => text.trim()).filter(Boolean);
    if (!rows.length) throw new Error("There is no text: write one per line.");
    const { labels, probabilities } = await (await ask("api/classify", { model, texts: rows })).json();
    const table = make("table"), head = make("tr");
    // Many classes would need a wide table: only the probability of the most probable one is shown.
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
