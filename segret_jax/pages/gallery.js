// The gallery: a slider between label and prediction, and the choice of what is shown.
(() => {
  const SHOWN = 4;
  for (const slider of document.querySelectorAll(".layers input")) {
    slider.addEventListener("input", () => {
      slider.parentElement.style.setProperty("--split", `${slider.value}%`);
    });
  }
  const gallery = document.getElementById("gallery");
  if (!gallery) return;
  const pictures = [...gallery.querySelectorAll(".picture")].map((element) => ({
    element, scores: JSON.parse(element.dataset.scores),
  }));
  const select = document.getElementById("gallery-class");
  const buttons = [...document.querySelectorAll("[data-order]")];
  const more = document.getElementById("gallery-more");
  const distance = { // from what is asked for, in the ranks of all images from 0 (best) to 1
    worst: (rank) => 1 - rank, median: (rank) => Math.abs(rank - 0.5), best: (rank) => rank,
  };
  let order = "worst", count = SHOWN;

  function show() {
    const found = pictures
      .filter((one) => one.scores[select.value])
      .map((one) => {
        const [iou, rank, number] = one.scores[select.value];
        return { ...one, iou, rank, number, key: distance[order](number > 1 ? (rank - 1) / (number - 1) : 0) };
      })
      .sort((a, b) => a.key - b.key);
    for (const one of pictures) one.element.hidden = true;
    for (const one of found.slice(0, count)) {
      const name = select.value === "all" ? "mIoU" : `IoU of ${select.selectedOptions[0].dataset.name}`;
      one.element.querySelector(".score").textContent =
        `${name} ${one.iou.toFixed(1)}%, rank ${one.rank} of ${one.number}`;
      one.element.hidden = false;
      gallery.append(one.element);
    }
    more.hidden = found.length <= count;
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.order === order);
  }

  select.addEventListener("change", () => { count = SHOWN; show(); });
  more.addEventListener("click", () => { count += SHOWN; show(); });
  for (const button of buttons) {
    button.addEventListener("click", () => { order = button.dataset.order; count = SHOWN; show(); });
  }
  show();
})();
