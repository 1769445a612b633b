-- The first part of the limiter's script: the time, and the places where Redis keeps what was taken. `quota_limits.lua` follows.
--
-- One call handles a batch of items, in order; each item all or nothing.
--
-- KEYS[1]  <prefix>epoch. Every key has the same hash tag, so that one primary owns them all and one script sees them all.
-- ARGV[1]  operation: reserve, release, renew, finish, settle, claim, look_up, inspect, keep, time, begin, load,
--          restore, recover, recovered
-- ARGV[2]  map: now (microseconds; absent: Redis's own time), lease, lifetime, memory (microseconds), periods (for each window
--          of the calendar the times at which periods around now begin), limits (each that the items name by its number
--          once), and what the operation takes besides
-- ARGV[3]  array of items
--
-- Both are MessagePack, and so is the answer: whole numbers pass through it exactly, and it is one string for either side to
-- read.
--
-- Keys                                    all begin with that prefix
--   now                                   the latest time seen; time never goes back
--   epoch                                 hash: id, open_at, recovered (once it is). Gone when Redis was emptied
--   known                                 hash: what a recovery put into which window
--   leases                                sorted set: event:attempt by the end of its lease
--   r:<event>:<attempt>                   one reservation, or what must be remembered of a closed one; `quota_reservations.lua` says
--   c:<owner>                             set: the event:attempt in flight
--   w:<owner>:<kind>:<window>             hash: an amount per bucket; total; first (no bucket is older), last (none younger)
--   p:<owner>:<kind>:<window>:<begin>     what was taken in the period of the calendar that began then
--   p:<owner>:<kind>:total                what was ever taken; never expires
--   b:<owner>:cost:total                  the same of a workspace that pays in advance
--   s:<key>:<percent>                     there while the crossing of a soft threshold was told
-- where <owner> is <scope>:<id>:<model>.
--
-- Times are microseconds, money is nano-units: exact in Lua's doubles and in MessagePack, never when joined to a string or
-- encoded as JSON, which round to 14 digits, nor as an argument of call() above 17. `exactly` writes them out.

local PREFIX = KEYS[1]:sub(1, -#'epoch' - 1)
local LEASES = PREFIX .. 'leases'
local SECOND = 1000000
local BUCKETS = 60
local CONCURRENCY_RETRY = SECOND
local EXACT = 2 ^ 53
local WIDTHS = { minute = SECOND, hour = 60 * SECOND }

local call = redis.call
local options = cmsgpack.unpack(ARGV[2])
local items = cmsgpack.unpack(ARGV[3])
local limits = options.limits

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

-- Places: what is taken of a limit at one time, wherever it is kept ------------------------------------------------------------
--
-- A call reads a place once, changes it here, and writes it once, at the end: however many items and limits share it. All have
-- `key`, `used` and `there` (whether Redis has it), and besides
--   a window that slides    width, bucket (the current one), here (what that holds), first, last, and changes: what is added
--                           to which other bucket
--   a period                ends, and added
--   all time                text: `used`, exactly. It is written at once, for sums of it can be more than doubles hold
--   in flight               flying: it is a set, written at once

local places = {}

local function buckets_between(from, to)
  local buckets = {}
  for bucket = from, to do
    buckets[#buckets + 1] = bucket
  end
  return buckets
end

-- Forgets the buckets that the window has left behind.
local function read_window(key, width)
  local current = math.floor(now / width)
  local place = { key = key, width = width, bucket = current, here = 0, used = 0, first = current, last = current }
  local head = call('HMGET', key, 'total', 'first', 'last', current)
  if not head[1] then
    return place
  end
  local total, first, last = tonumber(head[1]), tonumber(head[2]), tonumber(head[3])
  local oldest = current - BUCKETS
  if last < oldest then
    call('DEL', key)
    return place
  end
  if first < oldest then
    local left = buckets_between(first, oldest - 1)
    for _, amount in ipairs(call('HMGET', key, unpack(left))) do
      total = total - tonumber(amount or '0')
    end
    call('HDEL', key, unpack(left))
    first, place.changed = oldest, true
  end
  place.there, place.used, place.first, place.last, place.here = true, total, first, last, tonumber(head[4] or '0')
  return place
end

local function read_period(key, ends)
  local amount = call('GET', key)
  return { key = key, ends = ends, used = tonumber(amount or '0'), there = amount and true, added = 0 }
end

local function read_total(place)
  local amount = call('GET', place.key)
  place.text, place.there = amount or '0', amount and true
  place.used = tonumber(place.text)
  return place
end

-- Of a place for all time.
local function add_to_total(place, delta)
  local sum = call('INCRBY', place.key, exactly(delta))
  if math.abs(sum) < EXACT then
    place.text, place.there, place.used = exactly(sum), true, sum
  else
    read_total(place)
  end
end

local function read_flying(key)
  return { key = key, flying = true, used = call('SCARD', key) }
end

-- When the current period began, and when it ends.
local function period_of(window)
  local begins = options.periods[window]
  local index = 1
  while index < #begins - 1 and now >= begins[index + 1] do
    index = index + 1
  end
  return begins[index], begins[index + 1]
end

local function find_place(limit)
  local owner = limit.scope .. ':' .. limit.scope_id .. ':' .. (limit.model or '')
  if limit.kind == 'concurrency' then
    local key = PREFIX .. 'c:' .. owner
    return places[key] or read_flying(key)
  end
  local name = owner .. ':' .. limit.kind .. ':' .. limit.window
  local width = WIDTHS[limit.window]
  if width then
    local key = PREFIX .. 'w:' .. name
    return places[key] or read_window(key, width)
  elseif limit.window == 'total' then
    local key = PREFIX .. (limit.credit and 'b:' or 'p:') .. name
    return places[key] or read_total({ key = key })
  end
  local begins, ends = period_of(limit.window)
  local key = PREFIX .. 'p:' .. name .. ':' .. exactly(begins / SECOND)
  return places[key] or read_period(key, ends)
end

local function place_of(limit)
  if not limit.place then
    limit.place = find_place(limit)
    places[limit.place.key] = limit.place
  end
  return limit.place
end

-- What a reservation remembers of a place of which it took something, in this order: of one in flight only its name, which is
-- the key without PREFIX; SINCE is the bucket of a window that slides, and the end of a period.
local NAME, KIND, AMOUNT, SINCE, WIDTH = 1, 2, 3, 4, 5

local function entry_of(place, kind, amount)
  return { place.key:sub(#PREFIX + 1), kind, amount, place.width and place.bucket or place.ends, place.width }
end

-- The place that a reservation remembers.
local function place_held(entry)
  local key = PREFIX .. entry[NAME]
  if not places[key] then
    if entry[WIDTH] then
      places[key] = read_window(key, entry[WIDTH])
    elseif entry[SINCE] then
      places[key] = read_period(key, entry[SINCE])
    else
      places[key] = entry[KIND] and read_total({ key = key }) or read_flying(key)
    end
  end
  return places[key]
end

-- Adds `delta`, which may be negative, to what is taken; of a window that slides in a bucket, unless it was left behind.
local function change(place, bucket, delta)
  if delta == 0 or (delta < 0 and not place.there) then
    return
  end
  if place.width then
    if bucket < place.bucket - BUCKETS then
      return
    end
    if bucket == place.bucket then
      place.here = place.here + delta
    else
      place.changes = place.changes or {}
      place.changes[bucket] = (place.changes[bucket] or 0) + delta
    end
    -- It is remembered for as long as its last bucket is looked at.
    place.extended = place.extended or not place.there or bucket > place.last
    place.first, place.last = math.min(place.first, bucket), math.max(place.last, bucket)
  elseif place.ends then
    place.added = place.added + delta
    place.begun = place.begun or not place.there
  else
    add_to_total(place, delta)
    return
  end
  place.there, place.changed, place.used = true, true, place.used + delta
end

local function enter(place, ref)
  place.used = place.used + call('SADD', place.key, ref)
end

local function leave(place, ref)
  place.used = place.used - call('SREM', place.key, ref)
end

-- What a bucket of a window that slides holds.
local function amount_in(place, bucket, found)
  if bucket == place.bucket then
    return place.here
  end
  return tonumber(found or '0') + (place.changes and place.changes[bucket] or 0)
end

local function write_window(place)
  local key, used = place.key, exactly(place.used)
  for bucket, delta in pairs(place.changes or {}) do
    if delta ~= 0 and call('HINCRBY', key, bucket, exactly(delta)) == 0 then
      call('HDEL', key, bucket)
    end
  end
  if place.here == 0 then
    call('HSET', key, 'total', used, 'first', place.first, 'last', place.last)
    call('HDEL', key, place.bucket)
  elseif place.extended then
    call('HSET', key, 'total', used, 'first', place.first, 'last', place.last, place.bucket, exactly(place.here))
  else
    call('HSET', key, 'total', used, 'first', place.first, place.bucket, exactly(place.here))
  end
  if place.extended then
    call('PEXPIRE', key, (BUCKETS + 2) * place.width / 1000)
  end
end

local function write_places()
  for key, place in pairs(places) do
    if place.changed and place.width then
      write_window(place)
    elseif place.changed then
      call('INCRBY', key, exactly(place.added))
      if place.begun then
        -- It is remembered for as long as it may change.
        call('PEXPIRE', key, math.ceil((place.ends + options.memory - now) / 1000))
      end
    end
  end
end

