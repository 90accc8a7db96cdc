// Formulas: arithmatex leaves TeX between \( \) and \[ \], and KaTeX typesets it. One that is wider than the page is scaled down.
// Tables that scroll can be reached by the keyboard.
function fit(formula) {
  formula.style.fontSize = "";
  const room = formula.closest(".arithmatex").clientWidth, width = formula.scrollWidth;
  if (width > room && room > 0) formula.style.fontSize = `${(0.98 * room) / width}em`;
}

function fitAll() {
  document.querySelectorAll(".katex-display").forEach(fit);
}

document.addEventListener("DOMContentLoaded", () => {
  renderMathInElement(document.body, {
    delimiters: [
      { left: "\\(", right: "\\)", display: false },
      { left: "\\[", right: "\\]", display: true },
    ],
    throwOnError: true,
  });
  document.fonts.addEventListener("loadingdone", fitAll); // the fonts of formulas load when the first is drawn
  document.fonts.ready.then(fitAll);
  window.addEventListener("resize", fitAll);
});

// A slider over the steps of a training: the loss, and what the model wrote then.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".training-steps").forEach((widget) => {
    const steps = JSON.parse(widget.dataset.steps), slider = widget.querySelector("input");
    const show = () => {
      const [step, loss, text] = steps[slider.value];
      slider.setAttribute("aria-valuetext", `step ${step}`);
      widget.querySelector("output").textContent = `${step}: validation loss ${loss.toFixed(2)} nats per token`;
      widget.querySelector("p").textContent = text;
    };
    slider.addEventListener("input", show);
    show();
  });
});

window.addEventListener("load", () => {
  document.querySelectorAll(".md-typeset__scrollwrap").forEach((table) => {
    table.tabIndex = 0;
    table.setAttribute("role", "region");
    table.setAttribute("aria-label", "Table");
  });
});
