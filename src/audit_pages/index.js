"use strict";
// Chooses and sorts rows of the table. Without it the page shows all of them.
{
  const table = document.getElementById("derivations");
  const rows = [...table.tBodies[0].rows];
  const form = document.getElementById("filter");

  const choose = () => {
    const status = form.elements.status.value;
    const name = form.elements.name.value.trim().toLowerCase();
    for (const row of rows) {
      row.hidden = (status && row.dataset.status !== status) || !row.dataset.name.includes(name);
    }
    const shown = rows.filter((row) => !row.hidden).length;
    document.getElementById("shown").textContent = `${shown} of ${rows.length} shown`;
  };

  const key = (row, column) => {
    const cell = row.querySelector(`[data-column="${column}"]`);
    return cell.dataset.key ?? cell.textContent.trim();
  };
  const sort = (heading) => {
    const descending = heading.getAttribute("aria-sort") === "ascending";
    for (const other of table.querySelectorAll("[aria-sort]")) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const column = heading.dataset.column;
    // Sorting is stable: what is equal stays as it was.
    rows.sort((one, other) => {
      const order = key(one, column).localeCompare(key(other, column), "en", { numeric: true });
      return descending ? -order : order;
    });
    table.tBodies[0].append(...rows);
  };

  for (const heading of table.querySelectorAll("th[scope=col][data-column]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    button.addEventListener("click", () => sort(heading));
    heading.append(button);
  }
  form.addEventListener("input", choose);
  form.addEventListener("submit", (event) => event.preventDefault());
  // Who comes back finds what was chosen, and the rows that go with it.
  addEventListener("pageshow", choose);
  form.hidden = false;
}
