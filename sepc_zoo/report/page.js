// A click on the head of a column sorts the table by it; a second one turns the order round.
for (const head of document.querySelectorAll(".sortable th")) {
  head.addEventListener("click", () => {
    const table = head.closest("table"), body = table.tBodies[0];
    const column = head.cellIndex, descending = head.ariaSort !== "descending";
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => column ? value(a) - value(b) : value(b).localeCompare(value(a));
    const rows = [...body.rows].sort((a, b) => descending ? compare(b, a) : compare(a, b));
    body.append(...rows);
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.ariaSort = descending ? "descending" : "ascending";
  });
}
