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
