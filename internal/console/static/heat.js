// The heat of key ranges over time. Time goes to the right, keys go down.
import { h, fill, table, key, short, bytes, clock, isDark, onTheme } from './dom.js';

const measures = { writes: ['Writes', v => short(v) + '/s'], reads: ['Reads', v => short(v) + '/s'], bytes: ['Bytes', v => bytes(v) + '/s'] };

// Colours from cold to hot, for light and dark. Lightness changes steadily, so they are told apart without hue.
const light = [[238, 240, 244], [199, 215, 243], [132, 168, 232], [66, 110, 214], [58, 52, 160], [44, 14, 84]];
const dark = [[30, 33, 38], [40, 44, 92], [84, 52, 146], [170, 62, 140], [240, 120, 84], [255, 226, 130]];

export function colour(x) {
  const p = isDark() ? dark : light, y = Math.min(Math.max(x, 0), 1) * (p.length - 1), i = Math.min(Math.floor(y), p.length - 2), f = y - i;
  return p[i].map((c, j) => Math.round(c + (p[i + 1][j] - c) * f));
}

export class Heat {
  constructor() {
    this.measure = 'writes';
    this.seg = h('div', { class: 'seg', role: 'group', 'aria-label': 'Measure' }, Object.entries(measures).map(([m, [label]]) =>
      h('button', { 'aria-pressed': String(m === this.measure), onclick: e => this.choose(m, e.target) }, label)));
    this.scale = h('canvas', { width: 96, height: 1, 'aria-hidden': 'true' });
    this.most = h('span');
    this.canvas = h('canvas', { 'aria-hidden': 'true' });
    this.mark = h('div', { class: 'mark', hidden: true });
    this.ys = h('div', { class: 'ys', 'aria-hidden': 'true' });
    this.xs = h('div', { class: 'xs', 'aria-hidden': 'true' });
    this.readout = h('p', { class: 'readout', id: 'heat-readout', 'aria-live': 'polite' });
    this.plot = h('div', { class: 'plot', tabindex: 0, role: 'group', 'aria-label': 'Heat map of keys over time. The arrow keys move over it; the hottest ranges are in the table below.',
      'aria-describedby': 'heat-readout', onkeydown: e => this.step(e) }, this.canvas, this.mark);
    this.plot.addEventListener('pointermove', e => this.point(e));
    this.plot.addEventListener('pointerleave', () => this.at(null));
    this.plot.addEventListener('blur', () => this.at(null));
    this.plot.addEventListener('click', () => this.open());
    this.hot = h('details', null, h('summary', null, 'Hottest ranges as a table'), this.rows = h('div'));
    this.el = h('section', { class: 'card', 'aria-label': 'Heat of the key space' },
      h('div', { class: 'top' }, h('h2', null, 'Heat of the key space'), this.seg,
        h('span', { class: 'tail' }, h('span', { class: 'legend' }, '0', this.scale, this.most))),
      h('div', { class: 'body' }, h('div', { class: 'heat' }, this.ys, this.plot, this.xs), this.readout, this.hot));
    onTheme(this.again = () => { if (!this.closed) this.draw(); });
  }

  close() { this.closed = true; }

  choose(m, button) {
    this.measure = m;
    for (const b of this.seg.children) b.setAttribute('aria-pressed', String(b === button));
    this.draw();
  }

  update(map, error) {
    if (map === this.map && map) return;
    this.map = map;
    this.error = error;
    this.draw();
  }

  draw() {
    const m = this.map, cols = m?.at.length || 0, rows = m?.ranges.length || 0;
    this.plot.hidden = false;
    if (!cols || !rows) {
      this.canvas.width = this.canvas.height = 1;
      fill(this.readout, this.error ? 'No heat: ' + this.error : m ? 'Nothing was read or written in the last hour. A column is added every 30 seconds.' : '');
      return;
    }
    const data = m[this.measure], top = Math.max(1, ...data.map(r => Math.max(...r)));
    const img = new ImageData(cols, rows);
    for (let x = 0; x < cols; x++) for (let y = 0; y < rows; y++) {
      const v = data[x][y], c = colour(v ? .12 + .88 * Math.log1p(v) / Math.log1p(top) : 0), i = 4 * (y * cols + x);
      [img.data[i], img.data[i + 1], img.data[i + 2], img.data[i + 3]] = [...c, 255];
    }
    this.canvas.width = cols;
    this.canvas.height = rows;
    this.canvas.getContext('2d').putImageData(img, 0, 0);
    this.axes(cols, rows);
    fill(this.most, measures[this.measure][1](top / m.slot_seconds));
    const bar = new ImageData(96, 1);
    for (let x = 0; x < 96; x++) bar.data.set([...colour(x / 95), 255], 4 * x);
    this.scale.getContext('2d').putImageData(bar, 0, 0);
    this.table(data);
    this.at(this.cell ?? null);
  }

  axes(cols, rows) {
    const m = this.map, labels = Math.min(rows, 8), label = (text, at, axis) => h('span', { class: axis === 'top' ? 'key' : null, css: { [axis]: 100 * at + '%' } }, text);
    const ys = [];
    for (let i = 0; i < labels; i++) {
      const r = Math.floor(i * rows / labels);
      ys.push(label(m.ranges[r].start || 'first key', r / rows, 'top'));
    }
    fill(this.ys, ys, label('last key', 1, 'top'));
    const n = this.plot.clientWidth < 500 ? 3 : 7, xs = [];
    for (let i = 0; i < n; i++) {
      const c = Math.round(i * (cols - 1) / (n - 1));
      if (n > cols && i && xs.length >= cols) continue;
      xs.push(label(clock((m.at[c] + (i === n - 1 ? m.slot_seconds : 0)) * 1000), i / (n - 1), 'left'));
    }
    fill(this.xs, xs);
  }

  // table tells the ranges that were hottest in all of the time.
  table(data) {
    const m = this.map, secs = m.at.length * m.slot_seconds;
    const list = m.ranges.map((r, y) => ({ r, y, v: data.reduce((a, row) => a + row[y], 0) })).sort((a, b) => b.v - a.v).slice(0, 10).filter(x => x.v);
    const rate = (name, y) => m[name].reduce((a, row) => a + row[y], 0) / secs;
    fill(this.rows, table(`Hottest ranges by ${this.measure}, ${Math.round(secs / 60)} minutes`, [
      ['From', x => h('a', { href: shardsAt(x.r.start) }, key(x.r.start, 'first key'))], ['To', x => key(x.r.end, 'last key')],
      ...Object.entries(measures).map(([name, [label, format]]) => [label, x => format(rate(name, x.y)), 'num']),
    ], list));
    fill(this.hot.firstChild, 'Hottest ranges as a table');
  }

  point(e) {
    const b = this.plot.getBoundingClientRect(), m = this.map;
    if (!m?.at.length) return;
    const pick = (p, from, size, n) => Math.min(n - 1, Math.max(0, Math.floor((p - from) / size * n)));
    this.at([pick(e.clientX, b.left, b.width, m.at.length), pick(e.clientY, b.top, b.height, m.ranges.length)]);
  }

  step(e) {
    const m = this.map, d = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (e.key === 'Enter') return this.open();
    if (!d || !m?.at.length) return;
    e.preventDefault();
    const [x, y] = this.cell || [m.at.length, 0], far = e.shiftKey ? 10 : 1;
    this.at([Math.min(m.at.length - 1, Math.max(0, x + far * d[0])), Math.min(m.ranges.length - 1, Math.max(0, y + far * d[1]))]);
  }

  // at shows what a cell means.
  at(cell) {
    const m = this.map;
    if (cell && (!m || cell[0] >= m.at.length || cell[1] >= m.ranges.length)) cell = null;
    this.cell = cell;
    this.mark.hidden = !cell;
    if (!cell) {
      fill(this.readout, m?.missing.length ? 'Not in it: ' + m.missing.join('; ') : `${m?.ranges.length || 0} key ranges, ${m?.at.length || 0} slots of ${m?.slot_seconds || 30} s. Point at a cell, or move with the arrow keys; click for the shards there.`);
      return;
    }
    const [x, y] = cell, w = 100 / m.at.length, t = 100 / m.ranges.length, r = m.ranges[y];
    Object.assign(this.mark.style, { left: x * w + '%', top: y * t + '%', width: w + '%', height: t + '%' });
    const rate = name => measures[name][1](m[name][x][y] / m.slot_seconds);
    fill(this.readout, h('b', null, clock(m.at[x] * 1000, true)), '  ', h('span', { class: 'mono' }, r.start || 'first key'), ' to ', h('span', { class: 'mono' }, r.end || 'last key'), ': ',
      h('b', null, rate('writes')), ' writes, ', h('b', null, rate('reads')), ' reads, ', h('b', null, rate('bytes')));
  }

  open() {
    if (this.cell) location.hash = shardsAt(this.map.ranges[this.cell[1]].start);
  }
}

const shardsAt = start => '#/shards?key=' + encodeURIComponent(start);
