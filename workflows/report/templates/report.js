// Sorts, filters and searches tables. What is chosen stands in the address, so that a link shows the same to others.
(() => {
  "use strict";
  const all = (query, root = document) => [...root.querySelectorAll(query)];
  const make = (tag, fields = {}, ...inside) => {
    const element = Object.assign(document.createElement(tag), fields);
    element.append(...inside);
    return element;
  };
  const text = cell => (cell && cell.firstChild ? cell.firstChild.textContent.trim() : "");
  const number = words => {
    const fraction = words.match(/^([\d.]+)\/([\d.]+)$/);
    if (fraction) return fraction[1] / fraction[2];
    const found = words.replace(/,/g, "").match(/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?/i);
    return found ? Number(found[0]) : NaN;
  };
  const tables = {};

  // The address: #leaderboard.sort=-3&leaderboard.q=diff&at=finding-2, or a plain #finding-2.
  const read = () => {
    const hash = decodeURIComponent(location.hash.slice(1));
    return hash.includes("=") ? new URLSearchParams(location.hash.slice(1)) : new URLSearchParams(hash ? {at: hash} : {});
  };
  const write = at => {
    const state = new URLSearchParams();
    for (const [name, table] of Object.entries(tables)) {
      for (const [key, value] of Object.entries(table.state)) if (value) state.set(`${name}.${key}`, value);
    }
    const plain = !state.size;
    if (at) state.set("at", at);
    const hash = plain ? (at ? `#${at}` : "") : `#${state}`;
    if (hash !== location.hash) history.replaceState(null, "", hash || location.href.split("#")[0]);
  };
  const show = at => {
    const target = at && document.getElementById(at);
    all(".target").forEach(element => element.classList.remove("target"));
    if (!target) return;
    for (let up = target; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
    target.classList.add("target");
    target.scrollIntoView({block: target.tagName === "SECTION" ? "start" : "center"});
    if (!target.hasAttribute("tabindex")) target.tabIndex = -1;
    target.focus({preventScroll: true});
  };

  const prepare = section => {
    const grid = section.querySelector("table");
    const body = grid && grid.tBodies[0];
    if (!body || body.rows.length < 2) return;
    const name = section.id, heads = [...grid.tHead.rows[0].cells];
    const rows = [...body.rows].map(row => ({row, cells: [...row.cells].map(text), words: row.textContent.toLowerCase()}));
    const table = tables[name] = {state: {}};
    const title = section.querySelector("h2, h3").textContent;
    const count = make("span", {className: "count", role: "status"});
    const search = make("input", {type: "search", placeholder: "search"});
    search.setAttribute("aria-label", `search in ${title}`);
    const bar = make("div", {className: "controls"}, search);
    const selects = {};
    heads.forEach((head, place) => {
      const words = head.textContent;
      if (head.classList.contains("see")) return;
      const button = make("button", {type: "button", className: "sort", title: head.title}, words);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const [now, falling] = [table.state.sort, `-${place}`];
        // Numbers from the largest on first, names from A on.
        const first = head.classList.contains("t") ? `${place}` : falling;
        const second = first === falling ? `${place}` : falling;
        table.state.sort = now === first ? second : now === second ? "" : first;
        apply(); write();
      });
      if (!head.classList.contains("t") && words !== "eps") return;
      const values = [...new Set(rows.map(entry => entry.cells[place]))];
      if (values.some(value => value.length > 90)) return;
      if (values.length < 2 || values.length > 60 || values.length === rows.length && rows.length > 12) return;
      const select = make("select", {}, make("option", {value: ""}, `${words}: all`), ...values.map(value => make("option", {value}, value)));
      select.setAttribute("aria-label", `${words} in ${title}`);
      select.addEventListener("change", () => { table.state[`f${place}`] = select.value; apply(); write(); });
      selects[`f${place}`] = select;
      bar.append(select);
    });
    search.addEventListener("input", () => { table.state.q = search.value; apply(); write(); });
    const reset = make("button", {type: "button"}, "all lines");
    reset.addEventListener("click", () => { table.state = {}; fill(); apply(); write(); search.focus(); });
    bar.append(reset, count);
    grid.closest(".scroll").before(bar);
    const fill = () => {
      search.value = table.state.q || "";
      for (const [key, select] of Object.entries(selects)) select.value = table.state[key] || "";
    };
    const apply = () => {
      const {sort, q} = table.state;
      const words = (q || "").toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      for (const entry of rows) {
        const kept = words.every(word => entry.words.includes(word)) &&
          Object.keys(selects).every(key => !table.state[key] || entry.cells[key.slice(1)] === table.state[key]);
        entry.row.hidden = !kept;
        shown += kept;
      }
      count.textContent = shown === rows.length ? `${shown} lines` : `${shown} of ${rows.length} lines`;
      reset.hidden = shown === rows.length && !sort;
      heads.forEach((head, place) => {
        const order = sort === `${place}` ? "ascending" : sort === `-${place}` ? "descending" : "";
        if (order) head.setAttribute("aria-sort", order); else head.removeAttribute("aria-sort");
      });
      const ordered = [...rows];
      if (sort) {
        const place = Math.abs(sort), sign = sort.startsWith("-") ? -1 : 1, names = heads[place].classList.contains("t");
        const rank = entry => {
          const value = number(entry.cells[place]);
          return Number.isNaN(value) ? null : value;
        };
        ordered.sort((a, b) => {
          if (names) return sign * a.cells[place].localeCompare(b.cells[place], undefined, {numeric: true});
          const [x, y] = [rank(a), rank(b)];
          return x === null || y === null ? (x === null) - (y === null) : sign * (x - y);
        });
      }
      body.append(...ordered.map(entry => entry.row));
    };
    Object.assign(table, {fill, apply});
    apply();
  };

  const restore = () => {
    const asked = read();
    for (const [name, table] of Object.entries(tables)) {
      table.state = {};
      for (const [key, value] of asked) if (key.startsWith(`${name}.`)) table.state[key.slice(name.length + 1)] = value;
      table.fill(); table.apply();
    }
    show(asked.get("at"));
  };

  all("section[data-sorts]").forEach(prepare);
  all("[data-kinds]").forEach(group => {
    const kinds = [...new Set(all(".kind", group).map(kind => kind.textContent))];
    if (kinds.length < 2) return;
    const select = make("select", {}, make("option", {value: ""}, "all images"), ...kinds.map(kind => make("option", {value: kind}, kind)));
    select.setAttribute("aria-label", `which images of ${group.dataset.kinds}`);
    select.addEventListener("change", () => all("tbody tr", group).forEach(row => {
      row.hidden = Boolean(select.value) && !all(".kind", row).some(kind => kind.textContent === select.value);
    }));
    group.querySelector(".scroll").before(make("div", {className: "controls"}, select));
  });
  document.addEventListener("click", event => {
    const link = event.target.closest("a[href^='#']");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const at = link.getAttribute("href").slice(1);
    write(at); show(at);
  });
  window.addEventListener("hashchange", restore);
  restore();
})();
