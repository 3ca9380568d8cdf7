"use strict";
// Sorting: a click on the head of a column; each line is a tbody, so that its details stay with it.
const order = (body, column) => {
  const cell = body.rows[0].cells[column], given = cell.dataset.o ?? cell.textContent;
  return [given, given === "-inf" ? -Infinity : given === "" ? NaN : Number(given)];
};
const compare = (a, b) => Number.isNaN(a[1]) || Number.isNaN(b[1])
  ? String(a[0]).localeCompare(String(b[0]), "en", { numeric: true }) : a[1] - b[1] || 0;
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.classList.contains("more")) {
    const details = button.closest("tbody").querySelector(".details");
    details.hidden = !details.hidden;
    button.setAttribute("aria-expanded", String(!details.hidden));
    return;
  }
  const head = button.closest("th"), table = head.closest("table"), column = head.cellIndex;
  const down = head.getAttribute("aria-sort") === "ascending";
  for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const keyed = [...table.tBodies].map((body) => [order(body, column), body]);
  keyed.sort((a, b) => (down ? -1 : 1) * compare(a[0], b[0]));
  table.append(...keyed.map((pair) => pair[1]));
});
// On paper everything is open, as far as it was not closed for its size.
let closed = [];
addEventListener("beforeprint", () => {
  closed = [...document.querySelectorAll("details:not([open])")];
  for (const fold of closed) fold.open = true;
});
addEventListener("afterprint", () => { for (const fold of closed) fold.open = false; });
