"use strict";
// Sorts a table by the column whose heading is clicked, in ascending order first; empty cells stay last.
for (const button of document.querySelectorAll(".sortable th button")) {
  button.addEventListener("click", () => sortBy(button.closest("th")));
}

function sortBy(heading) {
  const body = heading.closest("table").tBodies[0];
  const way = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const numeric = heading.classList.contains("number");
  const value = (row) => {
    const cell = row.cells[heading.cellIndex];
    return cell.dataset.value ?? cell.textContent.trim();
  };
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    return way * (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true }));
  };
  body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b))));
  for (const other of heading.parentElement.cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
}
