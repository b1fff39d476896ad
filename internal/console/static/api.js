// The node's endpoints.

// Failure is an answer that was none: its text is for people.
export class Failure extends Error {
  constructor(text, status) { super(text); this.status = status; }
}

async function ask(path, options, patience) {
  let res;
  try {
    res = await fetch(path, { credentials: 'same-origin', cache: 'no-store', signal: AbortSignal.timeout(patience), ...options });
  } catch (e) {
    throw new Failure(e.name === 'TimeoutError' ? 'no answer' : 'not reachable', 0);
  }
  if (res.status === 401) {
    location.assign('/login');
    throw new Failure('you are not logged in', 401);
  }
  if (!res.ok) throw new Failure((await res.text()).trim() || res.statusText, res.status);
  return res.json();
}

export const get = (path, patience = 8000) => ask(path, {}, patience);
export const post = (path, body) =>
  ask(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body || {}) }, 15000);

// allShards reads all pages: one, but for a great many shards. 20 pages are 327,680.
export async function allShards() {
  const out = [];
  let from = '';
  for (let page = 0; page < 20; page++) {
    const p = await get('/api/shards?limit=16384&from=' + encodeURIComponent(from));
    for (const s of p.shards) out.push(s);
    if (p.next == null) break;
    from = p.next;
  }
  return out;
}
