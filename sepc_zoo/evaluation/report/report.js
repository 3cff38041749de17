// A click on the head of a column sorts the table by it; a second click reverses the order.
for (const head of document.querySelectorAll(".sortable th")) {
  head.addEventListener("click", () => {
    const body = head.closest("table").tBodies[0], column = head.cellIndex;
    const ascending = column ? head.ariaSort === "descending" : head.ariaSort !== "ascending";
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => column ? value(a) - value(b) : value(a).localeCompare(value(b));
    body.append(...[...body.rows].sort((a, b) => ascending ? compare(a, b) : compare(b, a)));
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.ariaSort = ascending ? "ascending" : "descending";
  });
}
