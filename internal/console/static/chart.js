// Charts of the last hour, by uPlot.
import { h, fill, bytes, css, clock, nodeVar, onTheme } from './dom.js';

let cached = [null, []];

// merge puts the samples of all nodes side by side: [{at, names, ids, nodes: [sample or undefined]}], oldest first.
export function merge(history) {
  if (!history) return [];
  if (cached[0] === history) return cached[1];
  const list = [...history.nodes].sort((a, b) => a.node - b.node), rows = new Map();
  list.forEach((n, i) => n.samples.forEach(s => {
    if (!rows.has(s.at)) rows.set(s.at, { at: s.at, names: list.map(x => x.name || String(x.node)), ids: list.map(x => x.node), nodes: Array(list.length) });
    rows.get(s.at).nodes[i] = s;
  }));
  cached = [history, [...rows.values()].sort((a, b) => a.at - b.at)];
  return cached[1];
}

const powers = Array.from({ length: 50 }, (_, i) => 2 ** i);

// Chart draws lines over time. series is [[label, colour variable]…], or 'nodes' for one line per node; pick takes one line of merge and
// gives a value for each series.
export class Chart {
  constructor(title, format, series, pick) {
    Object.assign(this, { format, series, pick, title });
    this.vals = h('span', { class: 'vals' });
    this.draw = h('div', { class: 'draw', 'aria-hidden': 'true', 'data-keep': '' });
    this.text = h('p', { class: 'hidden' });
    this.table = h('table');
    this.el = h('figure', null, h('figcaption', null, h('h3', null, title), this.vals), this.text, this.draw, this.table);
    this.sized = new ResizeObserver(() => this.plot?.setSize(this.size()));
    this.sized.observe(this.draw);
    onTheme(this.again = () => this.make());
  }

  close() {
    this.sized.disconnect();
    this.plot?.destroy();
    this.plot = null;
    this.closed = true;
  }

  size() { return { width: Math.max(this.draw.clientWidth, 120), height: 128 }; }

  lines(rows) {
    if (this.series !== 'nodes') return this.series;
    const last = rows.at(-1);
    return last ? last.ids.map((id, i) => [last.names[i], nodeVar(id)]) : [];
  }

  update(rows) {
    if (this.rows === rows) return;
    this.rows = rows;
    const lines = this.lines(rows), picked = rows.map(this.pick);
    this.data = [rows.map(r => r.at), ...lines.map((_, i) => picked.map(p => p[i] ?? null))];
    const names = lines.map(l => l.join()).join();
    if (this.plot && names === this.names) this.plot.setData(this.data);
    else this.make(names);
    this.words(lines);
  }

  // words tell the same as the lines: at the title, to a screen reader, and in a table of every fifth minute.
  words(lines) {
    const at = this.data[0].length - 1;
    fill(this.vals, lines.slice(0, 6).map(([label, colour], i) => h('span', null, h('i', { class: 'sw', css: { background: `var(${colour})` } }), label + ' ',
      h('b', null, this.format(this.data[i + 1][at])))));
    this.text.textContent = at < 0 ? 'No samples yet.' : lines.map(([label], i) => {
      const v = this.data[i + 1].filter(x => x != null);
      return `${label}: now ${this.format(this.data[i + 1][at])}, between ${this.format(Math.min(...v))} and ${this.format(Math.max(...v))}.`;
    }).join(' ');
    const rows = this.data[0].map((t, i) => i).filter(i => i === at || this.data[0][i] % 300 === 0).slice(-13);
    fill(this.table, h('caption', { class: 'hidden' }, this.title), h('thead', null, h('tr', null, h('th', { scope: 'col' }, 'Time'), lines.map(l => h('th', { scope: 'col', class: 'num' }, l[0])))),
      h('tbody', null, rows.map(i => h('tr', null, h('td', null, clock(this.data[0][i] * 1000)), lines.map((_, j) => h('td', { class: 'num' }, this.format(this.data[j + 1][i])))))));
  }

  make(names = this.names) {
    if (this.closed || !this.data || !window.uPlot) return;
    this.names = names;
    this.plot?.destroy();
    const font = '11px ' + css('--sans'), axis = { stroke: css('--muted'), font, grid: { stroke: css('--line'), width: 1 }, ticks: { show: false } };
    this.plot = new uPlot({
      ...this.size(), legend: { show: false }, padding: [6, 8, 0, 0],
      cursor: { y: false, sync: { key: 'hour' }, points: { size: 5 }, drag: { x: false, y: false } },
      scales: { x: { time: true }, y: { range: (_, lo, hi) => [0, hi > 0 ? hi * 1.1 : 1] } },
      axes: [{ ...axis, size: 22, gap: 4, space: 70, grid: { show: false }, values: (_, list) => list.map(t => clock(t * 1000)) },
        { ...axis, size: 52, gap: 4, space: 34, ...(this.format === bytes ? { incrs: powers } : {}), values: (_, list) => list.map(v => v == null ? '' : this.format(v)) }],
      series: [{}, ...this.lines(this.rows).map(([label, colour]) => ({ label, stroke: css(colour), width: 1.5, points: { show: false }, spanGaps: false }))],
      hooks: { setCursor: [u => this.pointAt(u.cursor.idx)] },
    }, this.data, this.draw);
  }

  // pointAt shows the values under the pointer, or those of now.
  pointAt(idx) {
    const at = idx ?? this.data[0].length - 1;
    this.vals.querySelectorAll('b').forEach((b, i) => { b.textContent = this.format(this.data[i + 1]?.[at]); });
  }
}
