"use strict";
// Sorts tables by a click on a heading and, where the page says so, asks for itself again. Without it, all is readable.
const orders = new Map(); // by the title of a table: the column, and whether it is descending

function sort(table) {
  const order = orders.get(table.caption.textContent);
  if (!order) return;
  const value = (row) => {
    const cell = row.cells[order.column];
    return cell.dataset.key ?? cell.textContent;
  };
  const numeric = table.tHead.rows[0].cells[order.column].className === "number";
  const compare = numeric
    ? (a, b) => (parseFloat(value(a)) || 0) - (parseFloat(value(b)) || 0)
    : (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
  const rows = [...table.tBodies[0].rows].sort(compare);
  table.tBodies[0].append(...(order.descending ? rows.reverse() : rows));
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (column !== order.column) head.removeAttribute("aria-sort");
    else head.setAttribute("aria-sort", order.descending ? "descending" : "ascending");
  });
}

function enhance(root) {
  for (const table of root.querySelectorAll("table")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = head.textContent;
      button.addEventListener("click", () => {
        const before = orders.get(table.caption.textContent);
        const descending = before?.column === column && !before.descending;
        orders.set(table.caption.textContent, { column, descending });
        sort(table);
      });
      head.replaceChildren(button);
    });
    sort(table);
  }
}

const refresh = 1000 * Number(document.body.dataset.refresh || 0);
const shown = new Map([...document.querySelectorAll("main > section")].map((part) => [part.id, part.outerHTML]));
enhance(document);

function update(next) {
  document.getElementById("read").textContent = next.getElementById("read").textContent;
  const before = document.querySelector("[aria-current]")?.textContent;
  for (const part of next.querySelectorAll("main > section")) {
    const old = document.getElementById(part.id);
    // Who reads a part with the keyboard keeps it until the focus has left it.
    if (shown.get(part.id) === part.outerHTML || old.contains(document.activeElement)) continue;
    shown.set(part.id, part.outerHTML);
    const scrolled = [...old.querySelectorAll(".table")].map((each) => each.scrollLeft);
    old.replaceWith(part);
    enhance(part);
    part.querySelectorAll(".table").forEach((each, at) => (each.scrollLeft = scrolled[at] ?? 0));
  }
  const now = document.querySelector("[aria-current]")?.textContent;
  return before === now ? "" : `The phase is ${now} now.`;
}

if (refresh) {
  const [button, news] = [document.getElementById("pause"), document.getElementById("news")];
  const tell = (text) => news.textContent !== text && (news.textContent = text);
  button.hidden = false;
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", String(button.getAttribute("aria-pressed") !== "true"));
  });
  setInterval(async () => {
    if (document.hidden || button.getAttribute("aria-pressed") === "true") return;
    try {
      const answer = await fetch(location.pathname, { cache: "no-store" });
      const next = new DOMParser().parseFromString(await answer.text(), "text/html");
      tell(answer.ok ? update(next) : next.querySelector("main p").textContent);
    } catch {
      tell("The dashboard does not answer; what is shown is old.");
    }
  }, refresh);
}
