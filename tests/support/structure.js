// What of the page in sight a screen reader or a keyboard could not follow: the body of a function.
const wrong = [];
const all = (css) => [...document.querySelectorAll(css)];
if (document.documentElement.lang !== "en") wrong.push("no language");
if (all("main").length !== 1 || all("h1").length !== 1) wrong.push("not one main and h1");
let last = 0;
for (const heading of all("h1, h2, h3, h4, h5, h6")) {
    const level = Number(heading.tagName[1]);
    if (level > last + 1) wrong.push(`${heading.textContent}: level ${level} below ${last}`);
    last = level;
}
for (const table of all("table")) {
    if (!table.caption?.textContent) wrong.push("a table without a caption");
}
for (const th of all("th")) if (!th.scope) wrong.push(`${th.textContent}: no scope`);
for (const scroll of all(".wide, .log")) {
    if (scroll.tabIndex !== 0) wrong.push("what scrolls can't be reached");
}
const ids = all("[id]").map((element) => element.id);
if (new Set(ids).size !== ids.length) wrong.push("an id twice");
for (const by of all("[aria-labelledby]")) {
    if (!ids.includes(by.getAttribute("aria-labelledby"))) wrong.push("labelled by nothing");
}
for (const input of all("input")) if (!input.labels.length) wrong.push("an input without a label");
return wrong;
