// The table of held-out answers. Texts only ever become text nodes.
"use strict";
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent).runs;
  if (!runs.length) return;
  const PAGE = 25;
  const part = (id) => document.getElementById(id);
  const [run, search, kind, filter, back, on, count] = ["run", "search", "kind", "filter", "back", "on", "count"].map(part);
  const [head, body] = [part("rows").tHead.rows[0], part("rows").tBodies[0]];
  const lowered = runs.map(() => null); // each run's texts in lower case, once they are searched
  let page = 0;
  let found = [];

  const element = (name, properties, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  };

  // Numbers of the prompts of a run that the controls leave, in their order.
  function matching(index) {
    const { texts, prompts, policies } = runs[index];
    const own = policies.filter((policy) => !policy.baseline);
    const [first, last] = [own[0].rows, own[own.length - 1].rows];
    const column = Number(kind.value);
    const right = (row) => Boolean(row) && row[column + 1] === 1;
    const wrong = (row) => Boolean(row) && row[column + 1] === 0;
    const tests = {
      all: () => true,
      right: (at) => right(last[at]),
      wrong: (at) => wrong(last[at]),
      gained: (at) => wrong(first[at]) && right(last[at]),
      lost: (at) => right(first[at]) && wrong(last[at]),
      changed: (at) => new Set(policies.filter((policy) => policy.rows[at]).map((policy) => policy.rows[at][column])).size > 1,
    };
    const word = search.value.trim().toLowerCase();
    let hit = null; // by number of a text: whether it holds the word
    if (word) {
      lowered[index] ??= texts.map((text) => text.toLowerCase());
      hit = lowered[index].map((text) => text.includes(word));
    }
    const kept = [];
    prompts.forEach(([, prompt, target], at) => {
      if (!tests[filter.value](at)) return;
      if (hit && !hit[prompt] && !hit[target] && !policies.some((policy) => policy.rows[at] && hit[policy.rows[at][column]])) return;
      kept.push(at);
    });
    return kept;
  }

  function cell(label, ...children) {
    const made = element("td", {}, ...children);
    made.setAttribute("role", "cell");
    made.dataset.label = label;
    return made;
  }

  const text = (value) => element("div", { className: "text", textContent: value });

  function show() {
    const { texts, prompts, policies } = runs[Number(run.value)];
    const column = Number(kind.value);
    body.replaceChildren(
      ...found.slice(page * PAGE, (page + 1) * PAGE).map((at) => {
        const [id, prompt, target] = prompts[at];
        const answers = policies.map(({ label, rows }) => {
          const row = rows[at];
          if (!row) return cell(label, "–");
          const right = row[column + 1] === 1;
          return cell(label, element("span", { className: right ? "right" : "wrong", textContent: right ? "✓ right" : "✗ wrong" }), text(texts[row[column]]));
        });
        const made = element("tr", {}, cell("prompt number", String(id)), cell("prompt", text(texts[prompt])), cell("target", text(texts[target])), ...answers);
        made.setAttribute("role", "row");
        return made;
      })
    );
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    count.textContent = `${found.length.toLocaleString("en")} of ${prompts.length.toLocaleString("en")} prompts, page ${page + 1} of ${pages}`;
    back.disabled = page === 0;
    on.disabled = page + 1 >= pages;
  }

  function change() {
    found = matching(Number(run.value));
    page = 0;
    show();
  }

  function choose() {
    head.replaceChildren(
      ...["#", "prompt", "target", ...runs[Number(run.value)].policies.map((policy) => policy.label)].map((label) => {
        const made = element("th", { scope: "col", textContent: label });
        made.setAttribute("role", "columnheader");
        return made;
      })
    );
    change();
  }

  function turn(by) {
    page += by;
    show();
  }

  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(change, 150);
  });
  part("controls").addEventListener("submit", (event) => event.preventDefault());
  [kind, filter].forEach((control) => control.addEventListener("change", change));
  run.addEventListener("change", choose);
  back.addEventListener("click", () => turn(-1));
  on.addEventListener("click", () => turn(1));
  run.append(...runs.map(({ name }, index) => element("option", { value: String(index), textContent: name })));
  choose();
})();
