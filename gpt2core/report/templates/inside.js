// Draws one inspection: tokens, all heads, one enlarged head, and the next token by layer. Fetches nothing.
(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("inspection").textContent);
  const { tokens, n_layer: L, n_head: H, scale } = data;
  const T = tokens.length;
  // A byte for each weight, its square root from 0 to 255; [L, H, T, T].
  const roots = Uint8Array.from(atob(data.attention), (c) => c.charCodeAt(0));
  const rootOf = (layer, head, t, s) => roots[((layer * H + head) * T + t) * T + s];
  const weightOf = (layer, head, t, s) => (rootOf(layer, head, t, s) / 255) ** 2;
  const section = document.getElementById("look-inside");
  const find = (selector) => section.querySelector(selector);
  const make = (tag, text) => Object.assign(document.createElement(tag), text === undefined ? {} : { textContent: text });
  const percent = (p) => (p >= 0.0995 ? `${(100 * p).toFixed(0)}%` : p >= 0.001 ? `${(100 * p).toFixed(1)}%` : "<0.1%");
  let chosen = { layer: L - 1, head: 0, t: T - 1 };

  find(".scale").style.background = `linear-gradient(to right, ${scale.filter((_, i) => i % 16 === 0).join(",")})`;

  // Tokens
  const worst = data.loss_nats ? Math.max(1e-9, ...data.loss_nats.map((loss) => loss ?? 0)) : 1;
  const chips = tokens.map((token, t) => {
    const chip = make("button");
    chip.type = "button";
    chip.append(make("span", token));
    const loss = data.loss_nats?.[t];
    if (data.loss_nats) chip.append(make("small", loss === null ? "–" : loss.toFixed(2)));
    chip.title = `token ${t + 1}, id ${data.ids[t]}`;
    chip.onclick = () => choose({ t });
    const item = make("li");
    item.append(chip);
    find(".tokens").append(item);
    return chip;
  });

  // All heads
  const grid = find(".heads");
  grid.style.gridTemplateColumns = `repeat(${H}, minmax(.75rem, ${Math.max(1.5, Math.min(7, 42 / H))}rem))`;
  const color = scale.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const heads = [];
  for (let layer = 0; layer < L; layer++) {
    for (let head = 0; head < H; head++) {
      const button = make("button");
      button.type = "button";
      button.title = `layer ${layer + 1}, head ${head + 1}`;
      button.setAttribute("aria-label", button.title);
      const canvas = Object.assign(make("canvas"), { width: T, height: T });
      const context = canvas.getContext("2d");
      const image = context.createImageData(T, T);
      for (let t = 0; t < T; t++) {
        for (let s = 0; s <= t; s++) image.data.set([...color[rootOf(layer, head, t, s)], 255], 4 * (t * T + s));
      }
      context.putImageData(image, 0, 0);
      button.append(canvas);
      button.onclick = () => choose({ layer, head });
      button.onkeydown = (event) => moveBy(event, layer, head);
      grid.append(button);
      heads.push(button);
    }
  }

  // The grid is one stop of the Tab key; the arrow keys move in it.
  function moveBy(event, layer, head) {
    const [down, right] = { ArrowDown: [1, 0], ArrowUp: [-1, 0], ArrowRight: [0, 1], ArrowLeft: [0, -1] }[event.key] ?? [0, 0];
    const next = { layer: layer + down, head: head + right };
    if (!(down || right) || !(next.layer in [...Array(L)]) || !(next.head in [...Array(H)])) return;
    event.preventDefault();
    choose(next);
    heads[next.layer * H + next.head].focus();
  }

  // One head
  const large = find(".large canvas");
  const place = { cell: 1, left: 0, top: 0 };
  function drawLarge() {
    const room = Math.max(220, large.parentElement.clientWidth);
    const named = (room - 90) / T >= 9; // narrower cells have no room for a word
    place.left = named ? 90 : 4;
    place.top = named ? 90 : 4;
    place.cell = Math.max(2, Math.min(30, Math.floor((room - place.left - 4) / T)));
    const width = place.left + place.cell * T + 4, height = place.top + place.cell * T + 4;
    const ratio = window.devicePixelRatio || 1;
    Object.assign(large, { width: width * ratio, height: height * ratio });
    Object.assign(large.style, { width: `${width}px` });
    const context = large.getContext("2d");
    context.scale(ratio, ratio);
    const ink = getComputedStyle(document.body).color;
    for (let t = 0; t < T; t++) {
      for (let s = 0; s <= t; s++) {
        context.fillStyle = scale[rootOf(chosen.layer, chosen.head, t, s)];
        context.fillRect(place.left + s * place.cell, place.top + t * place.cell, place.cell - (place.cell > 6), place.cell - (place.cell > 6));
      }
    }
    context.strokeStyle = ink;
    context.strokeRect(place.left - 0.5, place.top + chosen.t * place.cell - 0.5, (chosen.t + 1) * place.cell, place.cell);
    if (!named) return;
    context.fillStyle = ink;
    context.font = `${Math.min(12, place.cell)}px ui-monospace, "DejaVu Sans Mono", monospace`;
    context.textBaseline = "middle";
    const short = (token) => (token.length > 11 ? `${token.slice(0, 10)}…` : token);
    tokens.forEach((token, t) => {
      const middle = place.cell * (t + 0.5);
      context.textAlign = "right";
      context.fillText(short(token), place.left - 5, place.top + middle);
      context.save();
      context.translate(place.left + middle, place.top - 5);
      context.rotate(-Math.PI / 2);
      context.textAlign = "left";
      context.fillText(short(token), 0, 0);
      context.restore();
    });
  }
  const say = (t, s) => {
    find("output").textContent = `${tokens[t]} attends to ${tokens[s]}: ${percent(weightOf(chosen.layer, chosen.head, t, s))}`;
  };
  const cellAt = (event) => {
    const box = large.getBoundingClientRect();
    const zoom = parseFloat(large.style.width) / box.width;
    const s = Math.floor(((event.clientX - box.left) * zoom - place.left) / place.cell);
    const t = Math.floor(((event.clientY - box.top) * zoom - place.top) / place.cell);
    return s >= 0 && t < T && s <= t ? [t, s] : null;
  };
  large.onpointermove = (event) => {
    const cell = cellAt(event);
    if (cell) say(...cell);
  };
  large.onclick = (event) => {
    const cell = cellAt(event);
    if (cell) { choose({ t: cell[0] }); say(...cell); }
  };

  // The next token by layer, the last layer first
  function drawLens() {
    const box = find(".lens");
    if (!data.lens && !data.classes) return;
    const table = make("table");
    const row = (cells, tag) => {
      const line = make("tr");
      cells.forEach((cell) => line.append(make(tag, cell)));
      return line;
    };
    const nameOf = (layer) => (layer === 0 ? "embeddings" : layer === L ? `layer ${layer} (the model)` : `layer ${layer}`);
    const layers = [...Array(L + 1).keys()].reverse();
    if (data.lens) {
      box.replaceChildren(make("h3", `What comes after token ${chosen.t + 1}, ${tokens[chosen.t]}`));
      table.append(row(["if the model ended at", ...data.lens[0][0].map((_, i) => `${i + 1}.`)], "th"));
      for (const layer of layers) {
        table.append(row([nameOf(layer), ...data.lens[layer][chosen.t].map(([token, p]) => `${token} ${percent(p)}`)], "td"));
      }
    } else {
      box.replaceChildren(make("h3", "The class"));
      table.append(row(["if the model ended at", ...data.labels], "th"));
      for (const layer of layers) table.append(row([nameOf(layer), ...data.classes[layer].map(percent)], "td"));
    }
    const scroll = Object.assign(make("div"), { className: "scroll", tabIndex: 0 }); // the keyboard can scroll it
    scroll.setAttribute("role", "region");
    scroll.setAttribute("aria-label", "next token by layer");
    scroll.append(table);
    box.append(scroll);
  }

  function choose(change) {
    chosen = { ...chosen, ...change };
    const { layer, head, t } = chosen;
    heads.forEach((button, i) => {
      button.setAttribute("aria-pressed", i === layer * H + head);
      button.tabIndex = i === layer * H + head ? 0 : -1;
    });
    chips.forEach((chip, s) => {
      chip.setAttribute("aria-pressed", s === t);
      const loss = data.loss_nats?.[s];
      const seen = s <= t ? rootOf(layer, head, t, s) / 255 : 0;
      chip.style.background = `rgb(var(--warm) / ${(0.45 * seen).toFixed(3)})`;
      chip.style.borderBottom = loss ? `3px solid rgb(var(--warm) / ${(loss / worst).toFixed(3)})` : "";
    });
    find(".chosen").textContent = `Layer ${layer + 1}, head ${head + 1}`;
    let best = 0;
    for (let s = 1; s <= t; s++) if (rootOf(layer, head, t, s) > rootOf(layer, head, t, best)) best = s;
    say(t, best);
    drawLarge();
    drawLens();
  }

  choose({});
  window.addEventListener("resize", drawLarge);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawLarge);
})();
