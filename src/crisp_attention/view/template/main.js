// The controls, the address (#layer=1&head=2&method=0) and the panels that follow them.

const controls = Object.fromEntries(["method", "layer", "head"].map((name) => [name, document.getElementById(name)]));
const said = document.getElementById("said");
let panels = [];
let place = { query: null, key: null };

function options(select, named) {
  select.replaceChildren(...named.map(([value, name]) => new Option(name, value)));
}

// The choice in the address; what is missing or does not exist is as the page was made.
function choose() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  const pick = (select, value, otherwise) => {
    const values = [...select.options].map((option) => option.value);
    select.value = [value, String(otherwise)].find((each) => values.includes(each)) ?? values[0];
  };
  pick(controls.layer, wanted.get("layer"), DATA.open.layer);
  const { heads } = DATA.layers[controls.layer.selectedIndex];
  options(controls.head, Array.from({ length: heads }, (_, head) => [head, head]));
  pick(controls.head, wanted.get("head"), DATA.open.head);
  pick(controls.method, wanted.get("method"), "all");
}

function show(query, key) {
  place = { query, key };
  panels.forEach((panel) => panel.show(query, key));
}

function render() {
  choose();
  const all = controls.method.value === "all";
  const shown = all ? DATA.methods.map((_, method) => method) : [Number(controls.method.value)];
  const [layer, head] = [controls.layer.selectedIndex, Number(controls.head.value)];
  panels = shown.map((method) => makePanel(method, layer, head, shown.length === 1, show));
  const holder = document.getElementById("panels");
  holder.classList.toggle("alone", shown.length === 1);
  holder.replaceChildren(...panels.map((panel) => panel.root));
  panels.forEach((panel) => panel.draw());
  document.title = `Layer ${controls.layer.value}, head ${head}: ${shortened(DATA.texts[0], 60)}`;
}

function move(event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  const panel = panels.find((each) => each.scroller === event.target);
  if (!panel || !(step || event.key === "Escape")) return;
  event.preventDefault();
  const inside = (index) => Math.max(0, Math.min(TOKENS.length - 1, index));
  if (event.key === "Escape") show(null, null);
  else if (place.query === null) show(0, 0);
  else show(inside(place.query + step[0]), inside((place.key ?? 0) + step[1]));
  panel.scroller.querySelector(".mark.cell").scrollIntoView({ block: "nearest", inline: "nearest" });
  said.textContent = panel.spoken();
}

function describe() {
  const sentence = document.getElementById("sentence");
  for (const text of DATA.texts) {
    const line = element("p", "", text);
    line.dir = "auto";
    sentence.append(line);
  }
  const heads = new Set(DATA.layers.map((layer) => layer.heads));
  document.getElementById("about").append(
    element("code", "", DATA.model), ` · ${DATA.architecture} · ${count(TOKENS.length, "token")} · ` +
    `${count(DATA.layers.length, "layer")} × ${[...heads].map((number) => count(number, "head")).join(" or ")}`);
  document.getElementById("notes").append(...DATA.notes.map((note) => element("li", "", note)));
}

function legend() {
  const size = 16;
  const steps = [0, 0.01, 0.1, 0.25, 0.5, 1];
  const sample = (kind, path, strength) => shape("svg", { width: size, height: size, "aria-hidden": "true" },
    shape("path", { class: kind, d: path, "fill-opacity": strength === null ? 1 : opacity(strength) }));
  const ramp = (kind, path) => element("span", "ramp", ...steps.map((weight) =>
    element("span", "step", sample(kind, path, shade(weight) / SHADES), element("small", "", String(100 * weight)))));
  document.getElementById("legend").append(
    element("span", "entry", element("b", "", "kept"), ramp("kept", square(0, 0, size))),
    element("span", "entry", element("b", "", "dropped"), ramp("dropped", dot(0, 0, size))),
    element("span", "entry quiet", "shade: dense weight in %"),
    element("span", "entry", sample("blank", `M0 0h${size}v${size}h${-size}z`, null), element("b", "", "not a valid pair")));
}

options(controls.method, [["all", "all, side by side"], ...DATA.methods.map(({ label }, index) => [index, label])]);
options(controls.layer, DATA.layers.map(({ number, name }) => [number, `${number} · ${name}`]));
for (const select of Object.values(controls)) {
  select.addEventListener("change", () => {
    const chosen = new URLSearchParams(Object.entries(controls).map(([name, { value }]) => [name, value]));
    location.replace(`#${chosen}`);
  });
}
document.getElementById("controls").addEventListener("submit", (event) => event.preventDefault());
document.addEventListener("keydown", move);
window.addEventListener("hashchange", render);
describe();
legend();
render();
new ResizeObserver(() => panels.forEach((panel) => panel.draw())).observe(document.getElementById("panels"));
