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
document.querySelectorAll("[data-method] > span:last-child").forEach((name) => {
  const item = name.parentElement;
  const button = document.createElement("button");
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  button.title = "Single out in the plots";
  button.append(...item.childNodes);
  item.append(button);
  button.addEventListener("click", () => {
    const picked = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", picked);
    document.querySelectorAll(`g[data-method="${item.dataset.method}"]`).forEach((mark) => mark.classList.toggle("picked", picked));
    item.closest("section").classList.toggle("picking", Boolean(item.parentElement.querySelector("[aria-pressed=true]")));
  });
});
