"use strict";
// What the page holds, read out of its data element.

const DATA = JSON.parse(document.getElementById("data").textContent);
const TOKENS = DATA.tokens;
const NOT_VALID = 65535;

function bytes(base64) {
  return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
}

// One head of one layer with one method: weight(query, key) in 0 … 1, null where the pair is not valid.
function readMap(method, layer, head) {
  const found = DATA.methods[method].layers[layer];
  found.bytes ??= { weights: new DataView(bytes(found.weights).buffer), kept: bytes(found.kept) };
  const count = TOKENS.length;
  const index = (query, key) => (head * count + query) * count + key;
  return {
    method: found.method,
    sparsity: found.sparsity[head],
    keptMass: found.kept_mass[head],
    weight(query, key) {
      const stored = found.bytes.weights.getUint16(2 * index(query, key), true);
      return stored === NOT_VALID ? null : stored / (NOT_VALID - 1);
    },
    kept(query, key) {
      const bit = index(query, key);
      return ((found.bytes.kept[bit >> 3] >> (bit & 7)) & 1) === 1;
    },
  };
}

function percent(share, digits) {
  return `${(100 * share).toFixed(digits)} %`;
}

function count(number, name) {
  return `${number} ${name}${number === 1 ? "" : "s"}`;
}

function shortened(text, length) {
  const letters = [...text];
  return letters.length > length ? `${letters.slice(0, length - 1).join("")}…` : text;
}

// An HTML element with a class and children; text is only ever text.
function element(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children);
  return made;
}
