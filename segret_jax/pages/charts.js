// Draws each chart of the page in the colors of the stylesheet, again when they change.
(() => {
  const touch = matchMedia("(pointer: coarse)").matches; // a drag scrolls there, and must not zoom
  const narrow = () => innerWidth < 640;

  function themed(layout) {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = { gridcolor: color("--line"), zerolinecolor: color("--line"), linecolor: color("--line") };
    const result = {
      ...layout,
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: color("--soft"), size: 12, family: getComputedStyle(document.body).fontFamily },
      hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink"), size: 13 }, align: "left" },
      dragmode: touch ? false : "zoom",
    };
    for (const key of ["xaxis", "yaxis"]) result[key] = { ...axis, ...layout[key] };
    return result;
  }

  function colored(value) { // "var(--accent)" anywhere in a chart becomes that color
    if (Array.isArray(value)) return value.map(colored);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, colored(one)]));
    }
    const name = typeof value === "string" && /^var\((--[a-z]+)\)$/.exec(value);
    return name ? getComputedStyle(document.documentElement).getPropertyValue(name[1]).trim() : value;
  }

  function draw(element) {
    const figure = JSON.parse(document.getElementById(element.dataset.figure).textContent);
    const layout = { ...figure.layout, ...(narrow() ? figure.narrow : {}) };
    element.style.height = `${layout.height}px`; // a narrow chart may be higher
    return Plotly.react(element, colored(figure.data), themed(colored(layout)), {
      responsive: true, displayModeBar: false,
    });
  }

  const all = [...document.querySelectorAll(".chart")];
  const drawAll = () => Promise.all(all.map(draw));
  drawAll().then(() => document.documentElement.classList.add("drawn"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  for (const select of document.querySelectorAll("select[data-chart]")) { // shows one of several
    select.addEventListener("change", () => {
      const chart = document.getElementById(select.dataset.chart);
      chart.dataset.figure = select.value;
      draw(chart);
    });
  }
})();
