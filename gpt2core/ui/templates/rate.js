// One text at a time; three grades each. It speaks to this page's own server and to nobody else.
(() => {
  "use strict";
  const find = (selector) => document.querySelector(selector);
  const groups = [...document.querySelectorAll("[data-question]")];
  const questions = groups.map((group) => group.dataset.question);
  let rater = "", items = [], at = 0, asked = 0;
  let writing = Promise.resolve(); // answers are sent in their order, one at a time

  async function post(path, question) {
    let answer;
    try {
      answer = await fetch(path, {
        method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(question),
      });
    } catch {
      throw new Error("No answer: is `gpt2core rate` still running?");
    }
    const text = await answer.text();
    let said = null;
    try { said = JSON.parse(text); } catch { /* it is no JSON: a failure of the server */ }
    if (!answer.ok || !said) throw new Error(said?.error ?? text);
    return said;
  }
  const complain = (message) => Object.assign(find(".error"), { textContent: message, hidden: !message });
  const is_rated = (item) => questions.every((question) => item.scores[question]);
  const first_open = (item) => Math.max(0, questions.findIndex((question) => !item.scores[question]));

  function show(index) {
    at = index;
    const item = items[at];
    asked = first_open(item);
    find(".instruction").textContent = item.instruction;
    find(".input").textContent = item.input;
    find(".with-input").hidden = !item.input;
    const said = item.response.trim();
    find(".response").textContent = said || "(nothing was said)";
    find(".response").classList.toggle("soft", !said);
    find(".reference p").textContent = item.reference;
    find(".reference").hidden = !item.reference;
    find(".back").disabled = at === 0;
    find(".next").disabled = at === items.length - 1;
    draw();
  }

  function draw() {
    const item = items[at], n_rated = items.filter(is_rated).length, is_done = n_rated === items.length;
    groups.forEach((group, i) => {
      group.classList.toggle("chosen", i === asked);
      for (const button of group.querySelectorAll("button")) {
        const is_given = item.scores[questions[i]] === Number(button.dataset.score);
        button.setAttribute("aria-checked", is_given);
      }
      // One stop of the tab key a question: its grade, or the first.
      const buttons = [...group.querySelectorAll("button")];
      const stop = buttons.find((button) => button.getAttribute("aria-checked") === "true") ?? buttons[0];
      buttons.forEach((button) => { button.tabIndex = button === stop ? 0 : -1; });
    });
    Object.assign(find("progress"), { value: n_rated, max: items.length });
    find(".unrated").disabled = is_done;
    find(".status").textContent = is_done
      ? `All ${items.length} rated: thank you, ${rater}.`
      : `${at + 1} of ${items.length}, ${n_rated} rated`;
  }

  function show_unrated() {
    const after = [...items.keys()].map((i) => (at + 1 + i) % items.length); // the ones behind first, then from the start
    const next = after.find((i) => !is_rated(items[i]));
    if (next !== undefined) show(next);
    else draw();
    scrollTo(0, 0);
  }

  function answer(score) {
    const item = items[at], index = at, question = questions[asked], before = item.scores[question];
    const was_rated = is_rated(item);
    item.scores[question] = score;
    writing = writing
      .then(() => post("api/rate", { rater, item: item.item, question, score }))
      .then(() => complain(""))
      .catch((error) => {
        // What is not on the disk is not shown as if it were.
        if (before === undefined) delete item.scores[question];
        else item.scores[question] = before;
        show(index);
        complain(`Not kept: ${error.message}`);
      });
    if (!was_rated && is_rated(item)) return show_unrated();
    asked = was_rated ? Math.min(asked + 1, questions.length - 1) : first_open(item);
    return draw();
  }

  groups.forEach((group, i) => group.addEventListener("click", (event) => {
    const score = Number(event.target.dataset.score);
    if (!score) return;
    asked = i;
    answer(score);
  }));
  const move = (step) => { if (items[at + step]) show(at + step); };
  find(".back").onclick = () => move(-1);
  find(".next").onclick = () => move(1);
  find(".unrated").onclick = show_unrated;

  addEventListener("keydown", (event) => {
    if (find("#rating").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
    const grades = groups[0].querySelectorAll("button").length;
    const choose = (step) => { asked = (asked + step + questions.length) % questions.length; draw(); };
    const keys = {
      ArrowLeft: () => move(-1), ArrowRight: () => move(1), ArrowUp: () => choose(-1), ArrowDown: () => choose(1),
      n: show_unrated, r: () => { find(".reference").open = !find(".reference").open; },
    };
    const act = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act) act();
    else if (!event.repeat && /^[0-9]$/.test(event.key) && Number(event.key) >= 1 && Number(event.key) <= grades) answer(Number(event.key));
    else return;
    event.preventDefault();
  });

  find("#who").onsubmit = async (event) => {
    event.preventDefault();
    try {
      const begun = await post("api/start", { rater: find("[name=rater]").value });
      ({ rater, items } = begun);
    } catch (error) {
      complain(error.message);
      return;
    }
    complain("");
    find("#who").hidden = true;
    find("#rating").hidden = false;
    at = items.length - 1;
    show(0);
    if (is_rated(items[0])) show_unrated();
    find(".response").focus();
  };
  find("[name=rater]").focus();
})();
