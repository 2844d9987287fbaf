const dialog = document.querySelector("dialog");
const slider = dialog.querySelector("input");
let current = null;
function figureOf(image) {
  const figure = document.createElement("figure");
  const text = document.createElement("figcaption");
  text.textContent = image.alt;
  figure.append(image.cloneNode(), text);
  return figure;
}
function slide() {
  dialog.querySelector(".layers").style.setProperty("--at", `${slider.value}%`);
}
function enlarge(button) {
  current = button;
  const line = button.closest("tr");
  const reference = line.querySelector("[data-reference]");
  const beside = reference && reference !== button;
  const shown = (from, kind) => [...from.querySelectorAll(kind)];
  const layers = beside ? [...shown(reference, ".shown"), ...shown(button, ".shown")] : shown(button, ".shown");
  const loops = [...(beside ? shown(reference, ".loop") : []), ...shown(button, ".loop")];
  dialog.querySelector("h2").textContent = [...button.querySelectorAll("span")].map((part) => part.textContent).join(" · ");
  dialog.querySelector("#zoom-prompt").textContent = line.previousElementSibling.textContent;
  dialog.querySelector(".layers").replaceChildren(...layers.map((image) => image.cloneNode()));
  dialog.querySelector(".apart").replaceChildren(...[...shown(button, ".difference"), ...loops].map(figureOf));
  dialog.querySelector(".slide").hidden = !beside;
  dialog.querySelector(".stage").classList.toggle("wide", loops.length > 0);
  slide();
  if (!dialog.open) dialog.showModal();
}
function step(by) {
  const buttons = [...current.closest("tr").querySelectorAll(".zoom")];
  enlarge(buttons[(buttons.indexOf(current) + by + buttons.length) % buttons.length]);
}
function flip() {
  slider.value = slider.value < 100 ? 100 : 0;
  slide();
}
document.querySelectorAll(".zoom").forEach((button) => button.addEventListener("click", () => enlarge(button)));
dialog.querySelectorAll("[data-step]").forEach((button) => button.addEventListener("click", () => step(Number(button.dataset.step))));
dialog.querySelector(".flip").addEventListener("click", flip);
slider.addEventListener("input", slide);
dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
dialog.addEventListener("keydown", (event) => {
  if (event.key === "f") flip();
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by || event.target === slider) return;
  step(by);
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
