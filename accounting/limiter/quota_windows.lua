-- The first part of the limiter's script: the time, the windows, and what a limit makes of a request. `quota.lua` follows.
--
-- One call handles a batch of items, in order; each item all or nothing.
--
-- KEYS[1]  {naru}:epoch. Every key has the same hash tag, so that one primary owns them all and one script sees them all.
-- ARGV[1]  operation: reserve, release, renew, settle, claim, look_up, inspect, begin, load
-- ARGV[2]  JSON object: now (microseconds; absent: Redis's own time), lease, lifetime, memory (microseconds), periods (for
--          each window of the calendar the times at which periods around now begin), and what the operation takes besides
-- ARGV[3]  JSON array of items
--
-- Keys                                    all begin with {naru}:
--   now                                   the latest time seen; time never goes back
--   epoch                                 hash: id, open_at. Gone when Redis was emptied
--   leases                                sorted set: event:attempt by the end of its lease
--   r:<event>:<attempt>                   hash: one reservation, or what must be remembered of a closed one
--   c:<owner>                             set: the event:attempt in flight
--   w:<owner>:<kind>:<window>             hash: an amount per bucket; total; first (no bucket is older), last (none younger)
--   p:<owner>:<kind>:<window>:<begin>     what was taken in the period of the calendar that began then
--   p:<owner>:<kind>:total                what was ever taken; never expires
--   s:<key>:<percent>                     there while the crossing of a soft threshold was told
-- where <owner> is <scope>:<id>:<model>.
--
-- Times are microseconds, money is nano-units: exact in Lua's doubles and in call(), never when joined to a string or encoded
-- as JSON, which round to 14 digits. `exactly` writes them out.

local PREFIX = '{naru}:'
local LEASES = PREFIX .. 'leases'
local SECOND = 1000000
local BUCKETS = 60
local CONCURRENCY_RETRY = SECOND
local WIDTHS = { minute = SECOND, hour = 60 * SECOND }

local call = redis.call
local options = cjson.decode(ARGV[2])
local items = cjson.decode(ARGV[3])

local function exactly(number)
  return string.format('%.0f', number)
end

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

-- Windows that slide ---------------------------------------------------------------------------------------------------------

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
local function slide(key, width, bucket, delta)
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

-- Windows of the calendar ----------------------------------------------------------------------------------------------------

-- When the current period began, and when it ends.
local function period_of(window)
  local begins = options.periods[window]
  local index = 1
  while index < #begins - 1 and now >= begins[index + 1] do
    index = index + 1
  end
  return begins[index], begins[index + 1]
end

-- Adds `delta`, which may be negative, to a period that ends at `ends`; it is remembered for as long as it may change. All
-- time has no end.
local function add_to_period(key, ends, delta)
  if delta == 0 or (delta < 0 and call('EXISTS', key) == 0) then
    return
  end
  call('INCRBY', key, delta)
  if ends then
    call('PEXPIREAT', key, math.ceil((ends + options.memory) / 1000))
  end
end

-- All time -------------------------------------------------------------------------------------------------------------------

-- What was ever taken, and what may be, can be more than doubles hold: both are compared as texts, in two halves. The result is
-- exact wherever it is small enough to matter.
local function exact_difference(one, other)
  local function halves(text)
    local digits, negative = text:gsub('^%-', '')
    local sign = negative == 1 and -1 or 1
    return sign * tonumber('0' .. digits:sub(1, -10)), sign * tonumber(digits:sub(-9))
  end
  local one_high, one_low = halves(one)
  local other_high, other_low = halves(other)
  return (one_high - other_high) * 1000000000 + (one_low - other_low)
end

-- Places: what is taken of a limit at one time, wherever it is kept ------------------------------------------------------------

local function place_of(limit)
  local owner = limit.scope .. ':' .. limit.scope_id .. ':' .. limit.model
  if limit.kind == 'concurrency' then
    return { key = PREFIX .. 'c:' .. owner }
  end
  local name = owner .. ':' .. limit.kind .. ':' .. limit.window
  local width = WIDTHS[limit.window]
  if limit.window == 'total' then
    return { key = PREFIX .. 'p:' .. name, total = true }
  elseif width then
    return { key = PREFIX .. 'w:' .. name, width = width, bucket = math.floor(now / width) }
  end
  local begins, ends = period_of(limit.window)
  return { key = PREFIX .. 'p:' .. name .. ':' .. exactly(begins / SECOND), ends = ends }
end

-- How much is taken; and of a window that slides, the first and last bucket that hold some.
local function taken_of(place)
  if place.width then
    return advance(place.key, place.bucket)
  elseif place.ends or place.total then
    return tonumber(call('GET', place.key) or '0')
  end
  return call('SCARD', place.key)
end

-- How much may be taken still; below 0 where more is taken than may be.
local function left_of(limit, place, used)
  if place.total then
    return exact_difference(limit.exact, call('GET', place.key) or '0')
  end
  return limit.limit - used
end

local function change(place, delta)
  if place.width then
    slide(place.key, place.width, place.bucket, delta)
  else
    add_to_period(place.key, place.ends, delta)
  end
end

local AMOUNTS = {
  input_tokens = function(item) return item.input end,
  output_tokens = function(item) return item.output end,
  total_tokens = function(item) return item.input + item.output end,
  cost = function(item) return item.cost end,
}

-- What the item takes of a limit; `counts` tells whether it is a request that was not counted yet.
local function amount_of(limit, place, item, ref, counts)
  if limit.kind == 'concurrency' then
    return 1 - call('SISMEMBER', place.key, ref)
  elseif limit.kind == 'requests' then
    return counts and 1 or 0
  end
  return AMOUNTS[limit.kind](item)
end

-- How long until `amount` fits.
local function wait_of(limit, place, amount, used, first)
  if place.width then
    return wait_for(place.key, place.width, used + amount - limit.limit, first)
  elseif place.ends then
    return math.max(place.ends - now, SECOND)
  end
  return CONCURRENCY_RETRY
end

-- nil, or the limit that refuses: the one that no waiting helps with, else the one to wait for longest. What a limit in
-- shadow would have refused is told in `notices`.
local function refusal_of(item, ref, counts, notices)
  local worst = nil
  for index, limit in ipairs(item.limits) do
    local place = place_of(limit)
    local amount = amount_of(limit, place, item, ref, counts)
    local used, first = taken_of(place)
    if amount > 0 and amount > left_of(limit, place, used) then
      if limit.shadow then
        notices[#notices + 1] = index
        notices[#notices + 1] = 0
      else
        local found = {
          scope = limit.scope, kind = limit.kind, window = limit.window, limit = limit.exact or exactly(limit.limit),
          requested = exactly(amount),
        }
        if amount > limit.limit or place.total then
          return found
        end
        local retry = wait_of(limit, place, amount, used, first)
        if not worst or retry > tonumber(worst.retry) then
          found.retry = exactly(retry)
          worst = found
        end
      end
    end
  end
  return worst
end

-- Tells once per window that a limit is used to one of its thresholds.
local function warn(index, limit, place, notices)
  if #limit.soft_thresholds == 0 then
    return
  end
  local used = taken_of(place)
  for _, percent in ipairs(limit.soft_thresholds) do
    if used > 0 and used * 100 >= limit.limit * percent then
      local lasts = place.width and (BUCKETS + 1) * place.width or place.ends and place.ends - now or 60 * SECOND
      local mark = PREFIX .. 's:' .. place.key:sub(#PREFIX + 1) .. ':' .. percent
      local told
      if place.total then
        -- A limit for all time that is raised is another one.
        told = call('SET', mark .. ':' .. limit.exact, 1, 'NX')
      else
        told = call('SET', mark, 1, 'NX', 'PX', math.max(math.ceil(lasts / 1000), 1))
      end
      if told then
        notices[#notices + 1] = index
        notices[#notices + 1] = percent
      end
    end
  end
end

-- Takes what the limits allow; returns what a later settlement has to replace or give back. Two limits on the same thing
-- count it once.
local function take(item, ref, counts, notices)
  local held, done = {}, {}
  for index, limit in ipairs(item.limits) do
    local place = place_of(limit)
    if not done[place.key] then
      done[place.key] = true
      if limit.kind == 'concurrency' then
        call('SADD', place.key, ref)
        held[#held + 1] = { key = place.key }
      elseif limit.kind == 'requests' then
        change(place, counts and 1 or 0)
      else
        local amount = AMOUNTS[limit.kind](item)
        change(place, amount)
        place.kind, place.amount = limit.kind, exactly(amount)
        place.ends = place.ends and exactly(place.ends)
        held[#held + 1] = place
      end
    end
  end
  for index, limit in ipairs(item.limits) do
    warn(index, limit, place_of(limit), notices)
  end
  return held
end

-- Makes the amounts held those of `exact`, gives places in flight back; returns what is still worth remembering.
local function put_back(held, ref, exact)
  local kept = {}
  for _, entry in ipairs(held) do
    if entry.kind then
      local amount = AMOUNTS[entry.kind](exact)
      change({ key = entry.key, width = entry.width, bucket = entry.bucket, ends = tonumber(entry.ends) },
        amount - tonumber(entry.amount))
      entry.amount = exactly(amount)
      kept[#kept + 1] = entry
    else
      call('SREM', entry.key, ref)
    end
  end
  return kept
end

-- Remaining and time to a full limit, one after the other, in the order of the limits. Of a limit for all time: what was ever
-- taken, as a text, and -1: never.
local function states_of(limits)
  local states = {}
  for _, limit in ipairs(limits) do
    local place = place_of(limit)
    local used, _, last = taken_of(place)
    local reset = options.lifetime
    if place.width then
      reset = (last + BUCKETS + 1) * place.width - now
    elseif place.ends then
      reset = math.max(place.ends - now, 0)
    elseif place.total then
      reset = -1
    end
    if place.total then
      states[#states + 1] = call('GET', place.key) or '0'
    else
      states[#states + 1] = math.max(limit.limit - used, 0)
    end
    states[#states + 1] = used > 0 and reset or 0
  end
  return states
end
