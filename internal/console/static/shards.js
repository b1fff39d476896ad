// All shards: a square each, in order of their keys, and a table of a hundred at a time.
import { h, fill, table, key, int, short, bytes, css, nodeVar, onTheme } from './dom.js';
import { get } from './api.js';
import { colour } from './heat.js';

const gap = 1, perPage = 100;

const paints = {
  leader: 'Leader', state: 'State', bytes: 'Size', writes_per_s: 'Writes', reads_per_s: 'Reads',
};

export class Shards {
  title = 'Shards';

  constructor(query) {
    this.paint = 'leader';
    this.sort = ['', 1];
    this.page = 0;
    this.counted = h('span', { class: 'muted' });
    this.seg = h('div', { class: 'seg', role: 'group', 'aria-label': 'Colour by' }, Object.entries(paints).map(([p, label]) =>
      h('button', { 'aria-pressed': String(p === this.paint), onclick: e => this.choose(p, e.target) }, label)));
    this.swatches = h('span', { class: 'swatches' });
    this.canvas = h('canvas', { 'aria-hidden': 'true' });
    this.mark = h('div', { class: 'mark', hidden: true });
    this.readout = h('p', { class: 'readout', id: 'grid-readout', 'aria-live': 'polite' }, ' ');
    this.grid = h('div', { class: 'grid-wrap', tabindex: 0, role: 'group', 'aria-label': 'All shards in order of their keys. The arrow keys move, Enter opens; the table below tells the same.',
      'aria-describedby': 'grid-readout', onkeydown: e => this.step(e) }, this.canvas, this.mark);
    this.canvas.addEventListener('pointermove', e => this.at(this.under(e)));
    this.canvas.addEventListener('pointerleave', () => this.at(-1));
    this.grid.addEventListener('blur', () => this.at(-1));
    this.canvas.addEventListener('click', e => { const i = this.under(e); if (i >= 0) location.hash = '#/shard/' + this.list[i].id; });
    this.find = h('input', { type: 'search', placeholder: 'id, or key', 'aria-label': 'Find a shard by its number, or by a key in it', size: 18 });
    this.miss = h('span', { class: 'muted', role: 'status' });
    const form = h('form', { class: 'range', onsubmit: e => { e.preventDefault(); this.seek(this.find.value); } }, this.miss, this.find, h('button', { class: 'btn' }, 'Find'));
    this.rows = h('div');
    this.pager = h('div', { class: 'pager' });
    this.el = h('div', null,
      h('div', { class: 'head' }, h('h1', null, 'Shards'), this.counted, h('span', { class: 'tail' }, form)),
      h('section', { class: 'card', 'aria-label': 'All shards' },
        h('div', { class: 'top' }, h('h2', null, 'In order of their keys'), this.seg, h('span', { class: 'tail' }, this.swatches)),
        this.grid, h('div', { class: 'body', css: { 'padding-top': '0' } }, this.readout)),
      h('section', { class: 'card', 'aria-label': 'Table of shards' }, this.rows, this.pager));
    this.sized = new ResizeObserver(() => this.draw());
    this.sized.observe(this.grid);
    onTheme(() => { if (!this.closed) this.draw(); });
    const asked = new URLSearchParams(query || '').get('key');
    if (asked !== null) this.seekKey(asked);
  }

  close() { this.sized.disconnect(); this.closed = true; }

  choose(p, button) {
    this.paint = p;
    for (const b of this.seg.children) b.setAttribute('aria-pressed', String(b === button));
    this.draw();
  }

  update(k) {
    this.nodes = k.nodes;
    if (!k.shards) return fill(this.rows, h('p', { class: 'empty' }, k.shardsError || 'Asking…'));
    if (this.list === k.shards) return;
    const first = !this.list;
    this.list = k.shards;
    fill(this.counted, `${int(this.list.length)}, ${bytes(this.list.reduce((a, s) => a + s.bytes, 0))}, about ${short(this.list.reduce((a, s) => a + s.keys, 0))} keys`);
    if (first && this.wanted) this.show(this.wanted);
    this.draw();
    this.fillTable();
  }

  // seek finds a shard by number or by key. What looks like a number and is no shard is a key.
  seek(text) {
    this.miss.textContent = '';
    if (/^\d+$/.test(text) && this.list?.some(s => s.id === Number(text))) location.hash = '#/shard/' + text;
    else this.seekKey(text);
  }

  async seekKey(text) {
    try {
      const p = await get('/api/shards?limit=1&from=' + encodeURIComponent(text));
      this.wanted = p.shards[0]?.id;
      if (this.list) this.show(this.wanted);
    } catch (e) {
      this.miss.textContent = e.message;
    }
  }

  // show turns to the page of the table with a shard, and marks it.
  show(id) {
    const i = this.list.findIndex(s => s.id === id);
    if (i < 0) return;
    this.sort = ['', 1];
    this.page = Math.floor(i / perPage);
    this.fillTable();
    this.at(i);
    this.rows.querySelector(`[data-key="s${id}"] a`)?.focus();
  }

  draw() {
    const width = this.canvas.clientWidth;
    if (!this.list || !(width > 0)) return;
    const scale = devicePixelRatio || 1, n = this.list.length;
    const tall = Math.min(420, 110 + n / 20); // squares as large as fit into that height
    this.size = Math.min(18, Math.max(3, Math.floor(Math.sqrt(width * tall / n)) - gap));
    this.columns = Math.max(1, Math.floor((width + gap) / (this.size + gap)));
    this.across = (width + gap) / this.columns; // a little more than down, so that lines are as wide as the card
    const step = this.size + gap, lines = Math.ceil(n / this.columns), left = i => Math.round(i % this.columns * this.across);
    this.canvas.width = width * scale;
    this.canvas.height = lines * step * scale;
    this.canvas.style.height = lines * step + 'px';
    const g = this.canvas.getContext('2d');
    g.scale(scale, scale);
    const fillOf = this.fillOf();
    for (let i = 0; i < n; i++) {
      g.fillStyle = fillOf(this.list[i]);
      g.fillRect(left(i), Math.floor(i / this.columns) * step, this.wide(i), this.size);
    }
    performance.mark('shards-drawn');
    this.at(this.cursor ?? -1);
  }

  // wide is the width of a square: they fill the line, in whole pixels.
  wide(i) {
    const c = i % this.columns;
    return Math.round((c + 1) * this.across) - gap - Math.round(c * this.across);
  }

  // fillOf gives the colour of a shard, and explains it beside the title.
  fillOf() {
    const bad = css('--bad'), sw = (c, text) => h('span', null, h('i', { class: 'sw', css: { background: c } }), text);
    if (this.paint === 'leader') {
      const ids = [...new Set(this.list.map(s => s.leader))].sort((a, b) => a - b), name = id => this.nodes?.find(n => n.id === id)?.name || 'node ' + id;
      const by = new Map(ids.map(id => [id, id ? css(nodeVar(id)) : bad]));
      fill(this.swatches, ids.map(id => sw(by.get(id), id ? name(id) : 'no leader')));
      return s => by.get(s.leader);
    }
    if (this.paint === 'state') {
      const good = css('--good'), warn = css('--warn'), up = new Set((this.nodes || []).filter(n => n.state !== 'down').map(n => n.id));
      fill(this.swatches, sw(good, 'all replicas live'), sw(warn, 'a replica is missing'), sw(bad, 'no leader'));
      return s => !s.leader ? bad : s.replicas.every(r => up.has(r.node)) ? good : warn;
    }
    const top = Math.max(1e-9, ...this.list.map(s => s[this.paint])), memo = Array.from({ length: 65 }, (_, i) => `rgb(${colour(i / 64)})`);
    fill(this.swatches, sw(memo[0], '0'), sw(memo[64], this.paint === 'bytes' ? bytes(top) : short(top) + '/s'));
    return s => memo[s[this.paint] > 0 ? Math.max(8, Math.round(64 * Math.log1p(s[this.paint]) / Math.log1p(top))) : 0];
  }

  under(e) {
    const b = this.canvas.getBoundingClientRect(), step = this.size + gap, x = Math.floor((e.clientX - b.left) / this.across), y = Math.floor((e.clientY - b.top) / step);
    const i = y * this.columns + x;
    return this.list && x >= 0 && x < this.columns && i >= 0 && i < this.list.length ? i : -1;
  }

  step(e) {
    const d = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns, Home: -1e9, End: 1e9 }[e.key];
    if (e.key === 'Enter' && this.cursor >= 0) location.hash = '#/shard/' + this.list[this.cursor].id;
    if (!d || !this.list?.length) return;
    e.preventDefault();
    const to = (this.cursor ?? -1) + d;
    this.at(Math.min(this.list.length - 1, Math.max(0, to)));
  }

  at(i) {
    this.cursor = i;
    this.mark.hidden = i < 0;
    const s = this.list?.[i];
    if (!s) return fill(this.readout, 'Each square is a shard. Point at one, or move with the arrow keys; click for its page.');
    const step = this.size + gap;
    Object.assign(this.mark.style, { left: this.canvas.offsetLeft + Math.round(i % this.columns * this.across) + 'px',
      top: this.canvas.offsetTop + Math.floor(i / this.columns) * step + 'px', width: this.wide(i) + 'px', height: this.size + 'px' });
    fill(this.readout, h('b', null, 'Shard ' + s.id), '  ', h('span', { class: 'mono' }, s.start || 'first key'), ' to ', h('span', { class: 'mono' }, s.end || 'last key'),
      `: ${s.leader ? 'led by node ' + s.leader : 'no leader'}, ${bytes(s.bytes)}, ${short(s.writes_per_s)} writes/s, ${short(s.reads_per_s)} reads/s`);
  }

  fillTable() {
    const [by, way] = this.sort, list = by ? [...this.list].sort((a, b) => way * (a[by] - b[by])) : this.list;
    const pages = Math.max(1, Math.ceil(list.length / perPage));
    this.page = Math.min(this.page, pages - 1);
    const head = (label, field, cls) => [label, null, cls, { sort: field === by ? (way > 0 ? 'ascending' : 'descending') : null,
      button: h('button', { class: 'sort', onclick: () => { this.sort = [field, by === field ? -way : field && field !== 'id' ? -1 : 1]; this.page = 0; this.fillTable(); } },
        label, field === by && by ? (way > 0 ? ' ↑' : ' ↓') : '') }];
    const col = (label, field, show, cls) => { const c = head(label, field, cls); c[1] = show; return c; };
    fill(this.rows, table('Shards', [
      col('Shard', 'id', s => h('a', { href: '#/shard/' + s.id }, s.id)),
      col('From', '', s => key(s.start, 'first key')), ['To', s => key(s.end, 'last key')],
      col('Leader', 'leader', s => s.leader ? [h('span', { class: 'sw', css: { background: `var(${nodeVar(s.leader)})` } }), s.leader] : h('span', { class: 'state bad' }, 'none')),
      ['Replicas', s => s.replicas.map(r => r.node + (r.role === 'voter' ? '' : ' (learner)')).join(', ')],
      col('Size', 'bytes', s => bytes(s.bytes), 'num'), col('Keys', 'keys', s => short(s.keys), 'num'),
      col('Writes/s', 'writes_per_s', s => short(s.writes_per_s), 'num'), col('Reads/s', 'reads_per_s', s => short(s.reads_per_s), 'num'),
      ['Version', s => s.version + '.' + s.conf_version, 'num'],
    ], list.slice(this.page * perPage, (this.page + 1) * perPage), s => 's' + s.id));
    const turn = by => h('button', { class: 'btn', disabled: this.page + by < 0 || this.page + by >= pages, onclick: () => { this.page += by; this.fillTable(); } }, by < 0 ? 'Previous' : 'Next');
    fill(this.pager, turn(-1), turn(1), h('span', null, `${int(this.page * perPage + 1)} to ${int(Math.min(list.length, (this.page + 1) * perPage))} of ${int(list.length)}`));
  }
}
