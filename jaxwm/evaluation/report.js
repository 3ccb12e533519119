// One clock for the whole page: the slider moves every clip and the cursor of every chart.
(() => {
  "use strict";
  const clips = [...document.querySelectorAll(".clip")];
  const charts = [...document.querySelectorAll(".chart[data-values]")];
  const slider = document.querySelector(".player input");
  const button = document.querySelector(".player button");
  const label = document.querySelector(".player output");
  const context = slider ? Number(slider.dataset.context) : 0;
  const frames = slider ? Number(slider.max) + 1 : 0;
  const interval = slider ? 1000 / Number(slider.dataset.fps) : 100;
  let timer = null;

  const dots = new Map(charts.map((chart) => [chart, JSON.parse(chart.dataset.values)]));

  function point(chart, step) {
    const { first, values, x, y } = dots.get(chart);
    const index = step - first;
    const cursor = chart.querySelector(".cursor");
    const inside = index >= 0 && index < x.length;
    cursor.style.display = inside ? "" : "none";
    if (inside) {
      cursor.setAttribute("x1", x[index]);
      cursor.setAttribute("x2", x[index]);
    }
    values.forEach((row, series) => {
      const dot = chart.querySelectorAll("circle")[series];
      const known = inside && y[series][index] !== null;
      dot.style.display = known ? "" : "none";
      chart.querySelectorAll(".legend b")[series].textContent = known ? row[index] : "";
      if (known) {
        dot.setAttribute("cx", x[index]);
        dot.setAttribute("cy", y[series][index]);
      }
    });
  }

  function show(time) {
    if (slider) {
      slider.value = time;
      label.textContent = time < context ? `context ${time + 1}/${context}` : `imagined +${time - context + 1}`;
    }
    clips.forEach((clip) => {
      clip.style.setProperty("--t", time);
      clip.classList.toggle("dreaming", time >= context);
    });
    charts.filter((chart) => chart.dataset.clock).forEach((chart) => point(chart, time - context + 1));
  }

  function play(on) {
    clearInterval(timer);
    timer = on ? setInterval(() => show((Number(slider.value) + 1) % frames), interval) : null;
    button.textContent = on ? "❚❚" : "▶";
    button.setAttribute("aria-label", on ? "Pause" : "Play");
  }

  charts.forEach((chart) => {
    const svg = chart.querySelector("svg");
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
      const { first, x } = dots.get(chart);
      const nearest = x.reduce((best, value, i) => (Math.abs(value - at) < Math.abs(x[best] - at) ? i : best), 0);
      if (chart.dataset.clock && slider) {
        play(false);
        show(Math.min(frames - 1, context + nearest + first - 1));
      } else {
        point(chart, first + nearest);
      }
    });
  });

  if (slider) {
    slider.addEventListener("input", () => { play(false); show(Number(slider.value)); });
    button.addEventListener("click", () => play(timer === null));
    show(Math.min(frames - 1, Number(slider.value)));
    play(!matchMedia("(prefers-reduced-motion: reduce)").matches && !location.hash.includes("still"));
  }
})();
