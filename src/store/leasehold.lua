#!lua name=leasehold1
-- The lease protocol: every step is decided inside one call, on this server's clock.
--
-- Keys of a lock, in this order wherever a function takes a lock:
--   <prefix>:{namespace/name}:lock     hash, no TTL: `config`, `state`, and `id:<id>` of each hold and of the
--                                      last ids that ended; one key, so that no eviction can tear them
--   <prefix>:{namespace/name}:queue    sorted set, all scores 0: priority, arrival, id
--   <prefix>:{namespace/name}:waiters  hash: id -> what it asks for
-- Key of a store: <prefix>:store, a hash: uid, term, reign, mark, epoch, run_id, replid.
-- Channel of a waiter: <prefix>:{namespace/name}:inbox:<id>.
--
-- Wake one, in one way. Whoever queues is answered with this clock and the gate's epoch. A promotion writes an offer
-- and publishes `offer <token> <expires>` to its waiter's inbox, in one step. Token and answer of one epoch come from
-- one process, so that `expires` minus the answered time is what remained when the waiter sent its request: it may
-- believe the offer by that at once, however late the message is, and then renews, which makes it a hold. A message
-- of another epoch is a hint: ask. What a crash leaves: of this process, as with an answer that was just given, a
-- lease that the quarantine waits out; of the waiter, an offer that ends by itself; a lost message, a waiter that
-- asks in time.
--
-- Time takes a hold that nobody was told of, and leaves its place. One that the controller has asked for remembers where it
-- stood. Until it is pinned nobody was told: where time takes it, since the controller was away, its id stands there again,
-- reserved, before all that came later, and nothing has ended. Where a claim must begin anew, under another id, that one is
-- put there by the same call that frees the one before. What a crash leaves: each is one write. A replica that lags, or an
-- older copy, has the hold or the place, which is the same. Where its token is older than etcd's, etcd's is put back. What
-- etcd alone remembers is put back with its place, too, if it has one there.
-- Between the claim's next attempt in etcd and that call the id of before stays where it is, and nobody has it: the
-- controller's look at the lock frees it so, too.
--
-- A hold is an `offer` (promoted, not yet accepted), `held`, or `pinned` (time alone never takes it).
-- Modes: `c` counts its permits; `s` all shared holders together take one permit; `x` exclusive.
-- Times are milliseconds; replies carry what remains, computed by that very call.

local LAYOUT = 1                 -- of the record; also in the name of every function
local VERSION = 5                -- of this code; a newer one replaces an older one, never the reverse
local EPOCH = 4294967296         -- tokens of one epoch: 2^32
local REMEMBERED = 128           -- ended ids per lock
local REMEMBER_MS = 60000
local REFRESH_MS = 15000         -- a waiter is dropped after min(lease, this) without a sign of life
local HEARTBEAT_STALE_MS = 10000
local LOOK_MS = 10               -- how long a look at INFO replication is believed
local CONFIGS_KNOWN = 4096       -- configurations kept unpacked

-- Memory of this process alone: not saved, not replicated, empty after a restart or a reload.
-- gates: store uid -> {epoch, replid, look, heartbeat, changed, told, batch}; `changed` are the keys of the records
-- that have changed since the controller asked, whatever happens to a lock many times a second. terms: store uid -> the highest term seen; a FLUSHALL or a
-- gate that closes leaves it alone.
local gates, terms = {}, {}

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function replication()
  local info = redis.call('INFO', 'replication')
  return info:match('role:(%a+)'), info:match('master_replid:(%x+)')
end

-- The gate of a store, or nil while it is closed.
local function open_gate(store, now)
  local gate = gates[store]
  if not gate then return nil end
  if now < gate.look or now >= gate.look + LOOK_MS then
    local role, replid = replication()
    if role ~= 'master' or replid ~= gate.replid then
      gates[store] = nil
      return nil
    end
    gate.look = now
  end
  return gate
end

-- ---------------------------------------------------------------- the record

-- Packed by `struct`, in a quarter of the time that cmsgpack takes; all numbers are doubles, exact below 2^53.

local CONFIG = '<BI4c0I4c0ddddB'
local STATE = '<dddddddddd'
local HOLD, HOLD_START, HOLD_PLACE = '<c1c1dddddI4c0I4c0', '<c1c1dd', '<ddB'   -- the place follows, if any
local ENDED_ID, ENDED_SIZE = '<ddc1', 17   -- no hold is so short
local WAITER = '<c1dddddBI4c0I4c0'
-- Who waits: a process by itself, one for which the controller asks, or such a one whose place is reserved: it must hold
-- other locks first, or has lost an untold hold. When its turn comes it is kept as long as an offer would be, once; then it
-- is passed over until it claims. It is never given an offer: two that each had one and wanted the other's would wait for
-- each other.
local DIRECT, DELEGATED, RESERVED = 0, 1, 2
local AGAIN = 4                            -- added to them where time has taken a hold of this id that was never renewed
local COLON = 58
local HOLD_STATES = {o = 'offer', h = 'held', p = 'pinned'}

local function pack_config(h)
  return struct.pack(CONFIG, LAYOUT, #h.store, h.store, #h.lock, h.lock, h.generation, h.permits, h.lease, h.max_hold,
    h.elected)
end

-- Read configurations, by their packed form: most calls find theirs here.
local configs, configs_known = {}, 0

local function unpack_config(raw)
  local c = configs[raw]
  if c then return c end
  local layout = raw:byte(1)
  if layout ~= LAYOUT then error('record has layout ' .. tostring(layout) .. ', this library reads ' .. LAYOUT) end
  c = {}
  layout, c.store, c.lock, c.generation, c.permits, c.lease, c.max_hold, c.elected = struct.unpack(CONFIG, raw)
  if configs_known >= CONFIGS_KNOWN then configs, configs_known = {}, 0 end
  configs[raw], configs_known = c, configs_known + 1
  return c
end

local function pack_state(h)
  return struct.pack(STATE, h.last, h.used, h.shared, h.exclusive, h.waiters, h.seq, h.finished, h.sealed,
    h.not_before, h.due)
end

local function unpack_header(config, state)
  local c = unpack_config(config)
  local last, used, shared, exclusive, waiters, seq, finished, sealed, not_before, due = struct.unpack(STATE, state)
  return {store = c.store, lock = c.lock, generation = c.generation, permits = c.permits, lease = c.lease,
    max_hold = c.max_hold, elected = c.elected, last = last, used = used, shared = shared, exclusive = exclusive, waiters = waiters,
    seq = seq, finished = finished, sealed = sealed, not_before = not_before, due = due}
end

local function pack_hold(o)
  local raw = struct.pack(HOLD, o.state, o.mode, o.token, o.permits, o.acquired, o.renewed, o.expires,
    #o.identity, o.identity, #o.pod, o.pod)
  return o.seq and raw .. struct.pack(HOLD_PLACE, o.seq, o.priority, o.again) or raw
end

-- nil where the id has ended.
local function unpack_hold(raw)
  if #raw == ENDED_SIZE then return nil end
  local state, mode, token, permits, acquired, renewed, expires, identity, pod, after = struct.unpack(HOLD, raw)
  local seq, priority, again
  if after <= #raw then seq, priority, again = struct.unpack(HOLD_PLACE, raw, after) end
  return {state = HOLD_STATES[state], mode = mode, token = token, permits = permits, acquired = acquired,
    renewed = renewed, expires = expires, identity = identity, pod = pod, seq = seq, priority = priority, again = again}
end

local function pack_waiter(w)
  return struct.pack(WAITER, w.mode, w.seq, w.priority, w.permits, w.deadline, w.refresh, w.delegated + w.again,
    #w.identity, w.identity, #w.pod, w.pod)
end

local function unpack_waiter(raw)
  local w = {}
  local who
  w.mode, w.seq, w.priority, w.permits, w.deadline, w.refresh, who, w.identity, w.pod = struct.unpack(WAITER, raw)
  w.delegated = who % AGAIN
  w.again = who - w.delegated
  return w
end

local function member(w, id)
  return string.format('%010.0f%017.0f', 2147483647 - w.priority, w.seq) .. id
end

-- Writes are collected, the last one of a field counts, and flushed once, at the end of a call.
local function put(l, field, value)
  local n = #l.sets
  l.sets[n + 1] = field
  l.sets[n + 2] = value
end

local function field_of(l, id)
  return id == l.id and l.field or 'id:' .. id
end

local function put_hold(l, id, o)
  put(l, field_of(l, id), pack_hold(o))
end

-- Calls `see` for each hold in the record.
local function each_hold(key, see)
  local all = redis.call('HGETALL', key)
  for i = 1, #all, 2 do
    local o = all[i]:sub(1, 3) == 'id:' and unpack_hold(all[i + 1])
    if o then see(all[i]:sub(4), o) end
  end
end

-- Drops the ended ids that are no longer remembered. They stay in the record for a while, since it is cheaper to
-- drop many at once.
local function forget(l)
  local all, over, oldest = redis.call('HGETALL', l.key), {}, l.h.finished - REMEMBERED
  for i = 1, #all, 2 do
    local value = all[i + 1]
    local of_id = #value == ENDED_SIZE and all[i]:byte(3) == COLON
    if of_id and struct.unpack(ENDED_ID, value) < oldest then over[#over + 1] = all[i] end
  end
  for i = 1, #over, 1000 do redis.call('HDEL', l.key, unpack(over, i, math.min(i + 999, #over))) end
end

local function note_change(store, key)
  local gate = gates[store]
  if gate then gate.changed[key] = true end
end

-- PUBLISH comes last and may be refused: the writes stand. `unpack` takes some thousands of values at most.
local function flush(l)
  local sets = l.sets
  sets[2] = pack_state(l.h)
  for i = 1, #sets, 1000 do redis.call('HSET', l.key, unpack(sets, i, math.min(i + 999, #sets))) end
  if l.forget then forget(l) end
  note_change(l.h.store, l.key)
  if l.offers then
    local inbox = l.key:sub(1, -5) .. 'inbox:'
    for id, o in pairs(l.offers) do
      redis.pcall('PUBLISH', inbox .. id, string.format('offer %.0f %.0f', o.token, o.expires))
    end
  end
end

-- The reply, after what the call has changed is written.
local function done(l, reply)
  if l.changed then flush(l) end
  return reply
end

-- Remembers that an id has ended, and how: `r`eleased, `e`xpired, `c`ancelled. A late duplicate of its
-- acquire then grants nothing, and a controller that comes back sees that a claim has ended, and begins anew. Of a lock
-- the last REMEMBERED are remembered, so long, whatever the lease: it may take a while to come back.
local function remember(l, id, how, now)
  local h = l.h
  put(l, field_of(l, id), struct.pack(ENDED_ID, h.finished, now + REMEMBER_MS, how))
  h.finished = h.finished + 1
  if h.finished % REMEMBERED == 0 then l.forget = true end
end

-- How an id ended, if that is remembered.
local function ended(h, raw, now)
  local number, till, how = struct.unpack(ENDED_ID, raw)
  return till > now and number >= h.finished - REMEMBERED and how or nil
end

-- Whether it ended no longer ago than a lease.
local function has_just_ended(h, raw, now)
  local _, till = struct.unpack(ENDED_ID, raw)
  return ended(h, raw, now) and now < till - REMEMBER_MS + math.min(h.lease, REMEMBER_MS)
end

local function count(h, o, sign)
  if o.mode == 'x' then h.exclusive = h.exclusive + sign
  elseif o.mode == 's' then h.shared = h.shared + sign
  else h.used = h.used + sign * o.permits end
end

local function vacate(h, o)
  count(h, o, -1)
  if h.used + h.shared + h.exclusive == 0 then h.due = 0 end
end

local function end_hold(l, id, o, how, now)
  vacate(l.h, o)
  remember(l, id, how, now)
end

-- Takes this place in the queue.
local function stand(l, id, w)
  l.h.waiters = l.h.waiters + redis.call('ZADD', l.queue, 0, member(w, id))
  redis.call('HSET', l.waiters, id, pack_waiter(w))
end

-- The place of one that stood there, reserved.
local function reserved(stood, again)
  return {seq = stood.seq, priority = stood.priority, permits = stood.permits, mode = stood.mode, delegated = RESERVED,
    again = again, identity = stood.identity, pod = stood.pod, deadline = stood.deadline or 0, refresh = 0}
end

-- Whether a hold that time takes, or that is given up for now, leaves its id a place. Not twice where it wasn't renewed:
-- who is granted again and again and can't be told would keep it from everybody.
local function keeps_place(h, o)
  local had_all = h.max_hold > 0 and o.expires >= o.acquired + h.max_hold
  local in_vain = o.again == AGAIN and o.renewed == o.acquired
  return o.seq and o.state ~= 'pinned' and h.sealed == 0 and h.elected == 0 and not had_all and not in_vain
end

-- Its id holds no more, and waits where it stood, reserved.
local function stand_again(l, id, o, again)
  stand(l, id, reserved(o, again))
  redis.call('HDEL', l.key, field_of(l, id))
  vacate(l.h, o)
  if id == l.id then l.holder = nil end
  l.changed = true
end

local function due_at(h, time)
  if h.due == 0 or time < h.due then h.due = time end
end

-- Ends every unpinned hold whose time is over, the oldest grant first, or has its id stand where it stood, and writes that:
-- what follows may fail. `due` is a lower bound of the next such time, so that most calls read no holder but their own.
local function sweep(l, now)
  local h = l.h
  if h.due == 0 or h.due > now then return end
  h.due = 0
  local over = {}
  each_hold(l.key, function(id, o)
    if o.state == 'pinned' then return end
    if o.expires <= now then over[#over + 1] = {id = id, o = o} else due_at(h, o.expires) end
  end)
  table.sort(over, function(a, b) return a.o.token < b.o.token end)
  for _, hold in ipairs(over) do
    if keeps_place(h, hold.o) then
      stand_again(l, hold.id, hold.o, hold.o.renewed == hold.o.acquired and AGAIN or 0)
    else
      end_hold(l, hold.id, hold.o, 'e', now)
      if hold.id == l.id then l.holder, l.ended = nil, 'e' end
    end
  end
  flush(l)
  l.sets, l.changed, l.forget = {'state', false, nil, nil}, false, false
end

-- A lock as this call sees it, without what is not yet known. All fields at once: a table that grows is slow.
local function handle(keys, first, h, id, field, holder)
  return {key = keys[first], queue = keys[first + 1], waiters = keys[first + 2], h = h, id = id, field = field,
    holder = holder, ended = nil, changed = false, forget = false, offers = nil, turn = 0,
    sets = {'state', false, nil, nil}}
end

local function read(key, field)
  local raw = redis.call('HMGET', key, 'config', 'state', field)
  return raw[1], raw[2], raw[3]
end

-- The lock as one id sees it: header, its own hold, how it ended. nil: no record.
local function load(keys, first, id, now, config, state, own)
  if not state then config, state, own = read(keys[first], 'id:' .. id) end
  if not config then return nil end
  local hold = own and unpack_hold(own)
  local l = handle(keys, first, unpack_header(config, state), id, 'id:' .. id, hold)
  sweep(l, now)
  if own and not hold then l.ended = ended(l.h, own, now) end
  return l
end

-- ---------------------------------------------------------------- the queue

local function load_waiter(l, id)
  local raw = redis.call('HGET', l.waiters, id)
  return raw and unpack_waiter(raw)
end

local function dequeue(l, id, m)
  l.h.waiters = math.max(0, l.h.waiters - redis.call('ZREM', l.queue, m))
  redis.call('HDEL', l.waiters, id)
  l.changed = true
end

local function gone(w, now)
  return (w.delegated == DIRECT and w.refresh <= now) or (w.deadline ~= 0 and w.deadline <= now)
end

local function refresh_ms(h)
  return math.min(h.lease, REFRESH_MS)
end

local function next_seq(h, now)
  h.seq = math.max(h.seq + 1, now * 1000)
  return h.seq
end

-- Takes a place at the end of its priority, or shows that the waiter is alive.
local function enqueue(l, id, ask, now)
  local h = l.h
  local w = h.waiters > 0 and load_waiter(l, id) or nil
  if w and gone(w, now) then
    dequeue(l, id, member(w, id))
    w = nil
  end
  if not w then
    w = {seq = next_seq(h, now), priority = ask.priority, permits = ask.permits, mode = ask.mode, delegated = ask.delegated,
      again = 0, identity = ask.identity, pod = ask.pod, refresh = 0}
    l.changed = true
  end
  if ask.delegated ~= DIRECT and ask.delegated ~= w.delegated then w.delegated, w.refresh = ask.delegated, 0 end
  w.deadline = ask.wait < 0 and 0 or now + math.max(1, ask.wait)
  if w.delegated == DIRECT then w.refresh = now + refresh_ms(h) end
  stand(l, id, w)
end

-- What stood there; nil: nothing.
local function leave_queue(l, id)
  if l.h.waiters == 0 then return nil end
  local w = load_waiter(l, id)
  if w then dequeue(l, id, member(w, id)) end
  return w
end

-- ---------------------------------------------------------------- granting

-- The next token, or nil when the epoch has none left.
local function next_token(last, epoch)
  local token, first = last + 1, epoch * EPOCH + 1
  if token < first then return first end
  return token < first + (EPOCH - 1) and token or nil
end

local function open_for_grants(h, now)
  return h.sealed == 0 and h.not_before <= now and h.exclusive == 0
end

local function fits(h, ask)
  if h.exclusive > 0 then return false end
  if ask.mode == 'x' then return h.used == 0 and h.shared == 0 end
  if ask.mode == 's' then return h.used < h.permits end
  return h.used + math.min(h.shared, 1) + ask.permits <= h.permits
end

local function satisfiable(h, ask)
  return ask.mode ~= 'c' or ask.permits <= h.permits
end

-- An elected lock is granted by the controller alone.
local function only_elected(h, ask)
  return h.elected == 1 and ask.delegated == DIRECT
end

local function lease_end(h, o, now)
  local till = now + h.lease
  if h.max_hold > 0 then till = math.min(till, o.acquired + h.max_hold) end
  return till > o.expires and till or o.expires
end

-- Gives permits to one that fits: it has waited, or has only asked. An offer lasts until its waiter would be given up, at
-- most a lease.
local function grant(l, id, ask, token, now, state)
  local h = l.h
  local o = {token = token, permits = ask.permits, mode = ask.mode, acquired = now, renewed = now,
    expires = now, state = state, identity = ask.identity, pod = ask.pod}
  if state == 'offer' then
    o.expires = now + refresh_ms(h)
    if ask.deadline > 0 then o.expires = math.min(o.expires, ask.deadline) end
  else
    o.expires = lease_end(h, o, now)
  end
  if ask.delegated ~= DIRECT then
    o.seq, o.priority, o.again = ask.seq or next_seq(h, now), ask.priority, ask.again or 0
  end
  h.last = o.token
  count(h, o, 1)
  due_at(h, o.expires)
  put_hold(l, id, o)
  l.changed = true
  return o
end

-- Serves the queue from its head until one doesn't fit. A delegated waiter keeps its place and is skipped
-- while the controller is away. `self` is the caller's own id: it is granted, others get an offer.
local function promote(l, now, self)
  local h, index = l.h, 0
  if h.waiters == 0 then return end
  local gate = open_gate(h.store, now)
  while gate and h.waiters > 0 and open_for_grants(h, now) do
    local token = next_token(h.last, gate.epoch)
    if not token then break end
    local m = redis.call('ZRANGE', l.queue, index, index)[1]
    if not m then
      h.waiters = index
      break
    end
    local id = m:sub(28)
    local w = load_waiter(l, id)
    if not w or gone(w, now) or not satisfiable(h, w) or only_elected(h, w) then
      dequeue(l, id, m)
    elseif id ~= self and (w.delegated == RESERVED and w.refresh ~= 0 and w.refresh <= now or
      w.delegated ~= DIRECT and now > gate.heartbeat + HEARTBEAT_STALE_MS) then
      index = index + 1
    elseif not fits(h, w) then
      break
    elseif id ~= self and w.delegated == RESERVED then
      if w.refresh == 0 then
        w.refresh = now + refresh_ms(h)
        redis.call('HSET', l.waiters, id, pack_waiter(w))
        l.changed, l.turn = true, w.refresh
      end
      break
    else
      dequeue(l, id, m)
      if id == self then
        l.holder = grant(l, id, w, token, now, 'held')
      else
        l.offers = l.offers or {}
        l.offers[id] = grant(l, id, w, token, now, 'offer')
      end
    end
  end
end

local function granted(o, now)
  return {'granted', o.token, o.expires - now}
end

-- When a waiter should ask again: at the first deadline that could change its answer.
local function retry_ms(h, now, wait)
  local at = now + math.floor(refresh_ms(h) / 3)
  if h.due > now then at = math.min(at, h.due) end
  if h.not_before > now then at = math.min(at, h.not_before) end
  if wait > 0 then at = math.min(at, now + wait) end
  return math.max(1, at - now)
end

local function accept(l, o, now)
  o.state, o.renewed, o.expires = 'held', now, lease_end(l.h, o, now)
  put_hold(l, l.id, o)
  l.changed = true
end

-- Where nothing can be granted to anyone, one that waits keeps its place by asking.
local function keep_place(l, ask, now)
  if l.h.waiters > 0 and load_waiter(l, l.id) then enqueue(l, l.id, ask, now) end
end

-- The answer where nobody's turn matters, or nil.
local function settled(l, ask, now)
  local h, id = l.h, l.id
  if l.holder then
    if l.holder.state == 'offer' and ask.delegated == DIRECT then accept(l, l.holder, now) end
    return granted(l.holder, now)
  end
  if l.ended then return {'lost'} end
  if h.sealed == 1 then return {'sealed'} end
  if only_elected(h, ask) then
    leave_queue(l, id)
    return {'elected'}
  end
  if not satisfiable(h, ask) then
    leave_queue(l, id)
    return {'unsatisfiable', h.permits}
  end
end

local function contend(l, ask, now)
  local h, id, answer = l.h, l.id, settled(l, ask, now)
  if answer then return answer end
  local gate = open_gate(h.store, now)
  if not gate then
    keep_place(l, ask, now)
    return {'gate-closed'}
  end
  local token = next_token(h.last, gate.epoch)
  if not token then
    keep_place(l, ask, now)
    return {'epoch-exhausted'}
  end
  local can = open_for_grants(h, now) and fits(h, ask)
  if h.waiters == 0 and can then
    return granted(grant(l, id, ask, token, now, 'held'), now)
  end
  if ask.wait == 0 and not can then
    leave_queue(l, id)
    promote(l, now)
    return {'busy', retry_ms(h, now, 0)}
  end
  enqueue(l, id, ask, now)
  promote(l, now, id)
  if l.holder then return granted(l.holder, now) end
  if ask.wait == 0 then
    leave_queue(l, id)
    return {'busy', retry_ms(h, now, 0)}
  end
  return {'queued', retry_ms(h, now, ask.wait), now, gate.epoch}
end

local function whole(arg, low, high)
  local n = tonumber(arg)
  if not n or n % 1 ~= 0 or n < low or n > high then
    error('not a whole number from ' .. low .. ' to ' .. high .. ': ' .. tostring(arg))
  end
  return n
end

-- What is asked for. Any workload may send anything: less than one permit would add to what the others have.
local function asked(args, first)
  local mode = args[first + 1]
  if mode ~= 'c' and mode ~= 's' and mode ~= 'x' then error('not a mode: ' .. tostring(mode)) end
  return mode, mode == 'c' and whole(args[first + 2], 1, 4294967295) or 0,
    whole(args[first + 3], -2147483648, 2147483647), whole(args[first + 4], -1, 9007199254740992)
end

local function ask_of(args, first, delegated)
  local mode, permits, priority, wait = asked(args, first)
  return {mode = mode, permits = permits, priority = priority, wait = wait, identity = args[first + 5],
    pod = args[first + 6], delegated = delegated, deadline = 0}
end

-- Takes what is free of a lock that nobody waits for: what `contend` would do in this most frequent case, in a
-- third of its time, since no table is made. nil: not that case, and nothing was done.
local function take(key, field, config, state, now, permits, identity, pod)
  local c = configs[config]
  if not c or c.max_hold > 0 or c.elected == 1 then return nil end
  local last, used, shared, exclusive, waiters, seq, finished, sealed, not_before, due = struct.unpack(STATE, state)
  if waiters > 0 or shared > 0 or exclusive > 0 or used + permits > c.permits or sealed == 1 or not_before > now
    or (due ~= 0 and due <= now) then return nil end
  local gate = open_gate(c.store, now)
  local token = gate and next_token(last, gate.epoch)
  if not token then return nil end
  local expires = now + c.lease
  if due == 0 or expires < due then due = expires end
  redis.call('HSET', key,
    'state', struct.pack(STATE, token, used + permits, 0, 0, 0, seq, finished, 0, not_before, due),
    field, struct.pack(HOLD, 'held', 'c', token, permits, now, now, expires, #identity, identity, #pod, pod))
  gate.changed[key] = true
  return {'granted', token, c.lease}
end

-- acquire: lock keys; id, mode, permits, priority, wait ms (-1 for ever, 0 not at all), identity, pod uid
local function acquire(keys, args, first, delegated)
  local now, at, id, identity, pod = now_ms(), #keys - 2, args[first], args[first + 5], args[first + 6]
  local mode, permits = asked(args, first)
  local field = 'id:' .. id
  local config, state, own = read(keys[at], field)
  if not config then return {'unprovisioned'} end
  local can_take = mode == 'c' and delegated == DIRECT and not own
  local taken = can_take and take(keys[at], field, config, state, now, permits, identity, pod)
  if taken then return taken end
  local l = load(keys, at, id, now, config, state, own)
  return done(l, contend(l, ask_of(args, first, delegated), now))
end

-- ---------------------------------------------------------------- what a holder calls

-- What is over is left to a call that is given the queue: this one grants nothing.
local function renew_one(key, id, now)
  local config, state, own = read(key, 'id:' .. id)
  if not config then return {'unprovisioned'} end
  local l = handle({key}, 1, unpack_header(config, state), id, 'id:' .. id, own and unpack_hold(own))
  local reply
  local o = l.holder
  if not o then
    reply = {own and ended(l.h, own, now) and 'lost' or 'not-held'}
  elseif o.state ~= 'pinned' and o.expires <= now then
    reply = {keeps_place(l.h, o) and 'not-held' or 'lost'}
  elseif l.h.sealed == 1 and o.state ~= 'pinned' then
    reply = {'lost'}
  else
    if o.state == 'offer' then
      accept(l, o, now)
    else
      o.renewed, o.expires = now, lease_end(l.h, o, now)
      redis.call('HSET', l.key, l.field, pack_hold(o))
    end
    reply = granted(o, now)
  end
  return done(l, reply)
end

-- Calls `f` for one of several locks. A record that can't be read (any tenant can write such a one) must not spoil
-- the answers of the others: nil; asked for alone, it is an error.
local function apart(several, f, ...)
  if not several then return f(...) end
  local readable, reply = pcall(f, ...)
  if readable then return reply end
  if type(reply) == 'table' and not tostring(reply.err):find('WRONGTYPE', 1, true) then error(reply) end
  return nil
end

-- renew: record key of each lock; the id in each, in the same order.
local function renew(keys, args)
  local now, replies = now_ms(), {}
  for i = 1, #keys do
    replies[i] = apart(#keys > 1, renew_one, keys[i], args[i], now) or {'unprovisioned'}
  end
  return replies
end

local ENDED = {r = 'released', e = 'lost', c = 'cancelled'}

local function finish(l, how, now)
  end_hold(l, l.id, l.holder, how, now)
  promote(l, now)
  flush(l)
end

-- Gives back a hold of a lock that nobody waits for: what `finish` would do in this most frequent case; see `take`.
local function give_back(key, field, config, state, own, now)
  local c = configs[config]
  local how, mode, _, permits = struct.unpack(HOLD_START, own)
  if not c or how ~= 'h' or mode ~= 'c' then return nil end
  local last, used, shared, exclusive, waiters, seq, finished, sealed, not_before, due = struct.unpack(STATE, state)
  if waiters > 0 or (due ~= 0 and due <= now) or (finished + 1) % REMEMBERED == 0 then return nil end
  used = used - permits
  if used + shared + exclusive == 0 then due = 0 end
  redis.call('HSET', key,
    'state', struct.pack(STATE, last, used, shared, exclusive, 0, seq, finished + 1, sealed, not_before, due),
    field, struct.pack(ENDED_ID, finished, now + REMEMBER_MS, 'r'))
  note_change(c.store, key)
  return {'released'}
end

-- release: lock keys; id
local function release(keys, args)
  local now, field = now_ms(), 'id:' .. args[1]
  local config, state, own = read(keys[1], field)
  if not config then return {'unprovisioned'} end
  local given = own and #own ~= ENDED_SIZE and give_back(keys[1], field, config, state, own, now)
  if given then return given end
  local l = load(keys, 1, args[1], now, config, state, own)
  if l.holder and l.holder.state == 'pinned' then return done(l, {'pinned'}) end
  if l.holder then
    finish(l, 'r', now)
    return {'released'}
  end
  promote(l, now)
  return done(l, {l.ended and ENDED[l.ended] or 'not-held'})
end

-- cancel: lock keys; id. Whatever became of an acquire, its id holds and waits for nothing afterwards.
local function cancel(keys, args)
  local now = now_ms()
  local l = load(keys, 1, args[1], now)
  if not l then return {'unprovisioned'} end
  if l.holder and l.holder.state == 'pinned' then return done(l, {'pinned'}) end
  if l.holder then
    finish(l, 'c', now)
  else
    leave_queue(l, l.id)
    if not l.ended then remember(l, l.id, 'c', now) end
    promote(l, now)
    flush(l)
  end
  return {'cancelled'}
end

-- inspect: lock keys; 'full': says of waiters what they ask for. Changes nothing; a hold whose time is over is left out.
-- Waiters come as they are served.
local function inspect(keys, args)
  local now = now_ms()
  local raw = redis.call('HMGET', keys[1], 'config', 'state')
  if not raw[1] then return {'unprovisioned'} end
  local h, holds, waiting = unpack_header(raw[1], raw[2]), {}, {}
  each_hold(keys[1], function(id, o)
    if o.state == 'pinned' or o.expires > now then
      holds[#holds + 1] = {id, o.token, o.permits, o.mode, o.state, o.acquired, o.renewed, o.expires, o.identity, o.pod}
    end
  end)
  local all, asks = redis.call('HGETALL', keys[3]), {}
  for i = 1, #all, 2 do asks[all[i]] = unpack_waiter(all[i + 1]) end
  for _, m in ipairs(redis.call('ZRANGE', keys[2], 0, -1)) do
    local id = m:sub(28)
    local w = asks[id]
    if w and not gone(w, now) then
      local delegated = w.delegated == DIRECT and 0 or 1
      waiting[#waiting + 1] = args[1] == 'full' and {id, delegated, w.permits, w.mode, w.priority, w.identity}
        or {id, delegated}
    end
  end
  return {'ok', now, h.lock, h.generation, h.permits, h.lease, h.last, h.sealed, math.max(0, h.not_before - now),
    open_gate(h.store, now) and 1 or 0, holds, waiting}
end

-- ---------------------------------------------------------------- what the controller calls
-- Every one carries the store's uid and the controller's term, first in ARGV; the store key comes first
-- in KEYS. A record of another install, or a term older than the highest seen, is refused.

local function refused(keys, args)
  local known = redis.call('HMGET', keys[1], 'uid', 'term')
  if known[1] and known[1] ~= args[1] then return {'store-in-use', known[1]} end
  local highest = math.max(tonumber(known[2] or 0), terms[args[1]] or 0)
  if tonumber(args[2]) < highest then return {'stale-term', highest} end
  return nil
end

-- The gate for a call of the controller, or the reply that says why not.
local function admitted(keys, args, now)
  local reply = refused(keys, args)
  if reply then return nil, reply end
  local gate = open_gate(args[1], now)
  if not gate then return nil, {'gate-closed'} end
  return gate
end

local function run_id()
  return redis.call('INFO', 'server'):match('run_id:(%x+)')
end

-- heartbeat: store key; uid, term, reign, mark. Makes the term known, says which process answers, and how high the mark
-- was before: etcd raises it first, so that one above etcd's shows that etcd has gone back. So does a term that another
-- reign has used: it is refused as one that is stale.
local function heartbeat(keys, args)
  local reply = refused(keys, args)
  if reply then return reply end
  local now = now_ms()
  local known = redis.call('HMGET', keys[1], 'term', 'epoch', 'reign', 'mark')
  if known[1] == args[2] and known[3] and known[3] ~= args[3] then return {'stale-term', tonumber(args[2])} end
  local mark, told = tonumber(known[4] or 0), tonumber(args[4])
  if known[1] ~= args[2] or known[3] ~= args[3] or told > mark then
    redis.call('HSET', keys[1], 'uid', args[1], 'term', args[2], 'reign', args[3], 'mark',
      string.format('%.0f', math.max(mark, told)))
  end
  terms[args[1]] = tonumber(args[2])
  local role, replid = replication()
  local gate = open_gate(args[1], now)
  if gate then gate.heartbeat = now end
  return {'ok', now, run_id(), replid, role, gate and gate.epoch or 0, tonumber(known[2] or 0), mark}
end

-- open: store key; uid, term, epoch, run_id, replid. Reaches only the process it names.
local function open(keys, args)
  local reply = refused(keys, args)
  if reply then return reply end
  local now, epoch = now_ms(), tonumber(args[3])
  local role, replid = replication()
  if role ~= 'master' or run_id() ~= args[4] or replid ~= args[5] then return {'other-process'} end
  local last = redis.call('HMGET', keys[1], 'epoch', 'run_id', 'replid')
  local gate = open_gate(args[1], now)
  local used = math.max(tonumber(last[1] or 0), gate and gate.epoch or 0)
  local same = last[2] == args[4] and last[3] == args[5]
  if epoch < used or (epoch == used and last[1] and not same) then return {'stale-epoch', used} end
  redis.call('HSET', keys[1], 'uid', args[1], 'term', args[2], 'epoch', args[3], 'run_id', args[4], 'replid', args[5])
  gates[args[1]] = {epoch = epoch, replid = replid, look = now, heartbeat = now, changed = {}, told = {}, batch = 0}
  terms[args[1]] = tonumber(args[2])
  return {'ok'}
end

-- close: store key; uid, term. Nothing more is granted until it is opened again.
local function close(keys, args)
  local reply = refused(keys, args)
  if reply then return reply end
  gates[args[1]] = nil
  return {'ok'}
end

-- changes: store key; uid, term, the batch that was told last. Replies a batch and the keys of the records that have
-- changed since that one, each once. A batch whose answer was lost is told again, with what has changed since.
local function changes(keys, args)
  local gate, no = admitted(keys, args, now_ms())
  if not gate then return no end
  if tonumber(args[3]) == gate.batch then gate.told = {} end
  for key in pairs(gate.changed) do gate.told[key] = true end
  gate.changed, gate.batch = {}, gate.batch + 1
  local reply = {'ok', gate.batch}
  for key in pairs(gate.told) do reply[#reply + 1] = key end
  return reply
end

-- leave: store key; uid, term. The prefix is free for another LockStore; its epochs stay used.
local function leave(keys, args)
  local reply = refused(keys, args)
  if reply then return reply end
  redis.call('HDEL', keys[1], 'uid', 'term', 'reign', 'mark')
  gates[args[1]], terms[args[1]] = nil, nil
  return {'ok'}
end

-- Its queue is another key, and may be there: those that come now stand behind.
local function new_record(keys, args)
  local seq = 0
  for _, m in ipairs(redis.call('ZRANGE', keys[3], 0, -1)) do seq = math.max(seq, tonumber(m:sub(11, 27)) or 0) end
  return {store = args[1], lock = '', generation = 0, permits = 1, lease = 1, max_hold = 0, elected = 0, last = 0,
    used = 0, shared = 0, exclusive = 0, waiters = redis.call('ZCARD', keys[3]), seq = seq, finished = 0, sealed = 0, not_before = 0, due = 0}
end

local function configure(h, args)
  local generation = tonumber(args[4])
  if h.lock == args[3] and generation < h.generation then return end
  if h.lock ~= args[3] then h.sealed = 0 end
  h.store, h.lock, h.generation = args[1], args[3], generation
  h.permits, h.lease, h.max_hold = tonumber(args[5]), tonumber(args[6]), tonumber(args[7])
  h.elected = tonumber(args[11])
end

-- Puts back what etcd remembers: what the record lacks, with its token; all of it pinned. One that is put back
-- waits no longer: it would be granted a second time; its next attempt stands there. Beside an open gate one that has
-- just ended stays so: etcd may have let it go since it was read.
local function put_back(l, args, from, to, now, gate)
  for i = from, to, 6 do
    local id = args[i]
    local stood = leave_queue(l, id)
    local raw = redis.call('HGET', l.key, 'id:' .. id)
    local o = raw and unpack_hold(raw)
    if o then
      -- An older copy may have what it was granted before.
      o.state, o.token = 'pinned', math.max(o.token, tonumber(args[i + 1]))
    elseif not (gate and raw and has_just_ended(l.h, raw, now)) then
      o = {token = tonumber(args[i + 1]), permits = tonumber(args[i + 2]), mode = args[i + 3], acquired = now,
        renewed = now, expires = now + l.h.lease, state = 'pinned', identity = args[i + 4], pod = args[i + 5]}
      if stood and not gone(stood, now) then o.seq, o.priority, o.again = stood.seq, stood.priority, stood.again end
      count(l.h, o, 1)
    end
    if o then
      l.h.last = math.max(l.h.last, o.token)
      put_hold(l, id, o)
    end
  end
end

-- Whether an id waits for nothing: its hold, or how it has ended.
local function has_been_served(l, id, now)
  local raw = redis.call('HGET', l.key, 'id:' .. id)
  return raw and (unpack_hold(raw) or ended(l.h, raw, now))
end

-- Puts back the places that etcd remembers, of those that hold nothing and have not ended.
local function line_up(l, args, from, now)
  if l.h.sealed == 1 then return end
  for i = from, #args, 8 do
    local ask = ask_of(args, i, args[i + 7] == '1' and RESERVED or DELEGATED)
    if satisfiable(l.h, ask) and not has_been_served(l, args[i], now) then enqueue(l, args[i], ask, now) end
  end
end

-- The next attempt stands where this one does, or did before it was granted; if it has come by itself, no further behind. One
-- that has been granted since would stand there again.
local function hand_on(l, next, now)
  local stood = l.holder
  if not stood and l.h.waiters > 0 then
    stood = load_waiter(l, l.id)
    if stood and gone(stood, now) then stood = nil end
  end
  if not stood or not stood.seq or l.h.sealed == 1 then return end
  local served = has_been_served(l, next, now)
  if type(served) == 'table' and served.seq and stood.seq < served.seq then
    served.seq, served.priority = stood.seq, stood.priority
    put_hold(l, next, served)
  end
  if served then return end
  local w = l.h.waiters > 0 and load_waiter(l, next) or nil
  if w and w.seq < stood.seq then return end
  if w then
    dequeue(l, next, member(w, next))
    w.seq, w.priority = stood.seq, stood.priority
  end
  stand(l, next, w or reserved(stood, 0))
  l.changed = true
end

-- Arguments from the third: lock uid, generation, permits, lease ms, max hold ms, token floor, quarantine ms,
-- ceiling of tokens (0: none), whether it is elected, for each hold: id, token, permits, mode, identity, pod uid. Where
-- there are waiters, which controllers of version 0.1 don't tell, then an empty one, and for each of them, in their order: as
-- acquire, and whether its place is reserved.
local function configure_record(keys, args, now, gate)
  local l = load(keys, 2, '', now)
  local fresh = l == nil
  if fresh then l = handle(keys, 2, new_record(keys, args)) end
  local h, tampered = l.h, 0
  configure(h, args)
  local ceiling = tonumber(args[10])
  if ceiling > 0 and h.last >= ceiling then h.last, tampered = ceiling - 1, 1 end
  h.last = math.max(h.last, tonumber(args[8]))
  if tonumber(args[9]) > 0 then h.not_before = math.max(h.not_before, now + tonumber(args[9])) end
  put(l, 'config', pack_config(h))
  local after = 12
  while args[after] and args[after] ~= '' do after = after + 6 end
  line_up(l, args, after + 1, now)
  put_back(l, args, 12, after - 1, now, gate)
  return l, {'ok', fresh and 1 or 0, tampered, h.last}
end

-- provision: store key, lock keys. Creates or changes a record; promotes what a change has made room for.
local function provision(keys, args)
  local now = now_ms()
  local gate, no = admitted(keys, args, now)
  if not gate then return no end
  local l, reply = configure_record(keys, args, now, gate)
  promote(l, now)
  flush(l)
  return reply
end

-- restore: as provision, but on the process that its last two arguments name, and only while the gate is closed.
local function restore(keys, args)
  local reply = refused(keys, args)
  if reply then return reply end
  local now = now_ms()
  local replid, run = table.remove(args), table.remove(args)
  local role, at = replication()
  if role ~= 'master' or at ~= replid or run_id() ~= run then return {'other-process'} end
  if open_gate(args[1], now) then return {'gate-open'} end
  local l, done = configure_record(keys, args, now)
  flush(l)
  return done
end

-- claim: store key, lock keys; uid, term, then as acquire. A delegated holder's acquire.
local function claim(keys, args)
  local gate, no = admitted(keys, args, now_ms())
  if not gate then return no end
  return acquire(keys, args, 3, DELEGATED)
end

-- reserve: store key, lock keys; uid, term, then as acquire. A place for one that must hold other locks first: it is passed
-- over until it claims. A hold that nobody was told of becomes such a place, if it has one; else it is told that it holds.
local function reserve(keys, args)
  local now = now_ms()
  local gate, no = admitted(keys, args, now)
  if not gate then return no end
  local ask, l = ask_of(args, 3, RESERVED), load(keys, 2, args[3], now)
  if not l then return {'unprovisioned'} end
  if l.holder and keeps_place(l.h, l.holder) then stand_again(l, l.id, l.holder, l.holder.again) end
  local answer = settled(l, ask, now)
  if not answer then
    enqueue(l, l.id, ask, now)
    promote(l, now)
    answer = {'queued', retry_ms(l.h, now, ask.wait), now, gate.epoch}
  end
  return done(l, answer)
end

-- pin: store key, lock keys; uid, term, id, and the epoch by which it was decided, which controllers of version 0.1 don't
-- tell: what another one has put back may be another's. Time no longer takes this hold.
local function pin(keys, args)
  local now = now_ms()
  local gate, no = admitted(keys, args, now)
  if not gate then return no end
  if args[4] and tonumber(args[4]) ~= gate.epoch then return {'gate-closed'} end
  local l = load(keys, 2, args[3], now)
  if not l then return {'unprovisioned'} end
  local o = l.holder
  if not o then
    promote(l, now)
    return done(l, {'lost'})
  end
  if o.state ~= 'pinned' then
    o.state, o.renewed, o.expires = 'pinned', now, lease_end(l.h, o, now)
    put_hold(l, l.id, o)
    l.changed = true
  end
  return done(l, granted(o, now))
end

-- free: store key, lock keys; uid, term, id, and where its claim begins anew the id of the next attempt. Ends a hold,
-- pinned or not, or a wait, after etcd has let it go.
local function free(keys, args)
  local now = now_ms()
  local gate, no = admitted(keys, args, now)
  if not gate then return no end
  local l = load(keys, 2, args[3], now)
  if not l then return {'unprovisioned'} end
  if args[4] then hand_on(l, args[4], now) end
  if l.holder then
    finish(l, 'r', now)
    return {'released'}
  end
  leave_queue(l, l.id)
  if not l.ended then remember(l, l.id, 'r', now) end
  promote(l, now)
  flush(l)
  return {'released'}
end

local function sooner(a, b)
  return (a == 0 or (b ~= 0 and b < a)) and b or a
end

-- Gives up the waiters without a sign of life; answers when the next one's time is over, 0: never.
local function prune(l, now)
  local due = 0
  if l.h.waiters == 0 then return due end
  local all = redis.call('HGETALL', l.waiters)
  for i = 1, #all, 2 do
    local w = unpack_waiter(all[i + 1])
    if gone(w, now) then
      dequeue(l, all[i], member(w, all[i]))
    else
      due = sooner(due, sooner(w.refresh > now and w.refresh or 0, w.deadline))
    end
  end
  return due
end

local function expire_one(keys, first, now)
  local l = load(keys, first, '', now)
  if not l then return 'unprovisioned' end
  local at = prune(l, now)
  promote(l, now)
  at = sooner(sooner(at, l.turn), l.h.due)
  if l.h.not_before > now then at = sooner(at, l.h.not_before) end
  return done(l, at == 0 and -1 or at - now)
end

-- expire: store key, then lock keys of each lock; uid, term. Replies for each lock the ms until it is due again, a
-- lower bound (-1: nothing is due), or that it has no record.
local function expire(keys, args)
  local now = now_ms()
  local gate, no = admitted(keys, args, now)
  if not gate then return no end
  local replies = {'ok'}
  for i = 2, #keys, 3 do
    replies[#replies + 1] = apart(#keys > 4, expire_one, keys, i, now) or 'unprovisioned'
  end
  return replies
end

-- seal: store key, lock keys; uid, term, lock uid. Grants nothing more; direct holders learn it at their next
-- renewal. Replies the last token, the ms until the last direct lease or the quarantine ends, and how many pinned
-- holds are left.
local function seal(keys, args)
  local now = now_ms()
  local gate, no = admitted(keys, args, now)
  if not gate then return no end
  local l = load(keys, 2, '', now)
  if not l then return {'unprovisioned'} end
  if l.h.lock ~= args[3] then return done(l, {'other-lock', l.h.lock}) end
  if l.h.waiters > 0 then redis.call('DEL', l.queue, l.waiters) end
  l.h.sealed, l.h.waiters = 1, 0
  flush(l)
  local direct, pinned = math.max(0, l.h.not_before - now), 0
  each_hold(l.key, function(_, o)
    if o.state == 'pinned' then pinned = pinned + 1 else direct = math.max(direct, o.expires - now) end
  end)
  return {'sealed', l.h.last, direct, pinned}
end

-- purge: store key, lock keys; uid, term, lock uid. Forgets a sealed lock that nobody holds.
local function purge(keys, args)
  local now = now_ms()
  local gate, no = admitted(keys, args, now)
  if not gate then return no end
  local l = load(keys, 2, '', now)
  if not l then return {'ok'} end
  if l.h.lock ~= args[3] then return done(l, {'other-lock', l.h.lock}) end
  if l.h.sealed == 0 or l.h.not_before > now or l.h.used + l.h.shared + l.h.exclusive > 0 then
    return done(l, {'held'})
  end
  redis.call('DEL', l.key, l.queue, l.waiters)
  return {'ok'}
end

local function register(name, callback, ...)
  redis.register_function{function_name = 'leasehold' .. LAYOUT .. '_' .. name, callback = callback, flags = {...}}
end

register('acquire', function(keys, args) return acquire(keys, args, 1, DIRECT) end)
register('renew', renew, 'allow-oom')
register('release', release, 'allow-oom')
register('cancel', cancel, 'allow-oom')
register('inspect', inspect, 'no-writes')
register('version', function() return VERSION end, 'no-writes')
register('heartbeat', heartbeat, 'allow-oom')
register('open', open, 'allow-oom')
register('close', close, 'no-writes')
register('changes', changes, 'no-writes')
register('leave', leave, 'allow-oom')
register('provision', provision)
register('restore', restore, 'allow-oom')
register('claim', claim)
register('reserve', reserve)
register('pin', pin, 'allow-oom')
register('free', free, 'allow-oom')
register('expire', expire, 'allow-oom')
register('seal', seal, 'allow-oom')
register('purge', purge, 'allow-oom')
