// The page: which view is shown, what is asked for how often, and the line at the top.
import { h, fill, span } from './dom.js';
import { get, allShards } from './api.js';
import { Overview } from './overview.js';
import { Shards } from './shards.js';
import { Shard } from './shard.js';
import { Nodes } from './nodes.js';
import { Operations } from './operations.js';

// What is known: the last answers. A view reads it and is told when something has changed.
export const known = { session: null, status: null, nodes: null, ops: null, history: null, heat: null, shards: null, shardsAt: 0, failing: 0 };

const $ = id => document.getElementById(id);
let view = null, viewName = '', pending = false;

const routes = [
  [/^#\/shards(?:\?(.*))?$/, 'shards', m => new Shards(m[1])],
  [/^#\/shard\/(\d+)$/, 'shards', m => new Shard(m[1])],
  [/^#\/nodes$/, 'nodes', () => new Nodes()],
  [/^#\/operations$/, 'operations', () => new Operations()],
  [/^/, 'overview', () => new Overview()],
];

function route(first) {
  if (location.hash === '#main') return;
  const [re, name, make] = routes.find(r => r[0].test(location.hash));
  view?.close?.();
  view = make(location.hash.match(re));
  viewName = name;
  document.title = view.title + ' · kiloraft';
  for (const a of document.querySelectorAll('nav a')) {
    if (a.dataset.view === name) a.setAttribute('aria-current', 'page');
    else a.removeAttribute('aria-current');
  }
  $('main').replaceChildren(view.el);
  if (first !== true) {
    scrollTo(0, 0);
    $('main').focus({ preventScroll: true });
  }
  for (const t of tasks) if (t.when()) t.run();
  draw();
}

function draw() {
  pending = false;
  header();
  view.update(known);
}

// changed has the page drawn anew, once, soon.
export function changed() {
  if (pending) return;
  pending = true;
  if (document.hidden) setTimeout(draw, 100);
  else requestAnimationFrame(draw);
}

// task asks for something every so often, one question at a time, while somebody looks and when() holds.
function task(name, every, ask, when = () => true) {
  const t = { when, busy: false, timer: 0 };
  t.run = async () => {
    clearTimeout(t.timer);
    if (t.busy) return;
    if (!document.hidden && t.when()) {
      t.busy = true;
      try {
        known[name] = await ask();
        known[name + 'Error'] = '';
        if (name === 'nodes') known.failing = 0;
      } catch (e) {
        known[name + 'Error'] = e.message;
        if (name === 'nodes') {
          known.failing ||= Date.now();
          if (e.status === 503) known.failing = 0;
        }
      }
      t.busy = false;
      changed();
    }
    t.timer = setTimeout(t.run, every);
  };
  tasks.push(t);
  return t;
}

const tasks = [];
const on = (...names) => () => names.includes(viewName);
task('nodes', 750, async () => note(await get('/api/nodes')));
task('status', 1000, () => get('/api/status'));
task('ops', 1000, async () => (await get('/api/ops')).operations, on('operations', 'overview'));
task('history', 5000, () => get('/api/history'), on('overview', 'nodes'));
task('heat', 10000, () => get('/api/heat'), on('overview'));
task('shards', 5000, allShards, () => viewName === 'shards' && view instanceof Shards);
document.addEventListener('visibilitychange', () => { if (!document.hidden) tasks.forEach(t => t.run()); });

// refresh asks again at once, after something was done.
export const refresh = () => tasks.forEach(t => t.run());

// note remembers since when this page has seen a node not up, where nobody else can say.
const seen = new Map();
function note(nodes) {
  for (const n of nodes) {
    const bad = n.state === 'down' || n.state === 'suspect';
    if (!bad) seen.delete(n.id);
    else if (!seen.has(n.id)) seen.set(n.id, Date.now());
    n.since = bad ? n.since_ms || seen.get(n.id) : 0;
  }
  return nodes;
}

// problems are those of the status, and before it has heard of them, nodes that do not answer.
export function problems() {
  const list = (known.status?.problems || []).map(text => {
    const m = text.match(/,? ?since (\d{4}-[\dT:-]+Z)(?: \([^)]*\))?/);
    return { text: upper(m ? text.replace(m[0], '') : text), since: m ? Date.parse(m[1]) : 0, bad: /no leader|unavailable|cannot be changed/.test(text) };
  });
  for (const n of known.nodes || []) {
    if (n.since && !list.some(p => p.text.startsWith(`Node ${n.id} (`))) {
      list.unshift({ text: `Node ${n.id} (${n.name}, ${n.address}) is ${n.state === 'suspect' ? 'not answering' : n.state}`, since: n.since });
    }
  }
  return list;
}

const upper = text => text.charAt(0).toUpperCase() + text.slice(1);

let said = '';
function header() {
  const s = known.status, list = problems(), pill = $('health');
  const bad = s && s.shards.unavailable > 0;
  let state = 'wait', text = known.statusError || 'connecting';
  if (known.failing) [state, text] = ['bad', 'node not reachable'];
  else if (s && known.nodes) {
    [state, text] = bad ? ['bad', s.shards.unavailable + ' shards unavailable'] : list.length ? ['warn', list.length === 1 ? '1 problem' : list.length + ' problems'] : ['good', 'healthy'];
  }
  pill.dataset.state = state;
  fill(pill, text);
  if (text !== said && state !== 'wait') $('say').textContent = said = 'Cluster: ' + text;
  $('offline').hidden = !known.failing;
  if (known.failing) fill($('offline'), 'This node does not answer since ' + span(Date.now() - known.failing) + '. What is shown is old; trying again.');
  if (s) fill($('foot'), h('span', null, 'Cluster ', h('code', null, s.cluster_id)), h('span', null, `Answered by node ${s.node}`), h('span', null, s.version));
  who();
}

function who() {
  const u = known.session;
  if (!u) return;
  if (u.by === 'nothing') fill($('who'), h('span', { title: 'This cluster has no certificates: everybody may look, and nothing can be changed here.' }, 'view only'));
  else fill($('who'), h('span', null, u.user + (u.admin ? '' : ' (view only)')),
    u.by === 'session' || u.by === 'password' ? h('form', { method: 'post', action: '/logout' }, h('button', { class: 'btn link' }, 'Log out')) : null);
}

get('/session').then(u => { known.session = u; changed(); }).catch(() => {});
addEventListener('hashchange', route);
route(true);
