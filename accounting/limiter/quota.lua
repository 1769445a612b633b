-- The part of the limiter's script that knows reservations and the operations on them. It stands between `quota_keys.lua` and
-- `quota_epoch.lua`.
--
-- A reservation's state is open, expiring (claimed by a sweeper), released, refused (a better figure did not fit) or settled.

local NOTHING = { input = 0, output = 0, cost = 0 }

-- Reservations -------------------------------------------------------------------------------------------------------------

local function reference(item)
  return item.event .. ':' .. item.attempt
end

local function close(key, ref, state, held)
  call('ZREM', LEASES, ref)
  call('HDEL', key, 'about', 'lease', 'deadline')
  call('HSET', key, 'state', state, 'held', cjson.encode(held))
  call('PEXPIRE', key, math.ceil(options.memory / 1000))
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

local function open(key, ref, item, reserved, deadline, held, notices)
  local lease = math.min(now + options.lease, deadline)
  call('HSET', key, 'state', 'open', 'revision', item.revision, 'reserve', reserved, 'lease', lease, 'deadline', deadline,
    'counted', 1, 'held', cjson.encode(held), 'about', item.about)
  call('ZADD', LEASES, lease, ref)
  return { 'granted', reserved, lease, '', states_of(item.limits), notices }
end

local function refuse(refusal, item, notices)
  return { 'refused', 0, 0, refusal, states_of(item.limits), notices }
end

local function replace(key, ref, item, found)
  local reserved, deadline = tonumber(found.reserve), tonumber(found.deadline)
  if now >= deadline then
    return { 'closed', 0, 0, '', {}, {} }
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
  local notices = {}
  local refusal = refusal_of(item, ref, false, notices)
  if refusal then
    put_back(places, ref, NOTHING)
    close(key, ref, 'refused', {})
    call('HSET', key, 'refusal', cjson.encode(refusal), 'revision', item.revision)
    if item.idempotency then
      free_key(item.idempotency.name, item.event)
    end
    return refuse(refusal, item, notices)
  end
  local held = take(item, ref, false, notices)
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
  return open(key, ref, item, reserved, deadline, held, notices)
end

local function fields(key, ...)
  local values = call('HMGET', key, ...)
  local found = {}
  for index, name in ipairs({ ... }) do
    found[name] = values[index]
  end
  return found
end

-- An event holds what its latest attempt holds: a retry elsewhere takes over from the attempts before it, which keep their
-- leases until somebody knows what became of them. Returns what has to be undone when the retry is refused.
local function take_over(item)
  local before = {}
  for attempt = item.attempt - 1, 0, -1 do
    local ref = item.event .. ':' .. attempt
    local key = PREFIX .. 'r:' .. ref
    local found = fields(key, 'state', 'held', 'over')
    if found.state and not found.over then
      put_back(cjson.decode(found.held), ref, NOTHING)
      call('HSET', key, 'held', '{}', 'over', 1)
      before[#before + 1] = { key = key, ref = ref, held = found.held, state = found.state }
    end
  end
  return before
end

local function give_back(before)
  for _, one in ipairs(before) do
    for _, entry in ipairs(cjson.decode(one.held)) do
      if entry.kind then
        change(place_held(entry), entry.bucket, tonumber(entry.amount))
      elseif one.state == 'open' then
        enter(place_held(entry), one.ref)
      end
    end
    call('HSET', one.key, 'held', one.held)
    call('HDEL', one.key, 'over')
  end
end

local function reserve(item)
  local ref = reference(item)
  local key = PREFIX .. 'r:' .. ref
  if call('EXISTS', key) == 0 then
    -- Nobody holds a place who has no reservation.
    item.fresh = true
    local held = keyed_before(item)
    if held then
      return { 'held', 0, 0, held, states_of(item.limits), {} }
    end
    local notices = {}
    local counts = not counted_before(item)
    local before = take_over(item)
    local refusal = refusal_of(item, ref, counts, notices)
    if refusal then
      give_back(before)
      if item.idempotency then
        free_key(item.idempotency.name, item.event)
      end
      return refuse(refusal, item, notices)
    end
    if item.idempotency then
      hold_key(item)
      call('HSET', key, 'key', item.idempotency.name)
    end
    return open(key, ref, item, now, now + options.lifetime, take(item, ref, counts, notices), notices)
  end
  local found = fields(key, 'state', 'revision', 'reserve', 'lease', 'deadline', 'held', 'refusal', 'over', 'ended')
  if found.over or found.ended then
    return { 'closed', 0, 0, '', {}, {} }
  end
  local known = found.revision and item.revision <= tonumber(found.revision)
  if found.state == 'open' and known then
    return { 'granted', tonumber(found.reserve), tonumber(found.lease), '', states_of(item.limits), {} }
  elseif found.state == 'open' then
    return replace(key, ref, item, found)
  elseif found.state == 'refused' and known then
    return { 'refused', 0, 0, cjson.decode(found.refusal), states_of(item.limits), {} }
  end
  return { 'closed', 0, 0, '', {}, {} }
end

-- Operations ---------------------------------------------------------------------------------------------------------------

local operations = {}

-- Gives places in flight back before what was used is known; everything else stays as it is.
local function finish(ended)
  for _, item in ipairs(ended) do
    local ref = reference(item)
    local key = PREFIX .. 'r:' .. ref
    local found = fields(key, 'state', 'held')
    if found.state == 'open' then
      local kept = {}
      for _, entry in ipairs(cjson.decode(found.held)) do
        if entry.kind then
          kept[#kept + 1] = entry
        else
          leave(place_held(entry), ref)
        end
      end
      call('HSET', key, 'held', cjson.encode(kept), 'ended', 1)
    end
  end
  return #ended
end

function operations.finish()
  return finish(items)
end

-- Answers {"ok" | "lost" | "recovering", microseconds to wait, {an answer per item}}.
function operations.reserve()
  finish(options.finished or {})
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
    local found = fields(key, 'state', 'held', 'over', 'key')
    answers[index] = 0
    if not found.state then
      close(key, ref, 'released', {})
    elseif found.state == 'open' then
      close(key, ref, 'released', put_back(cjson.decode(found.held), ref, NOTHING))
      if found.key and not found.over then
        free_key(found.key, item.event)
      end
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
    local found = fields(key, 'state', 'held', 'rank', 'over', 'key')
    answers[index] = 0
    if found.state and item.rank > tonumber(found.rank or '-1') then
      local state = found.state
      if state == 'open' or state == 'expiring' then
        state = 'settled'
      end
      close(key, ref, state, put_back(cjson.decode(found.held), ref, item))
      call('HSET', key, 'rank', item.rank)
      if found.key and not found.over then
        end_key(found.key, item.event)
      end
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
          leave(place_held(entry), ref)
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

operations.keep = keep_outcomes

-- Answers for each item where its limits stand.
function operations.inspect()
  local answers = {}
  for index, item in ipairs(items) do
    answers[index] = states_of(item.limits)
  end
  return answers
end
