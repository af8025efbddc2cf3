// What is pointed at or focused lights its regions, and everything else that names them. Keys press the links that show them.
"use strict";

const numbers = (element) => element.dataset.regions.split(" ").filter(Boolean);

function light(target) {
  for (const lit of document.querySelectorAll(".lit, .has-lit")) lit.classList.remove("lit", "has-lit");
  const holder = target && target.closest && target.closest("[data-regions]");
  const record = holder && holder.closest(".record");
  if (!record) return;
  const wanted = new Set(numbers(holder));
  record.classList.toggle("has-lit", wanted.size > 0);
  for (const other of record.querySelectorAll("[data-regions]")) {
    if (numbers(other).some((number) => wanted.has(number))) other.classList.add("lit");
  }
}

function press(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input:not([type=checkbox]), .scroll")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const field = document.querySelector(`[data-focus="${CSS.escape(event.key)}"]`);
  const link = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key.split(" ").includes(event.key));
  if (!field && !link) return;
  event.preventDefault();
  if (field) field.focus();
  else link.click();
}

function toggle(event) {
  const layer = event.target.dataset.toggle;
  if (layer) event.target.closest(".record").classList.toggle(`no-${layer}`, !event.target.checked);
}

// A page that is counted piece by piece asks for the next piece, and puts it in its place.
async function goOn() {
  const link = document.querySelector("[data-go-on]");
  if (!link) return;
  const answer = await fetch(link.href);
  if (!answer.ok) return;
  const next = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("main");
  document.querySelector("main").replaceWith(next);
  setTimeout(goOn, 100);
}

document.addEventListener("pointerover", (event) => light(event.target));
document.addEventListener("focusin", (event) => light(event.target));
document.addEventListener("keydown", press);
document.addEventListener("change", toggle);
setTimeout(goOn, 300);
