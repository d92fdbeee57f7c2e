// Draw every chart with the page's CSS colours, which differ between light, dark and print.
(async function () {
  "use strict";
  const { config, charts } = JSON.parse(document.getElementById("specs").textContent);
  for (const place of document.querySelectorAll("[data-chart]")) {
    await window.vegaEmbed(place, charts[place.dataset.chart], { config, renderer: "svg", actions: false });
    // Limit the width, so that the chart's text is not much larger than the page's.
    const drawing = place.querySelector("svg");
    drawing.style.maxWidth = `${Math.round(1.25 * drawing.viewBox.baseVal.width)}px`;
  }
  document.documentElement.dataset.drawn = "yes";
})();
// Expand collapsed tables for printing.
window.addEventListener("beforeprint", function () {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
