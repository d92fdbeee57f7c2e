// Every chart is drawn with the page's own colours, which the style sheet holds for light, dark and print.
(async function () {
  "use strict";
  const { config, charts } = JSON.parse(document.getElementById("specs").textContent);
  for (const place of document.querySelectorAll("[data-chart]")) {
    await window.vegaEmbed(place, charts[place.dataset.chart], { config, renderer: "svg", actions: false });
    // As wide as its column allows, but its letters never much larger than the text's.
    const drawing = place.querySelector("svg");
    drawing.style.maxWidth = `${Math.round(1.25 * drawing.viewBox.baseVal.width)}px`;
  }
  document.documentElement.dataset.drawn = "yes";
})();
// What is folded on the screen is printed open.
window.addEventListener("beforeprint", function () {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
