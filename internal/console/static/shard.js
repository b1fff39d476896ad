// One shard: who holds it, where their logs are, and what has happened to it.
import { h, fill, table, key, int, short, bytes, clock, span, nodeVar } from './dom.js';
import { get } from './api.js';
import { changed, known } from './app.js';
import { opTable } from './operations.js';
import * as act from './actions.js';

export class Shard {
  constructor(id) {
    this.id = id;
    this.title = 'Shard ' + id;
    this.head = h('div', { class: 'head' });
    this.facts = h('dl', { class: 'facts' });
    this.replicas = h('section', { class: 'card' });
    this.ops = h('section', { class: 'card' });
    this.events = h('section', { class: 'card' });
    this.el = h('div', null, this.head, this.facts, this.replicas, this.ops, this.events);
    this.ask();
  }

  close() { clearTimeout(this.timer); this.closed = true; }

  async ask() {
    try {
      this.data = await get('/api/shard/' + this.id);
      this.error = '';
    } catch (e) {
      this.error = e.message;
    }
    if (known.session?.admin && this.data && !(this.turn = ((this.turn ?? -1) + 1) % 4)) {
      try {
        this.log = await get(`/api/shard/${this.id}/events`);
      } catch (e) {
        this.log = { events: [], missing: [e.message] };
      }
    }
    if (this.closed) return;
    changed();
    this.timer = setTimeout(() => this.ask(), document.hidden ? 5000 : 1000);
  }

  update(k) {
    const p = this.data;
    if (!p) return fill(this.head, h('h1', null, this.title), h('p', { class: 'muted', role: this.error ? 'alert' : null }, this.error || 'Asking…'));
    const s = p.shard, lead = p.replicas.find(r => r.node === s.leader && r.replica === s.replicas.find(x => x.node === s.leader)?.replica);
    const go = (id, side, text) => id ? h('a', { class: 'btn', href: '#/shard/' + id, 'aria-label': side + ' neighbour' }, text) : null;
    fill(this.head, h('h1', null, p.meta ? 'Meta shard' : this.title), p.meta ? h('span', { class: 'muted' }, 'nodes, shards, operations and users') :
      h('span', { class: 'range' }, key(s.start, 'first key'), h('span', { class: 'muted' }, 'to'), key(s.end, 'last key')), this.error ? h('span', { class: 'state bad', role: 'alert' }, this.error) : null,
      h('span', { class: 'tail' }, this.actions(p, k), go(p.left, 'Left', ['←', h('span', { class: 'wide' }, ' Left')]), go(p.right, 'Right', [h('span', { class: 'wide' }, 'Right '), '→'])));
    const fact = (name, value, small, state) => h('div', null, h('dt', null, name), h('dd', { class: state }, value, small ? h('small', null, ' ' + small) : null));
    fill(this.facts, fact('Leader', s.leader || 'none', s.leader ? nameOf(k, s.leader) : '', s.leader ? null : 'bad'), fact('Size', bytes(s.bytes)), fact('Keys', short(s.keys), 'estimated'),
      fact('Writes', short(s.writes_per_s), '/s'), fact('Reads', short(s.reads_per_s), '/s'), fact('Term', lead ? int(lead.term) : '–'),
      fact('Version', s.version + '.' + s.conf_version), fact('Log', lead ? int(lead.last) : '–', 'last index'));
    const index = name => [name[0], r => r.problem && !r.term ? '–' : int(r[name[1]]), 'num'];
    fill(this.replicas, h('div', { class: 'top' }, h('h2', null, 'Replicas')), table('Replicas', [
      ['Node', r => [h('span', { class: 'sw', css: { background: `var(${nodeVar(r.node)})` } }), r.node, ' ', h('span', { class: 'muted' }, nameOf(k, r.node))]],
      ['Replica', r => r.replica, 'num'], ['Role', r => r.role],
      ['State', r => r.problem ? h('span', { class: 'state bad' }, r.problem) : h('span', { class: 'state ' + (r.state === 'leader' || r.state === 'follower' ? 'good' : 'warn') }, r.state + (r.quiesced ? ', asleep' : ''))],
      index(['Term', 'term']), index(['Last', 'last']), index(['Committed', 'committed']), index(['Applied', 'applied']), index(['Checkpoint', 'checkpoint']),
      ['Behind', r => lead && !r.problem ? behind(lead.last - r.last) : '–', 'num'], ['Size', r => r.problem && !r.term ? '–' : bytes(r.bytes), 'num'],
    ], p.replicas, r => 'r' + r.replica));
    fill(this.ops, h('div', { class: 'top' }, h('h2', null, 'Operations on this shard')), ...this.opList(p, k));
    fill(this.events, h('div', { class: 'top' }, h('h2', null, 'Recent events'), h('span', { class: 'muted' }, 'lines of the nodes\' logs that name this shard')), this.eventList(k));
  }

  opList(p, k) {
    const running = p.operations.filter(o => o.state === 'running'), ended = p.operations.filter(o => o.state !== 'running');
    return [running.length ? opTable('Running operations', running, k) : null, ended.length ? opTable('Ended operations', ended, k) : null,
      p.operations.length ? null : h('p', { class: 'empty' }, 'None on record.')];
  }

  eventList(k) {
    if (!k.session?.admin) return h('p', { class: 'empty' }, 'Logs are for administrators.');
    if (!this.log) return h('p', { class: 'empty' }, 'Asking…');
    const missing = this.log.missing.length ? h('p', { class: 'empty' }, 'Not in it: ' + this.log.missing.join('; ')) : null;
    if (!this.log.events.length) return [missing, h('p', { class: 'empty' }, 'None in what the nodes remember.')];
    return [missing, h('ol', { class: 'events', tabindex: 0, 'aria-label': 'Recent events, newest first' }, this.log.events.map(e => {
      const [at, text] = parse(e.line);
      return h('li', null, h('span', null, at ? clock(at, true) : ''), h('span', null, 'node ' + e.node), h('code', null, text));
    }))];
  }

  actions(p, k) {
    if (!k.session?.admin || p.meta) return null;
    const button = (label, f) => h('button', { class: 'btn', onclick: f }, label);
    return [button('Transfer', () => act.transfer(p.shard, k.nodes)), p.meta ? null : [button('Move', () => act.move(p.shard, k.nodes)),
      button('Split', () => act.split(p.shard)), p.right ? button('Merge', () => act.merge(p.shard, p.right)) : null]];
  }
}

const nameOf = (k, id) => k.nodes?.find(n => n.id === id)?.name || '';

const behind = n => n > 0 ? int(n) : '0';

// parse takes the time off a line of a log, text or JSON.
function parse(line) {
  let m = line.match(/^time=(\S+) (.*)$/);
  if (m) return [Date.parse(m[1]), m[2]];
  m = line.match(/^\{"time":"([^"]+)",(.*)\}$/);
  return m ? [Date.parse(m[1]), m[2]] : [0, line];
}
