// One map as SVG: shapes are grouped by shade, so that style and print are left to the style sheet.

const SVG = "http://www.w3.org/2000/svg";
const SHADES = 24; // steps between weight 0 and weight 1
const LONGEST = 12; // letters of a token on an axis
const SLANT = (62 * Math.PI) / 180;
const ruler = document.createElement("canvas").getContext("2d");

function shape(name, attributes, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shade(weight) {
  return Math.round(Math.sqrt(weight) * SHADES);
}

function square(x, y, size) {
  const gap = size > 8 ? 0.5 : 0.25;
  return `M${x + gap} ${y + gap}h${size - 2 * gap}v${size - 2 * gap}h${2 * gap - size}z`;
}

function dot(x, y, size) {
  const radius = Math.max(0.22 * size, Math.min(1, size / 4));
  return `M${x + size / 2 - radius} ${y + size / 2}a${radius} ${radius} 0 1 0 ${2 * radius} 0a${radius} ${radius} 0 1 0 ${-2 * radius} 0`;
}

// How much room the labels need, for a font of `size` pixels.
function margins(size) {
  ruler.font = `${size}px ${getComputedStyle(document.body).fontFamily}`;
  const widths = TOKENS.map((token) => ruler.measureText(shortened(token, LONGEST)).width);
  const longest = Math.max(...widths, 40);
  return {
    left: Math.ceil(longest + 14),
    top: Math.ceil(longest * Math.sin(SLANT) + 14),
    right: Math.ceil(widths.at(-1) * Math.cos(SLANT) + 8),
  };
}

function cells(map, size) {
  const paths = new Map();
  const add = (kind, step, path) => {
    const key = `${kind} ${step}`;
    if (!paths.has(key)) paths.set(key, []);
    paths.get(key).push(path);
  };
  for (let query = 0; query < TOKENS.length; query++) {
    for (let key = 0; key < TOKENS.length; key++) {
      const weight = map.weight(query, key);
      const [x, y] = [key * size, query * size];
      if (weight === null) add("blank", 0, `M${x} ${y}h${size}v${size}h${-size}z`);
      else if (map.kept(query, key)) add("kept", shade(weight), square(x, y, size));
      else add("dropped", shade(weight), dot(x, y, size));
    }
  }
  return [...paths].map(([key, found]) => {
    const [kind, step] = key.split(" ");
    const drawn = shape("path", { class: kind, d: found.join("") });
    if (kind !== "blank") drawn.setAttribute("fill-opacity", opacity(step / SHADES));
    return drawn;
  });
}

// Even a pair of weight 0 shows which kind it is.
function opacity(strength) {
  return (0.18 + 0.82 * strength).toFixed(3);
}

// Every token has its labels; where they would overlap, some show only when they are pointed at.
function axes(room, size, font) {
  const every = Math.ceil((font + 1) / size);
  const rows = shape("g", { class: "rows", "font-size": font });
  rows.append(shape("rect", { class: "behind", width: room.left, height: room.top + TOKENS.length * size + 2 }));
  const columns = shape("g", { class: "columns", "font-size": font });
  TOKENS.forEach((token, index) => {
    const middle = (index + 0.5) * size;
    const row = shape("text", { x: room.left - 7, y: room.top + middle, "text-anchor": "end", "dy": "0.35em" });
    const [x, y] = [room.left + middle + 2, room.top - 6];
    const slant = `rotate(${(-SLANT * 180) / Math.PI} ${x} ${y})`;
    const column = shape("text", { x, y, transform: slant, "dy": "0.2em" });
    for (const text of [row, column]) {
      text.textContent = shortened(token, LONGEST);
      if (index % every) text.classList.add("spare");
    }
    rows.append(row);
    columns.append(column);
  });
  ["query ↓", "key →"].forEach((name, line) => {
    const title = shape("text", { class: "axis", x: room.left - 7, y: room.top - 8 - 15 * line, "text-anchor": "end" });
    title.textContent = name;
    rows.append(title);
  });
  return { rows, columns };
}

// The picture of a map with cells of `size` pixels; `mark(query, key)` shows where the reader points.
function drawGrid(map, room, size, font) {
  const side = TOKENS.length * size;
  const [width, height] = [room.left + side + room.right, room.top + side + 2];
  const inner = shape("g", { transform: `translate(${room.left} ${room.top})` });
  inner.append(...cells(map, size), shape("rect", { class: "frame", width: side, height: side }));
  const bands = ["row", "column", "cell"].map((kind) => shape("rect", { class: `mark ${kind}`, visibility: "hidden" }));
  inner.append(...bands);
  const { rows, columns } = axes(room, size, font);
  const svg = shape("svg", { width, height, viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true" });
  svg.append(columns, inner, rows);

  function place(band, visible, x, y, wide, high) {
    band.setAttribute("visibility", visible ? "visible" : "hidden");
    for (const [key, value] of Object.entries({ x, y, width: wide, height: high })) band.setAttribute(key, value);
  }
  function mark(query, key) {
    place(bands[0], query !== null, 0, query * size, side, size);
    place(bands[1], key !== null, key * size, 0, size, side);
    place(bands[2], key !== null, key * size, query * size, size, size);
    [rows, columns].forEach((group, axis) => {
      group.classList.toggle("searched", size < font && [query, key][axis] !== null);
      group.querySelectorAll("text:not(.axis)").forEach((text, index) => {
        text.classList.toggle("pointed", index === [query, key][axis]);
      });
    });
  }
  // The query and key under a point of the screen: key null on the labels of the rows, null elsewhere.
  function at(clientX, clientY) {
    const box = svg.getBoundingClientRect();
    const scroller = svg.parentElement.scrollLeft;
    const query = Math.floor((clientY - box.top - room.top) / size);
    const key = Math.floor((clientX - box.left - room.left) / size);
    if (query < 0 || query >= TOKENS.length || key >= TOKENS.length) return null;
    const onLabels = clientX - box.left - scroller < room.left;
    return { query, key: onLabels ? null : key };
  }
  const follow = (scrolled) => rows.setAttribute("transform", `translate(${scrolled} 0)`);
  return { svg, mark, at, follow };
}
