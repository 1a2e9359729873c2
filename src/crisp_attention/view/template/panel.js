// One method: its numbers, its grid, and in words what the reader points at.

const LEGIBLE = 12; // pixels of a cell; rather than below it, the grid scrolls
const OVERVIEW = 2; // the same for a long text that is shown with several methods side by side
const LONG = 40; // tokens
const LARGEST = 30;
const CROWDED = 14; // pixels of a cell below which the labels are set smaller

function quoted(index) {
  return element("bdi", "token", `“${shortened(TOKENS[index], 40)}”`);
}

function describePair(map, query, key) {
  const weight = map.weight(query, key);
  if (weight === null) return [quoted(query), " may not look at ", quoted(key), ": not a valid pair"];
  const fate = element("b", map.kept(query, key) ? "is-kept" : "is-dropped", map.kept(query, key) ? "kept" : "dropped");
  return [quoted(query), " → ", quoted(key), `: dense weight ${percent(weight, 2)}, `, fate];
}

function describeRow(map, query) {
  let [valid, kept, mass] = [0, 0, 0];
  TOKENS.forEach((_, key) => {
    const weight = map.weight(query, key);
    if (weight === null) return;
    valid += 1;
    if (map.kept(query, key)) [kept, mass] = [kept + 1, mass + weight];
  });
  return [quoted(query), ` keeps ${kept} of ${valid} keys, with ${percent(mass, 1)} of its dense weight`];
}

function figure(name, value) {
  return element("div", "", element("dt", "", name), element("dd", "", value));
}

// `pointed(query, key)` is called when the reader points at something in this panel, with null when no longer.
function makePanel(method, layer, head, alone, pointed) {
  const { label, own } = DATA.methods[method];
  const map = readMap(method, layer, head);
  const title = element("h2", "", own ? map.method : label);
  if (own) title.append(" ", element("span", "badge", label));
  const numbers = element(
    "dl", "", figure("achieved sparsity", percent(map.sparsity, 1)), figure("kept mass", percent(map.keptMass, 1)));
  const scroller = element("div", "scroller");
  scroller.tabIndex = 0;
  scroller.setAttribute("role", "group");
  scroller.setAttribute("aria-label", `${label}: grid of queries and keys; the arrow keys move from pair to pair`);
  const readout = element("p", "readout");
  const root = element("article", "panel", title, numbers, scroller, readout);
  let grid = null;
  let drawn = 0;

  function fitting(room) {
    const free = scroller.clientWidth - room.left - room.right;
    const smallest = TOKENS.length > LONG && !alone ? OVERVIEW : LEGIBLE;
    return Math.max(smallest, Math.min(LARGEST, Math.floor((4 * free) / TOKENS.length) / 4));
  }
  function draw() {
    let [font, size] = [11, fitting(margins(11))];
    if (size < CROWDED) [font, size] = [10, fitting(margins(10))];
    if (size === drawn) return;
    drawn = size;
    grid = drawGrid(map, margins(font), size, font);
    scroller.replaceChildren(grid.svg);
    show(null, null);
  }
  function show(query, key) {
    grid.mark(query, key);
    const hint = element("span", "quiet", "Point at a pair, or use the arrow keys.");
    const words = query === null ? [hint] : key === null ? describeRow(map, query) : describePair(map, query, key);
    readout.replaceChildren(...words);
  }
  function track(event) {
    const place = grid.at(event.clientX, event.clientY);
    pointed(place?.query ?? null, place?.key ?? null);
  }
  scroller.addEventListener("scroll", () => grid.follow(scroller.scrollLeft));
  scroller.addEventListener("pointermove", track);
  scroller.addEventListener("pointerdown", track);
  scroller.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && pointed(null, null));
  return { root, draw, show, scroller, spoken: () => `${label}: ${readout.textContent}` };
}
