// What the console does besides htmx: keeps what a person is doing through a refresh, and stands still in the background.
"use strict";

Idiomorph.defaults.ignoreActiveValue = true;
Idiomorph.defaults.callbacks.beforeNodeMorphed = (old, fresh) => {
  if (!(old instanceof Element) || !(fresh instanceof Element)) return true;
  if (old.matches("input[type=checkbox]")) fresh.checked = old.checked;
  if (old.matches("details")) fresh.open = old.open;
  if (old.matches(".plot")) {
    if (old.dataset.series !== fresh.dataset.series) { old.dataset.series = fresh.dataset.series; draw(old); }
    return false;
  }
  return true;
};

const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function draw(place) {
  const series = JSON.parse(place.dataset.series);
  place.replaceChildren();
  const time = (moments) => moments.map((at) => new Date(at * 1000).toISOString().slice(11, 16));
  const axis = { stroke: ink("--soft"), grid: { stroke: ink("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui" };
  new uPlot({
    width: place.clientWidth, height: 120, legend: { show: false }, cursor: { y: false },
    padding: [10, 20, 0, 0],
    axes: [{ ...axis, size: 26, values: (_, moments) => time(moments) }, { ...axis, size: 56 }],
    series: [{}, { points: { show: false }, stroke: ink("--blue"), fill: ink("--wash"), width: 1.5 }],
  }, series, place);
}

const drawAll = () => document.querySelectorAll(".plot").forEach(draw);
document.addEventListener("DOMContentLoaded", drawAll);
addEventListener("resize", drawAll);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

// A page that nobody looks at asks nothing, and a refresh does not overtake an action.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.target.id === "live" && document.hidden) event.preventDefault();
});

const clock = () => {
  const place = document.getElementById("clock");
  if (place) place.textContent = `live, 2 s | UTC ${new Date().toISOString().slice(11, 19)}`;
};
setInterval(clock, 1000);
document.addEventListener("DOMContentLoaded", clock);

document.addEventListener("change", (event) => {
  if (event.target.id !== "choose-all") return;
  document.querySelectorAll('input[name="id"]').forEach((box) => { box.checked = event.target.checked; });
});

// A server that does not answer is said; the next answer takes it away.
const say = (text) => { document.getElementById("message").textContent = text; };
let away = false;
document.addEventListener("htmx:sendError", () => { away = true; say("The server does not answer; what is shown is old."); });
document.addEventListener("htmx:afterOnLoad", () => { if (away) { away = false; say(""); } });
