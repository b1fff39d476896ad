// Nodes: state, load, and draining.
import { h, fill, table, bytes, short, secs, span, clock, nodeVar } from './dom.js';
import { merge } from './chart.js';
import { meter } from './overview.js';
import { drain, undrain } from './actions.js';

export const stateOf = n => h('span', { class: 'state ' + ({ up: 'good', suspect: 'warn', down: 'bad', draining: 'warn' }[n.state] || '') }, n.state);

export class Nodes {
  title = 'Nodes';

  constructor() {
    this.card = h('section', { class: 'card' });
    this.el = h('div', null, h('div', { class: 'head' }, h('h1', null, 'Nodes')), this.card);
  }

  update(k) {
    if (!k.nodes) return fill(this.card, h('p', { class: 'empty' }, k.nodesError || 'Asking…'));
    const nodes = k.nodes.filter(n => n.state !== 'removed'), gone = k.nodes.length - nodes.length;
    const last = merge(k.history).at(-1), of = n => n.state === 'down' ? null : last?.nodes[last.ids.indexOf(n.id)];
    const most = Math.max(1, ...nodes.map(n => n.replicas)), mine = k.session?.admin;
    const versions = new Set(nodes.map(n => n.version).filter(Boolean)).size;
    const labels = nodes.some(n => Object.keys(n.labels).length);
    fill(this.card, table('Nodes', [
      ['Id', n => n.id, 'num'],
      ['Name', n => [h('span', { class: 'sw', css: { background: `var(${nodeVar(n.id)})` } }), n.name, h('span', { class: 'sub' }, n.address)]],
      ['State', n => [stateOf(n), n.since ? h('span', { class: 'muted' }, ` since ${clock(n.since, true)} (${span(Date.now() - n.since)})`) : null]],
      ['Leaders', n => meter(n.leaders, most, 'lead')],
      ['Replicas', n => meter(n.replicas, most)],
      ['Writes/s', n => short(of(n)?.writes), 'num'],
      ['Reads/s', n => short(of(n)?.reads), 'num'],
      ['Commit p99', n => secs(of(n)?.commit_p99), 'num'],
      ['CPU', n => short(of(n)?.cpu), 'num'],
      ['Memory', n => bytes(of(n)?.memory_bytes), 'num'],
      ['Disk free', n => bytes(of(n)?.disk_free_bytes), 'num'],
      ['Up for', n => n.started_ms && !n.since ? span(Date.now() - n.started_ms) : '–', 'num'],
      ...(labels ? [['Labels', n => Object.entries(n.labels).sort().map(([a, b]) => a + '=' + b).join(' ')]] : []),
      ...(versions > 1 ? [['Version', n => h('span', { class: 'mono' }, n.version || '–')]] : []),
      ...(mine ? [[h('span', { class: 'hidden' }, 'Actions'), n => n.state === 'draining'
        ? h('button', { class: 'btn', onclick: () => undrain(n), 'aria-label': 'Undrain ' + n.name }, 'Undrain')
        : h('button', { class: 'btn', onclick: () => drain(n), 'aria-label': 'Drain ' + n.name }, 'Drain')]] : []),
    ], nodes, n => 'node' + n.id), gone ? h('p', { class: 'empty' }, `${gone} removed.`) : null);
  }
}
