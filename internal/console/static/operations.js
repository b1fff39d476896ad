// Operations: what runs, how far it is, why it is stuck, and what has ended.
import { h, fill, table, bytes, span, clock } from './dom.js';
import { cancelOp } from './actions.js';

export class Operations {
  title = 'Operations';

  constructor() {
    this.running = h('section', { class: 'card' });
    this.ended = h('section', { class: 'card' });
    this.el = h('div', null, h('div', { class: 'head' }, h('h1', null, 'Operations')), this.running, this.ended);
  }

  update(k) {
    const ops = k.ops || [], running = ops.filter(o => o.state === 'running'), ended = ops.filter(o => o.state !== 'running');
    fill(this.running, h('div', { class: 'top' }, h('h2', null, running.length ? `${running.length} running` : 'Running')),
      k.opsError ? h('p', { class: 'empty', role: 'alert' }, 'Operations cannot be read now: ' + k.opsError) : running.length ? opTable('Running operations', running, k) : h('p', { class: 'empty' }, k.ops ? 'None.' : 'Asking…'));
    fill(this.ended, h('div', { class: 'top' }, h('h2', null, 'Ended')), ended.length ? opTable('Operations that have ended', ended, k) : h('p', { class: 'empty' }, 'None.'));
  }
}

// what is the operation in words, without its number.
export const what = o => o.what.replace(/^operation \d+ \((.*)\)$/, '$1');

const states = { running: '', done: 'good', failed: 'bad', cancelled: 'warn' };

// opTable lists operations; brief leaves out what a small place has no room for.
export function opTable(name, ops, k, brief) {
  const mine = k.session?.admin && k.session.by !== 'nothing';
  const running = ops[0]?.state === 'running';
  return table(name, [
    ['No.', o => o.id, 'num'],
    ['What', o => [what(o), brief || !o.why ? null : h('span', { class: 'muted' }, ' · ' + o.why)], 'wrap'],
    running ? ['Progress', progress] : ['State', o => h('span', { class: 'state ' + states[o.state] }, o.state)],
    ...(brief ? [] : [[running ? 'Waits for' : 'Outcome', o => o.reason || o.error || (running ? '' : '–'), 'wrap'],
      ['Started', o => h('time', { datetime: o.started }, when(o.started))],
      running ? ['Runs for', o => span(Date.now() - Date.parse(o.started))] : ['Took', o => o.ended === o.started ? 'under 1 s' : span(Date.parse(o.ended) - Date.parse(o.started))]]),
    ...(running && !brief && mine ? [['', o => o.cancel ? h('span', { class: 'muted' }, 'stopping') : h('button', { class: 'btn', onclick: () => cancelOp(o), 'aria-label': 'Cancel operation ' + o.id }, 'Cancel')]] : []),
  ], ops, o => 'op' + o.id);
}

const when = text => (Date.now() - Date.parse(text) > 86400000 ? text.slice(0, 10) + ' ' : '') + clock(Date.parse(text), true);

function progress(o) {
  const total = o.bytes_total || o.total, done = o.bytes_total ? o.bytes_done : o.done;
  return [h('progress', { max: Math.max(total, 1), value: Math.min(done, Math.max(total, 1)), 'aria-label': `Progress of operation ${o.id}` }), ' ',
    h('span', { class: 'muted' }, [o.step, o.total ? `${o.done}/${o.total}` : '', o.bytes_total ? `${bytes(o.bytes_done)} of ${bytes(o.bytes_total)}` : ''].filter(Boolean).join(' · '))];
}
