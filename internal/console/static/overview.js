// Health in words, the figures of the moment, charts, heat, and what runs.
import { h, fill, table, int, short, bytes, secs, span, clock, nodeVar } from './dom.js';
import { problems } from './app.js';
import { Chart, merge } from './chart.js';
import { Heat } from './heat.js';
import { opTable } from './operations.js';

export class Overview {
  title = 'Overview';

  constructor() {
    this.head = h('div', { class: 'head' });
    this.problems = h('section', { class: 'card', 'aria-label': 'Problems' });
    this.facts = h('dl', { class: 'facts' });
    this.heat = new Heat();
    this.nodes = h('section', { class: 'card' });
    this.ops = h('section', { class: 'card' });
    const worst = ' (worst node)';
    this.charts = [
      new Chart('Requests per second', short, [['writes', '--s1'], ['reads', '--s3']], s => [sum(s, 'writes'), sum(s, 'reads')]),
      new Chart('Commit latency' + worst, secs, [['p50', '--s3'], ['p99', '--s2']], s => [max(s, 'commit_p50'), max(s, 'commit_p99')]),
      new Chart('Disk sync, p99', secs, 'nodes', s => each(s, 'sync_p99')),
      new Chart('CPU, cores', short, 'nodes', s => each(s, 'cpu')),
      new Chart('Network, bytes per second', bytes, [['in', '--s1'], ['out', '--s3']], s => [sum(s, 'net_in'), sum(s, 'net_out')]),
      new Chart('Refused requests per second', short, 'nodes', s => each(s, 'refused')),
    ];
    const toggle = h('button', { class: 'btn link', 'aria-pressed': 'false', onclick: () => {
      toggle.setAttribute('aria-pressed', String(this.figures.classList.toggle('tables')));
      toggle.textContent = this.figures.classList.contains('tables') ? 'Show charts' : 'Show tables';
    } }, 'Show tables');
    this.figures = h('section', { class: 'card', 'aria-label': 'The last hour' },
      h('div', { class: 'top' }, h('h2', null, 'The last hour'), h('span', { class: 'tail' }, toggle)),
      h('div', { class: 'charts' }, this.charts.map(c => c.el)));
    this.el = h('div', null, this.head, this.problems, this.facts, this.heat.el, this.figures, h('div', { class: 'two' }, this.nodes, this.ops));
  }

  close() {
    this.charts.forEach(c => c.close());
    this.heat.close();
  }

  update(k) {
    const s = k.status;
    fill(this.head, h('h1', null, headline(s, k)));
    const list = problems();
    this.problems.hidden = !list.length;
    fill(this.problems, h('div', { class: 'top' }, h('h2', null, list.length === 1 ? '1 problem' : list.length + ' problems')),
      h('ul', { class: 'problems' }, list.map(p => h('li', { class: p.bad ? 'bad' : null }, h('span', null, p.text),
        p.since ? h('time', { datetime: new Date(p.since).toISOString() }, `since ${clock(p.since, true)} (${span(Date.now() - p.since)})`) : null))));
    fill(this.facts, facts(k));
    this.heat.update(k.heat, k.heatError);
    const samples = merge(k.history);
    this.charts.forEach(c => c.update(samples));
    if (k.nodes) fill(this.nodes, h('div', { class: 'top' }, h('h2', null, 'Leaders and replicas'), h('span', { class: 'tail' }, h('a', { href: '#/nodes' }, 'Nodes'))), balance(k.nodes));
    const running = (k.ops || []).filter(o => o.state === 'running');
    fill(this.ops, h('div', { class: 'top' }, h('h2', null, 'Running operations'), h('span', { class: 'tail' }, h('a', { href: '#/operations' }, 'Operations'))),
      running.length ? opTable('Running operations', running.slice(0, 12), k, true) : h('p', { class: 'empty' }, k.opsError ? 'Cannot be read now: ' + k.opsError : 'None.'));
  }
}

function headline(s, k) {
  if (!s) return k.statusError || 'Asking the cluster…';
  const n = `${s.nodes.up} of ${s.nodes.total} nodes`;
  if (s.shards.unavailable) return `${int(s.shards.unavailable)} of ${int(s.shards.total)} shards cannot be read or written.`;
  const all = s.shards.total === 1 ? 'The shard serves' : `All ${int(s.shards.total)} shards serve`;
  return s.nodes.up < s.nodes.total ? `${all}, on ${n}.` : `${all}, on ${s.nodes.total === 1 ? 'one node' : s.nodes.total + ' nodes'}.`;
}

function facts(k) {
  const s = k.status, now = merge(k.history).at(-1);
  const fact = (name, value, small, state) => h('div', null, h('dt', null, name), h('dd', { class: state }, value, small ? h('small', null, ' ' + small) : null));
  if (!s) return [];
  return [
    fact('Nodes up', s.nodes.up, 'of ' + s.nodes.total, s.nodes.up < s.nodes.total ? 'warn' : null),
    fact('Shards with leader', int(s.shards.with_leader), 'of ' + int(s.shards.total), s.shards.with_leader < s.shards.total ? 'bad' : null),
    fact('Under-replicated', int(s.shards.under_replicated), s.shards.under_replicated === 1 ? 'shard' : 'shards', s.shards.under_replicated ? 'warn' : null),
    fact('Replicas', int(s.replicas)),
    fact('Operations', int(s.operations.running), 'running'),
    fact('Writes', now ? short(sum(now, 'writes')) : '–', '/s'),
    fact('Reads', now ? short(sum(now, 'reads')) : '–', '/s'),
    fact('Commit p99', now ? secs(max(now, 'commit_p99')) : '–'),
  ];
}

function balance(nodes) {
  nodes = nodes.filter(n => n.state !== 'removed');
  const most = Math.max(1, ...nodes.map(n => n.replicas));
  return table('Leaders and replicas per node', [
    ['Node', n => [h('span', { class: 'sw', css: { background: `var(${nodeVar(n.id)})` } }), n.name || n.id]],
    ['Leaders', n => meter(n.leaders, most, 'lead')],
    ['Replicas', n => meter(n.replicas, most)],
  ], nodes);
}

export const meter = (n, most, kind) =>
  h('span', { class: 'meter ' + (kind || '') }, h('span', null, int(n)), h('i', { 'aria-hidden': 'true' }, h('b', { css: { width: 100 * n / most + '%' } })));

// Of the samples of all nodes at a moment.
const values = (s, name) => s.nodes.map(n => n?.[name]).filter(v => v != null);
const sum = (s, name) => values(s, name).reduce((a, b) => a + b, 0);
const max = (s, name) => Math.max(0, ...values(s, name));
const each = (s, name) => s.nodes.map(n => n?.[name] ?? null);
