"use strict";
// Unfolds all paths at once, and on paper. Without it each can be unfolded.
{
  const all = [...document.querySelectorAll("details")];
  const unfold = (open) => all.forEach((details) => { details.open = open; });
  const first = document.querySelector("main section h2");
  if (all.length > 1 && first) {
    const button = document.createElement("button");
    button.type = "button";
    button.id = "unfold";
    const label = () => {
      button.textContent = all.every((details) => details.open) ? "Fold all paths" : "Unfold all paths";
    };
    button.addEventListener("click", () => unfold(!all.every((details) => details.open)));
    all.forEach((details) => details.addEventListener("toggle", label));
    label();
    first.closest("section").before(button);
  }
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = all.filter((details) => !details.open);
    unfold(true);
  });
  addEventListener("afterprint", () => folded.forEach((details) => { details.open = false; }));
}
