// Tables: a reader sorts them by a button in every head, the best first, undefined values last; a cut edge shows.

class SortableTable {
  constructor(table) {
    this.body = table.tBodies[0];
    this.table = table;
    this.spoken = table.parentElement.parentElement.querySelector(".sorted-by");
    for (const [place, head] of [...table.tHead.rows[0].cells].entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sorter";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => this.sort(head, place));
    }
  }

  sort(head, place) {
    const { better = "lower", name } = head.dataset;
    const bestFirst = better === "higher" ? "descending" : "ascending";
    const opposite = { ascending: "descending", descending: "ascending" };
    const order = head.ariaSort === bestFirst ? opposite[bestFirst] : bestFirst;
    for (const other of this.table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.ariaSort = order;
    const sign = order === "ascending" ? 1 : -1;
    const key = (row) => {
      const cell = row.cells[place];
      if (better === "text") return cell.textContent.trim();
      const value = Number.parseFloat((cell.dataset.value ?? cell.textContent).replace(/[−<]\s*/, (c) => (c[0] === "−" ? "-" : "")));
      return better === "zero" ? Math.abs(value) : value;
    };
    const compare = (a, b) => {
      if (typeof a === "string") return sign * a.localeCompare(b, "en", { numeric: true });
      if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
      return sign * (a - b);
    };
    const rows = [...this.body.rows].map((row) => [key(row), row]).sort(([a], [b]) => compare(a, b));
    this.body.append(...rows.map(([, row]) => row));
    this.table.classList.add("sorted");
    const way = better === "text" ? order : order === bestFirst ? "best first" : "best last";
    this.spoken.textContent = `Sorted by ${name}, ${way}`;
  }
}

/** Fade the edge behind which a wide table goes on. */
function watchEdge(board) {
  const scroll = board.querySelector(".scroll");
  const look = () => board.classList.toggle("more", scroll.scrollLeft + scroll.clientWidth < scroll.scrollWidth - 1);
  scroll.addEventListener("scroll", look, { passive: true });
  new ResizeObserver(look).observe(scroll);
}

for (const table of document.querySelectorAll("table.sortable")) new SortableTable(table);
for (const board of document.querySelectorAll(".board")) watchEdge(board);
