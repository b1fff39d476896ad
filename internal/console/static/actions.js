// What an administrator may change: each asks first, and says how the command line does the same.
import { h, fill } from './dom.js';
import { post } from './api.js';
import { known, refresh } from './app.js';
import { what } from './operations.js';

// say shows a line for a while.
export function say(text) {
  const box = document.getElementById('toast');
  fill(box, h('p', null, text));
  setTimeout(() => { if (box.textContent === text) fill(box); }, 6000);
}

// ask opens a dialog. fields: [name, label, [[value, text]…] or '' for text]. command and request take the values.
function ask({ title, text, fields = [], go, stay = 'Cancel', command, request }) {
  const may = known.session?.admin && known.session.by !== 'nothing';
  const inputs = {}, shell = h('pre'), error = h('p', { class: 'error', role: 'alert', hidden: true });
  const values = () => Object.fromEntries(Object.entries(inputs).map(([k, el]) => [k, el.value]));
  const show = () => { shell.textContent = 'kiloraft ' + command(values()); };
  const rows = fields.map(([name, label, options]) => h('label', null, label, inputs[name] = options
    ? h('select', { onchange: show }, options.map(([value, shown]) => h('option', { value }, shown)))
    : h('input', { oninput: show, autocomplete: 'off', spellcheck: 'false' })));
  const run = h('button', { class: 'btn main' }, go), close = h('button', { class: 'btn', type: 'button', onclick: () => dialog.close() }, may ? stay : 'Close');
  const submit = async e => {
    e.preventDefault();
    if (!may) return;
    run.disabled = true;
    error.hidden = true;
    try {
      const [path, body] = request(values());
      const o = await post(path, body);
      dialog.close();
      say(o.id ? `Operation ${o.id} has started.` : 'Done.');
      refresh();
    } catch (x) {
      error.textContent = x.message;
      error.hidden = false;
    }
    run.disabled = false;
  };
  const dialog = h('dialog', { 'aria-labelledby': 'dialog-title', onclose: () => dialog.remove() }, h('form', { onsubmit: submit }, h('h2', { id: 'dialog-title' }, title), h('p', { class: 'muted' }, text), rows,
    h('p', { class: 'muted' }, may ? 'The same on the command line:' : 'Nobody is authenticated here, so the console changes nothing. On the command line:'), shell, error,
    h('div', { class: 'buttons' }, close, may ? run : null)));
  show();
  document.body.append(dialog);
  dialog.showModal();
}

const options = (nodes, good) => (nodes || []).filter(good).map(n => [n.id, `${n.id} (${n.name})`]);
const op = body => ['/api/ops', body];

export function transfer(s, nodes) {
  const held = s.replicas.filter(r => r.role === 'voter' && r.node !== s.leader).map(r => r.node);
  ask({ title: `Transfer shard ${s.id}`, text: `Hands the leadership, now at node ${s.leader || 'none'}, to another replica.`, go: 'Transfer',
    fields: [['to', 'To node', options(nodes, n => held.includes(n.id))]], command: v => `shard transfer ${s.id} --to ${v.to}`,
    request: v => op({ kind: 'transfer', shard: s.id, to: Number(v.to) }) });
}

export function move(s, nodes) {
  const held = s.replicas.map(r => r.node);
  ask({ title: `Move a replica of shard ${s.id}`, text: 'Adds a replica on the new node, waits until it has caught up, and then removes the old one.', go: 'Move',
    fields: [['from', 'From node', options(nodes, n => held.includes(n.id))], ['to', 'To node', options(nodes, n => !held.includes(n.id) && n.state === 'up')]],
    command: v => `shard move ${s.id} --from ${v.from} --to ${v.to}`, request: v => op({ kind: 'move', shard: s.id, from: Number(v.from), to: Number(v.to) }) });
}

export function split(s) {
  const quote = k => `'${k.replaceAll("'", `'\\''`)}'`;
  ask({ title: `Split shard ${s.id}`, text: 'At a key, which becomes the first of the right part; or, without one, into parts of about the same size. Unprintable bytes are \\xNN.', go: 'Split',
    fields: [['at', 'At key'], ['parts', 'or into parts', [2, 3, 4, 8, 16].map(n => [n, n])]],
    command: v => `shard split ${s.id} ` + (v.at ? `--at ${quote(v.at)}` : `--parts ${v.parts}`),
    request: v => op(v.at ? { kind: 'split', shard: s.id, keys: [v.at] } : { kind: 'split', shard: s.id, parts: Number(v.parts) }) });
}

export function merge(s, right) {
  ask({ title: `Merge shard ${s.id} with ${right}`, text: `Shard ${s.id} absorbs its right neighbour, shard ${right}. If they are on different nodes, the replicas of the right one are moved first.`, go: 'Merge',
    command: () => `shard merge ${s.id} ${right}`, request: () => op({ kind: 'merge', shard: s.id, other: right }) });
}

export function drain(n) {
  ask({ title: `Drain ${n.name}`, text: `Moves all leaders, then all replicas, off node ${n.id}. Nothing is placed on it until it is undrained.`, go: 'Drain',
    command: () => `node drain ${n.id}`, request: () => op({ kind: 'drain', from: n.id }) });
}

export function undrain(n) {
  ask({ title: `Undrain ${n.name}`, text: `Stops a drain that runs, and lets node ${n.id} take replicas again.`, go: 'Undrain',
    command: () => `node undrain ${n.id}`, request: () => [`/api/nodes/${n.id}/undrain`, {}] });
}

export function cancelOp(o) {
  ask({ title: `Cancel operation ${o.id}`, text: `To ${what(o)}. It stops at the next step at which that is safe.`, go: 'Cancel the operation', stay: 'Let it run',
    command: () => `op cancel ${o.id}`, request: () => [`/api/ops/${o.id}/cancel`, {}] });
}
