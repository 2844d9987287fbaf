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
const clipButton = document.querySelector(".clips button");
if (clipButton) {
  const groups = new Map();  // row of clips -> whether it is in sight
  const clipsOf = (row) => [...row.querySelectorAll("video")];
  let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
  const restart = (row) => clipsOf(row).forEach((clip) => { clip.currentTime = 0; clip.play().catch(() => {}); });
  const refresh = () => {
    clipButton.textContent = playing ? "Pause clips" : "Play clips";
    groups.forEach((seen, row) => playing && seen ? restart(row) : clipsOf(row).forEach((clip) => clip.pause()));
  };
  const follow = (row) => {
    clipsOf(row).forEach((clip) => { clip.loop = false; clip.muted = true; });
    // All of a row start together, and again when the first has ended.
    clipsOf(row)[0].addEventListener("ended", () => { if (playing && groups.get(row)) restart(row); });
  };
  const observer = new IntersectionObserver((entries) => {
    entries.forEach((entry) => groups.set(entry.target, entry.isIntersecting));
    refresh();
  });
  document.querySelectorAll(".sheet tr:has(video)").forEach((row) => { follow(row); groups.set(row, false); observer.observe(row); });
  clipButton.addEventListener("click", () => { playing = !playing; refresh(); });
  clipButton.parentElement.hidden = false;
  const shown = dialog.querySelector(".row");
  new MutationObserver(() => {
    if (!shown.querySelector("video")) return;
    follow(shown);
    groups.set(shown, true);
    if (playing) restart(shown);
  }).observe(shown, { childList: true });
  dialog.addEventListener("close", () => { clipsOf(shown).forEach((clip) => clip.pause()); groups.delete(shown); });
  refresh();
}
