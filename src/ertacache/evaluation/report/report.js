"use strict";
document.querySelectorAll("table.sortable").forEach((table) => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, index) => head.firstElementChild.addEventListener("click", () => {
    const number = head.dataset.sort === "number";
    const first = number ? "descending" : "ascending";
    const order = head.ariaSort === first ? (number ? "ascending" : "descending") : first;
    heads.forEach((other) => other.setAttribute("aria-sort", other === head ? order : "none"));
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => row.cells[index].dataset.value;
    const compare = number ? (a, b) => value(a) - value(b) : (a, b) => value(a).localeCompare(value(b));
    for (const body of table.tBodies) {
      const rows = [...body.rows].filter((row) => row.cells[index]?.dataset.value !== undefined);
      body.append(...rows.sort((a, b) => sign * compare(a, b)));
    }
  }));
});
document.querySelectorAll(".pick").forEach((pick) => {
  const select = pick.querySelector("select");
  const figures = pick.parentElement.querySelectorAll("[data-row]");
  const show = () => figures.forEach((figure) => { figure.hidden = figure.dataset.row !== select.value; });
  select.addEventListener("change", show);
  figures.forEach((figure) => { figure.querySelector("figcaption").hidden = true; });  // the menu says it
  pick.hidden = false;
  show();
});
const dialog = document.querySelector("dialog");
let current = null;
function enlarge(button) {
  current = button;
  const line = button.closest("tr");
  const own = button.querySelectorAll("img");
  const reference = line.querySelector(".zoom");
  const shown = button === reference ? own : [...reference.querySelectorAll("img"), ...own];
  dialog.querySelector("h2").textContent = own[0].alt;
  dialog.querySelector("#zoom-prompt").textContent = line.previousElementSibling.textContent;
  dialog.querySelector(".row").replaceChildren(...[...shown].map((image) => {
    const figure = document.createElement("figure");
    const text = document.createElement("figcaption");
    text.textContent = image.alt;
    figure.append(image.cloneNode(), text);
    return figure;
  }));
  if (!dialog.open) dialog.showModal();
}
document.querySelectorAll(".zoom").forEach((button) => button.addEventListener("click", () => enlarge(button)));
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const buttons = [...current.closest("tr").querySelectorAll(".zoom")];
  enlarge(buttons[(buttons.indexOf(current) + step + buttons.length) % buttons.length]);
  event.preventDefault();
});
dialog.addEventListener("close", () => current.focus());
const page = document.documentElement.classList;
const clips = document.querySelectorAll(".clips");
function showStill(still) {
  page.toggle("still", still);
  clips.forEach((part) => { part.firstElementChild.textContent = still ? "Play the clips" : "Show frames only"; });
}
clips.forEach((part) => {
  part.firstElementChild.addEventListener("click", () => showStill(!page.contains("still")));
  part.hidden = false;
});
showStill(matchMedia("(prefers-reduced-motion: reduce)").matches);
