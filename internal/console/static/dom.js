// Elements, and how figures look. Text from the cluster only ever becomes text nodes and attributes.

// h makes an element. Properties: on… are listeners, css sets styles, the rest are attributes; null and false are left out.
export function h(tag, props, ...children) {
  const el = document.createElement(tag);
  for (const [k, v] of Object.entries(props || {})) {
    if (v == null || v === false) continue;
    if (k.startsWith('on')) el[k] = v;
    else if (k === 'css') for (const [p, x] of Object.entries(v)) el.style.setProperty(p, x);
    else if (k === 'value' && tag !== 'progress') el.value = v;
    else el.setAttribute(k, v === true ? '' : v);
  }
  el.append(...children.flat(9).filter(c => c != null && c !== false).map(c => c instanceof Node ? c : document.createTextNode(String(c))));
  return el;
}

const handlers = ['onclick', 'onchange', 'oninput', 'onsubmit', 'onkeydown'];

// morph makes one tree equal to another without replacing what is the same, so that focus, selection and scrolling stay. Elements with
// data-keep are left alone.
export function morph(from, to) {
  if (from.nodeType !== to.nodeType || from.nodeName !== to.nodeName || from.dataset?.key !== to.dataset?.key) {
    from.replaceWith(to);
    return;
  }
  if (from.nodeType === Node.TEXT_NODE) {
    if (from.data !== to.data) from.data = to.data;
    return;
  }
  if (from.dataset.keep !== undefined) return;
  for (const a of [...from.attributes]) if (!to.hasAttribute(a.name) && a.name !== 'style' && a.name !== 'open') from.removeAttribute(a.name);
  for (const a of to.attributes) if (a.name !== 'style' && from.getAttribute(a.name) !== a.value) from.setAttribute(a.name, a.value);
  if (from.style.cssText !== to.style.cssText) from.style.cssText = to.style.cssText;
  for (const k of handlers) from[k] = to[k];
  children(from, [...to.childNodes]);
}

// fill gives an element new children, as morph does.
export function fill(el, ...nodes) {
  children(el, [...h('div', null, nodes).childNodes]);
}

function children(el, want) {
  const have = [...el.childNodes];
  want.forEach((w, i) => i < have.length ? morph(have[i], w) : el.append(w));
  have.slice(want.length).forEach(x => x.remove());
}

// table makes one that scrolls sideways where it must. columns: [title, cell(row), class]. head is what it is called.
export function table(head, columns, rows, rowKey) {
  return h('div', { class: 'scroll', tabindex: 0, role: 'region', 'aria-label': head },
    h('table', null,
      h('caption', { class: 'hidden' }, head),
      h('thead', null, h('tr', null, columns.map(c => h('th', { scope: 'col', class: c[2], 'aria-sort': c[3]?.sort }, c[3]?.button || c[0])))),
      h('tbody', null, rows.map(r => h('tr', rowKey && { 'data-key': rowKey(r) }, columns.map(c => h('td', { class: c[2] }, c[1](r))))))));
}

export const key = (text, none = '') => h('span', { class: 'key', title: text || null }, text || none);

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
export const int = n => whole.format(n);

// short is a number in few characters: 1,234 and 56.7k.
export function short(n) {
  if (n == null || !isFinite(n)) return '–';
  if (n < 10 && n % 1) return n < .01 ? String(Number(n.toPrecision(1))) : String(Number(n.toFixed(n < 1 ? 2 : 1)));
  if (n < 10000) return whole.format(n);
  for (const [x, u] of [[1e9, 'G'], [1e6, 'M'], [1e3, 'k']]) if (n >= x) return (n / x).toFixed(n / x < 100 ? 1 : 0) + u;
}

export function bytes(n) {
  if (n == null || !isFinite(n)) return '–';
  for (const [x, u] of [[2 ** 40, 'TiB'], [2 ** 30, 'GiB'], [2 ** 20, 'MiB'], [2 ** 10, 'KiB']]) if (n >= x) return (n / x).toFixed(n / x < 10 ? 1 : 0) + ' ' + u;
  return Math.round(n) + ' B';
}

// secs is a latency, given in seconds.
export function secs(s) {
  if (s == null || !isFinite(s)) return '–';
  if (s === 0) return '0';
  if (s < 1e-3) return Math.round(s * 1e6) + ' µs';
  if (s < 1) return (s * 1e3).toFixed(s < .01 ? 1 : 0) + ' ms';
  return s.toFixed(1) + ' s';
}

// span is a length of time, given in milliseconds.
export function span(ms) {
  const s = Math.max(0, Math.round(ms / 1000));
  if (s < 100) return s + ' s';
  if (s < 6000) return Math.round(s / 60) + ' min';
  if (s < 172800) return Math.floor(s / 3600) + ' h ' + Math.round(s % 3600 / 60) + ' min';
  return Math.round(s / 86400) + ' d';
}

export const clock = (ms, s) => new Date(ms).toLocaleTimeString('en-GB', { hour: '2-digit', minute: '2-digit', second: s ? '2-digit' : undefined });

// css reads a variable of the style sheet, as it is in the colours of the moment.
export const css = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
export const nodeVar = id => '--s' + (Math.max(id - 1, 0) % 8 + 1);

const dark = matchMedia('(prefers-color-scheme: dark)');
export const isDark = () => dark.matches;
export const onTheme = f => dark.addEventListener('change', f);
