-- Decides about reservations. One call handles a batch of items, in order; each item all or nothing.
--
-- KEYS[1]  {naru}:epoch. Every key has the same hash tag, so that one primary owns them all and one script sees them all.
-- ARGV[1]  operation: reserve, release, renew, settle, claim, look_up, begin, load
-- ARGV[2]  JSON object: now (microseconds; absent: Redis's own time), lease, lifetime, memory (microseconds), and what the
--          operation takes besides
-- ARGV[3]  JSON array of items
--
-- Keys                                    all begin with {naru}:
--   now                                   the latest time seen; time never goes back
--   epoch                                 hash: id, open_at. Gone when Redis was emptied
--   leases                                sorted set: event:attempt by the end of its lease
--   r:<event>:<attempt>                   hash: one reservation, or what must be remembered of a closed one
--   c:<scope>:<id>:<model>                set: the event:attempt in flight
--   w:<scope>:<id>:<model>:<kind>:<window>  hash: an amount per bucket; total; first (no bucket is older), last (none younger)
--
-- A reservation's state is open, expiring (claimed by a sweeper), released, refused (a better figure did not fit) or settled.
-- Times are microseconds: exact in Lua's doubles as long as they are never joined to a string, which would round them.

local PREFIX = '{naru}:'
local LEASES = PREFIX .. 'leases'
local SECOND = 1000000
local BUCKETS = 60
local CONCURRENCY_RETRY = SECOND -- nobody knows when one of those in flight ends
local WIDTHS = { minute = SECOND, hour = 60 * SECOND }

local call = redis.call
local options = cjson.decode(ARGV[2])
local items = cjson.decode(ARGV[3])

local function clock()
  local now = options.now
  if not now then
    local time = call('TIME')
    now = tonumber(time[1]) * SECOND + tonumber(time[2])
  end
  local latest = tonumber(call('GET', PREFIX .. 'now') or '0')
  if now <= latest then
    return latest
  end
  call('SET', PREFIX .. 'now', now)
  return now
end

local now = clock()

-- Windows ------------------------------------------------------------------------------------------------------------------

local function fields_between(from, to)
  local fields = {}
  for bucket = from, to do
    fields[#fields + 1] = bucket
  end
  return fields
end

-- Forgets the buckets that the window has left behind; returns the total of the others, and the first and last of them.
local function advance(key, bucket)
  local head = call('HMGET', key, 'total', 'first', 'last')
  if not head[1] then
    return 0, bucket, bucket
  end
  local total, first, last = tonumber(head[1]), tonumber(head[2]), tonumber(head[3])
  local oldest = bucket - BUCKETS
  if first >= oldest then
    return total, first, last
  end
  if last < oldest then
    call('DEL', key)
    return 0, bucket, bucket
  end
  local left = fields_between(first, oldest - 1)
  for _, amount in ipairs(call('HMGET', key, unpack(left))) do
    total = total - tonumber(amount or '0')
  end
  call('HDEL', key, unpack(left))
  call('HSET', key, 'total', total, 'first', oldest)
  return total, oldest, last
end

-- Adds `delta`, which may be negative, to a bucket, unless the window has left it behind.
local function add(key, width, bucket, delta)
  local current = math.floor(now / width)
  local _, first, last = advance(key, current)
  if delta == 0 or bucket < current - BUCKETS then
    return
  end
  if delta < 0 and call('EXISTS', key) == 0 then
    return
  end
  if call('HINCRBY', key, bucket, delta) == 0 then
    call('HDEL', key, bucket)
  end
  call('HINCRBY', key, 'total', delta)
  call('HSET', key, 'first', math.min(first, bucket), 'last', math.max(last, bucket))
  call('PEXPIRE', key, (BUCKETS + 2) * width / 1000)
end

-- How long until `need` has left the window.
local function wait_for(key, width, need, first)
  local current = math.floor(now / width)
  local buckets = fields_between(first, current)
  local freed = 0
  for index, amount in ipairs(call('HMGET', key, unpack(buckets))) do
    freed = freed + tonumber(amount or '0')
    if freed >= need then
      return (buckets[index] + BUCKETS + 1) * width - now
    end
  end
  return (current + BUCKETS + 1) * width - now
end

-- Limits -------------------------------------------------------------------------------------------------------------------

local function key_of(limit)
  local owner = limit.scope .. ':' .. limit.scope_id .. ':' .. limit.model
  if limit.kind == 'concurrency' then
    return PREFIX .. 'c:' .. owner
  end
  return PREFIX .. 'w:' .. owner .. ':' .. limit.kind .. ':' .. limit.window
end

local function tokens_of(kind, item)
  if kind == 'input_tokens' then
    return item.input
  elseif kind == 'output_tokens' then
    return item.output
  end
  return item.input + item.output
end

-- What the item takes of the limit, how much of the limit is taken, and how long until that is different.
local function weigh(limit, item, ref, counts)
  local key = key_of(limit)
  if limit.kind == 'concurrency' then
    local amount = 1 - call('SISMEMBER', key, ref)
    return amount, call('SCARD', key), function() return CONCURRENCY_RETRY end
  end
  local width = WIDTHS[limit.window]
  local used, first = advance(key, math.floor(now / width))
  local amount = 0
  if limit.kind ~= 'requests' then
    amount = tokens_of(limit.kind, item)
  elseif counts then
    amount = 1
  end
  return amount, used, function() return wait_for(key, width, used + amount - limit.limit, first) end
end

-- nil, or the limit that refuses: the one that no waiting helps with, else the one to wait for longest.
local function refusal_of(item, ref, counts)
  local worst = nil
  for _, limit in ipairs(item.limits) do
    local amount, used, wait = weigh(limit, item, ref, counts)
    if amount > 0 and used + amount > limit.limit then
      local found = {
        scope = limit.scope, kind = limit.kind, window = limit.window, limit = limit.limit, requested = amount,
      }
      if amount > limit.limit then
        return found
      end
      found.retry = wait()
      if not worst or found.retry > worst.retry then
        worst = found
      end
    end
  end
  return worst
end

-- Takes what the limits allow; returns what a later settlement has to replace or give back.
local function take(item, ref, counts)
  local held = {}
  for _, limit in ipairs(item.limits) do
    local key = key_of(limit)
    if limit.kind == 'concurrency' then
      call('SADD', key, ref)
      held[#held + 1] = { key = key }
    else
      local width = WIDTHS[limit.window]
      local bucket = math.floor(now / width)
      if limit.kind ~= 'requests' then
        local amount = tokens_of(limit.kind, item)
        add(key, width, bucket, amount)
        held[#held + 1] = { key = key, kind = limit.kind, width = width, bucket = bucket, amount = amount }
      elseif counts then
        add(key, width, bucket, 1)
      end
    end
  end
  return held
end

-- Makes the tokens held those of `exact`, gives concurrency back; returns what is still worth remembering.
local function put_back(held, ref, exact)
  local kept = {}
  for _, entry in ipairs(held) do
    if entry.kind then
      local amount = tokens_of(entry.kind, exact)
      add(entry.key, entry.width, entry.bucket, amount - entry.amount)
      entry.amount = amount
      kept[#kept + 1] = entry
    else
      call('SREM', entry.key, ref)
    end
  end
  return kept
end

local NOTHING = { input = 0, output = 0 }

-- Remaining and time to a full limit, one after the other, in the order of the limits.
local function states_of(limits)
  local states = {}
  for _, limit in ipairs(limits) do
    local key = key_of(limit)
    local used, reset = 0, 0
    if limit.kind == 'concurrency' then
      used = call('SCARD', key)
      reset = options.lifetime
    else
      local width = WIDTHS[limit.window]
      local last
      used, _, last = advance(key, math.floor(now / width))
      reset = (last + BUCKETS + 1) * width - now
    end
    states[#states + 1] = math.max(limit.limit - used, 0)
    states[#states + 1] = used > 0 and reset or 0
  end
  return states
end

-- Reservations -------------------------------------------------------------------------------------------------------------

local function reference(item)
  return item.event .. ':' .. item.attempt
end

local function close(key, ref, state, held)
  call('ZREM', LEASES, ref)
  call('HDEL', key, 'about', 'lease', 'deadline')
  call('HSET', key, 'state', state, 'held', cjson.encode(held))
  call('PEXPIRE', key, options.memory / 1000)
end

-- Whether an earlier attempt of the event has been counted as a request already.
local function counted_before(item)
  for attempt = item.attempt - 1, 0, -1 do
    if call('HGET', PREFIX .. 'r:' .. item.event .. ':' .. attempt, 'counted') then
      return true
    end
  end
  return false
end

local function open(key, ref, item, reserved, deadline, held)
  local lease = math.min(now + options.lease, deadline)
  call('HSET', key, 'state', 'open', 'revision', item.revision, 'reserve', reserved, 'lease', lease, 'deadline', deadline,
    'counted', 1, 'held', cjson.encode(held), 'about', item.about)
  call('ZADD', LEASES, lease, ref)
  return { 'granted', reserved, lease, '', states_of(item.limits) }
end

local function replace(key, ref, item, found)
  local reserved, deadline = tonumber(found.reserve), tonumber(found.deadline)
  if now >= deadline then
    return { 'closed', 0, 0, '', {} }
  end
  -- The old tokens go first, so that the new ones may take their place; a place in flight is kept.
  local tokens, places = {}, {}
  for _, entry in ipairs(cjson.decode(found.held)) do
    if entry.kind then
      tokens[#tokens + 1] = entry
    else
      places[#places + 1] = entry
    end
  end
  put_back(tokens, ref, NOTHING)
  local refusal = refusal_of(item, ref, false)
  if refusal then
    local text = cjson.encode(refusal)
    put_back(places, ref, NOTHING)
    close(key, ref, 'refused', {})
    call('HSET', key, 'refusal', text, 'revision', item.revision)
    return { 'refused', 0, 0, text, states_of(item.limits) }
  end
  local held = take(item, ref, false)
  local known = {}
  for _, entry in ipairs(held) do
    known[entry.key] = true
  end
  -- A limit that no longer applies still holds its place until the reservation closes.
  for _, entry in ipairs(places) do
    if not known[entry.key] then
      held[#held + 1] = entry
    end
  end
  return open(key, ref, item, reserved, deadline, held)
end

local function fields(key, ...)
  local values = call('HMGET', key, ...)
  local found = {}
  for index, name in ipairs({ ... }) do
    found[name] = values[index]
  end
  return found
end

local function reserve(item)
  local ref = reference(item)
  local key = PREFIX .. 'r:' .. ref
  local found = fields(key, 'state', 'revision', 'reserve', 'lease', 'deadline', 'held', 'refusal')
  if not found.state then
    local counts = not counted_before(item)
    local refusal = refusal_of(item, ref, counts)
    if refusal then
      return { 'refused', 0, 0, cjson.encode(refusal), states_of(item.limits) }
    end
    return open(key, ref, item, now, now + options.lifetime, take(item, ref, counts))
  end
  local known = found.revision and item.revision <= tonumber(found.revision)
  if found.state == 'open' and known then
    return { 'granted', tonumber(found.reserve), tonumber(found.lease), '', states_of(item.limits) }
  elseif found.state == 'open' then
    return replace(key, ref, item, found)
  elseif found.state == 'refused' and known then
    return { 'refused', 0, 0, found.refusal, states_of(item.limits) }
  end
  return { 'closed', 0, 0, '', {} }
end

-- Operations ---------------------------------------------------------------------------------------------------------------

local operations = {}

-- Answers {"ok" | "lost" | "recovering", microseconds to wait, {an answer per item}}.
function operations.reserve()
  local open_at = call('HGET', KEYS[1], 'open_at')
  local standing, wait = 'ok', 0
  if not open_at then
    standing = 'lost'
  elseif now < tonumber(open_at) then
    standing, wait = 'recovering', tonumber(open_at) - now
  end
  local answers = {}
  if standing == 'ok' or options.admit then
    for index, item in ipairs(items) do
      answers[index] = reserve(item)
    end
  end
  return { standing, wait, answers }
end

function operations.release()
  local answers = {}
  for index, item in ipairs(items) do
    local ref = reference(item)
    local key = PREFIX .. 'r:' .. ref
    local found = fields(key, 'state', 'held')
    answers[index] = 0
    if not found.state then
      close(key, ref, 'released', {})
    elseif found.state == 'open' then
      close(key, ref, 'released', put_back(cjson.decode(found.held), ref, NOTHING))
      answers[index] = 1
    end
  end
  return answers
end

-- Answers the end of the lease, or 0 when there is none any more.
function operations.renew()
  local answers = {}
  for index, item in ipairs(items) do
    local ref = reference(item)
    local key = PREFIX .. 'r:' .. ref
    local found = fields(key, 'state', 'lease', 'deadline')
    answers[index] = 0
    if found.state == 'open' and now < tonumber(found.deadline) then
      local lease = math.min(now + options.lease, tonumber(found.deadline))
      call('HSET', key, 'lease', lease)
      call('ZADD', LEASES, lease, ref)
      answers[index] = lease
    end
  end
  return answers
end

-- Makes what a reservation took what it used. Better evidence may do so again; equal or worse changes nothing.
function operations.settle()
  local answers = {}
  for index, item in ipairs(items) do
    local ref = reference(item)
    local key = PREFIX .. 'r:' .. ref
    local found = fields(key, 'state', 'held', 'rank')
    answers[index] = 0
    if found.state and item.rank > tonumber(found.rank or '-1') then
      local state = found.state
      if state == 'open' or state == 'expiring' then
        state = 'settled'
      end
      close(key, ref, state, put_back(cjson.decode(found.held), ref, item))
      call('HSET', key, 'rank', item.rank)
      answers[index] = 1
    end
  end
  return answers
end

-- Takes up to `most` expired leases for one sweeper: gives their places back and keeps others away for `hold` microseconds,
-- after which a sweeper that died in between is followed by another.
function operations.claim()
  local answers = {}
  for _, ref in ipairs(call('ZRANGEBYSCORE', LEASES, '-inf', now, 'LIMIT', 0, options.most)) do
    local key = PREFIX .. 'r:' .. ref
    local found = fields(key, 'state', 'held', 'reserve', 'about')
    if found.state == 'open' or found.state == 'expiring' then
      for _, entry in ipairs(cjson.decode(found.held)) do
        if not entry.kind then
          call('SREM', entry.key, ref)
        end
      end
      call('HSET', key, 'state', 'expiring')
      call('ZADD', LEASES, now + options.hold, ref)
      answers[#answers + 1] = { ref, tonumber(found.reserve), found.about }
    else
      call('ZREM', LEASES, ref)
    end
  end
  return answers
end

-- Answers state and time of reservation, or an empty state.
function operations.look_up()
  local answers = {}
  for index, item in ipairs(items) do
    local found = fields(PREFIX .. 'r:' .. reference(item), 'state', 'reserve')
    answers[index] = { found.state or '', tonumber(found.reserve or '0') }
  end
  return answers
end

-- Begins an epoch unless there is one. Answers whether it did, the epoch's id, and when reservations are taken.
function operations.begin()
  local began = 0
  if call('EXISTS', KEYS[1]) == 0 then
    call('HSET', KEYS[1], 'id', options.epoch, 'open_at', now + options.recovery)
    began = 1
  end
  local found = fields(KEYS[1], 'id', 'open_at')
  return { began, found.id, tonumber(found.open_at), now }
end

-- Puts what is known from elsewhere into windows: at least `amount` in the bucket. Doing it again changes nothing.
function operations.load()
  for _, item in ipairs(items) do
    local key = key_of(item)
    local width = WIDTHS[item.window]
    local there = tonumber(call('HGET', key, item.bucket) or '0')
    add(key, width, item.bucket, math.max(item.amount - there, 0))
  end
  return #items
end

return operations[ARGV[1]]()
