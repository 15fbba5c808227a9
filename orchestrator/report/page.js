"use strict";
{
  const faint = "rgba(128,128,128,0.25)";
  const axis = { gridcolor: faint, zerolinecolor: faint, linecolor: faint, automargin: true };
  const wide = matchMedia("(min-width: 700px)").matches;
  const touched = matchMedia("(pointer: coarse)").matches;

  function draw({ id, data, layout }) {
    const axes = {};
    for (const name of ["xaxis", "yaxis"]) axes[name] = { ...axis, ...layout[name] };
    const around = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: "#808890" },
      margin: { l: 50, r: 16, t: 16, b: layout.xaxis.title ? 44 : 28 },
      hovermode: "closest",
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      dragmode: touched ? false : "zoom",
    };
    const place = document.getElementById(id);
    const height = layout.height || (place.closest(".of-3") ? 280 : wide ? 440 : 360);
    place.style.height = height + "px";
    const options = { responsive: true, displayModeBar: false };
    return Plotly.newPlot(place, data, { ...around, ...layout, ...axes, height }, options);
  }

  function value(row, column) {
    const cell = row.cells[column];
    return cell.dataset.v ?? cell.textContent;
  }

  function compare(a, b) {
    const x = Number(a.replaceAll(",", "")), y = Number(b.replaceAll(",", ""));
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  }

  function sortBy(head) {
    const body = head.closest("table").tBodies[0];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const column = head.cellIndex;
    const rows = [...body.rows].sort((a, b) => {
      const x = value(a, column), y = value(b, column);
      if (x === "" || y === "") return (x === "") - (y === ""); // empty cells stay at the end
      return down ? compare(y, x) : compare(x, y);
    });
    body.append(...rows);
  }

  for (const head of document.querySelectorAll("#trials th")) {
    head.querySelector("button").addEventListener("click", () => sortBy(head));
  }

  const figures = JSON.parse(document.getElementById("figures").textContent);
  (async () => {
    for (const figure of figures) {
      await draw(figure);
      await new Promise((next) => setTimeout(next)); // the page stays alive meanwhile
    }
    document.body.dataset.drawn = figures.length;
  })();

  // Paper has a width of its own.
  const plots = () => document.querySelectorAll(".js-plotly-plot");
  addEventListener("beforeprint", () => {
    for (const plot of plots()) Plotly.relayout(plot, { width: plot.closest(".grid") ? 330 : 690 });
  });
  addEventListener("afterprint", () => {
    for (const plot of plots()) Plotly.relayout(plot, { width: null, autosize: true });
  });
}
