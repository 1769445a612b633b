-- The part of the limiter's script that knows idempotency keys: which request has one, and what became of it. It stands
-- between `quota_limits.lua` and `quota_reservations.lua`.
--
-- Keys                                    all begin with PREFIX
--   i:<scope>:<id>:<hash>                 hash: the request that a caller gave a key to: event, digest, state, ends (when the
--                                         key is free again), ended (when it was settled)
--   o:<event>                             what to answer when it is asked for again, encrypted
--
-- A key's state is running, answered (the outcome is kept) or too_large (it was answered, by more than is kept).

local function key_fields(key)
  local values = call('HMGET', key, 'event', 'digest', 'state', 'ends', 'ended')
  return { event = values[1], digest = values[2], state = values[3], ends = tonumber(values[4]),
    ended = tonumber(values[5]) }
end

local function key_of(name)
  return PREFIX .. 'i:' .. name
end

-- Why the item is not to be made, because its key has another request: that event, its state, and its outcome. nil when it may.
local function keyed_before(item)
  local wanted = item.idempotency
  if not wanted then
    return nil
  end
  local found = key_fields(key_of(wanted.name))
  if not found.event or found.event == item.event or now >= found.ends then
    return nil
  end
  local held = { event = found.event, state = found.state, sealed = '' }
  if found.digest ~= wanted.digest then
    held.state = 'conflict'
  elseif found.state == 'answered' then
    held.sealed = call('GET', PREFIX .. 'o:' .. found.event) or ''
  elseif found.state == 'running' and found.ended and now >= found.ended + options.lease then
    -- Whoever would have told the outcome is gone.
    held.state = 'lost'
  end
  return held
end

-- Gives the key to the item, for as long as its reservation can live.
local function hold_key(item)
  local key = key_of(item.idempotency.name)
  call('DEL', key)
  call('HSET', key, 'event', item.event, 'digest', item.idempotency.digest, 'state', 'running', 'ends',
    now + options.lifetime)
  call('PEXPIRE', key, math.ceil(options.lifetime / 1000))
end

-- Lets the key go if the event still runs with it. Answers whether it did.
local function free_key(name, event)
  local found = key_fields(key_of(name))
  if found.event == event and found.state == 'running' then
    call('DEL', key_of(name))
    return 1
  end
  return 0
end

-- Remembers that the engine has done with the event: its outcome comes soon or never.
local function end_key(name, event)
  local found = key_fields(key_of(name))
  if found.event == event and found.state == 'running' and not found.ended then
    call('HSET', key_of(name), 'ended', now)
  end
end

-- Answers for each item whether its key has the fate now that it says.
local function keep_outcomes()
  local answers = {}
  for index, item in ipairs(items) do
    local key, found = key_of(item.name), key_fields(key_of(item.name))
    if item.fate == 'failed' then
      answers[index] = free_key(item.name, item.event)
    elseif found.event ~= item.event or found.state ~= 'running' then
      answers[index] = found.event == item.event and found.state == item.fate and 1 or 0
    else
      local milliseconds = math.ceil(options.outcomes / 1000)
      call('HSET', key, 'state', item.fate, 'ends', now + options.outcomes)
      call('PEXPIRE', key, milliseconds)
      if item.fate == 'answered' then
        call('SET', PREFIX .. 'o:' .. item.event, item.sealed, 'PX', milliseconds)
      end
      answers[index] = 1
    end
  end
  return answers
end
