-- The part of the limiter's script that knows what a limit makes of a request. It stands between `quota_places.lua` and
-- `quota_keys.lua`.

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

-- How much may be taken still; below 0 where more is taken than may be.
local function left_of(limit, place)
  if place.text then
    return exact_difference(limit.exact, place.text)
  end
  return limit.limit - place.used
end

local AMOUNTS = {
  input_tokens = function(item) return item.input end,
  output_tokens = function(item) return item.output end,
  total_tokens = function(item) return item.input + item.output end,
  cost = function(item) return item.cost end,
}

-- What the item takes of a limit; `counts` tells whether it is a request that was not counted yet.
local function amount_of(limit, place, item, ref, counts)
  if place.flying then
    return item.fresh and 1 or 1 - call('SISMEMBER', place.key, ref)
  elseif limit.kind == 'requests' then
    return counts and 1 or 0
  end
  return AMOUNTS[limit.kind](item)
end

-- How long until so much has left the window.
local function wait_for(place, need)
  local width = place.width
  local buckets = buckets_between(place.first, place.bucket)
  local freed = 0
  for index, amount in ipairs(call('HMGET', place.key, unpack(buckets))) do
    freed = freed + amount_in(place, buckets[index], amount)
    if freed >= need then
      return (buckets[index] + BUCKETS + 1) * width - now
    end
  end
  return (place.bucket + BUCKETS + 1) * width - now
end

-- How long until `amount` fits.
local function wait_of(limit, place, amount)
  if place.width then
    return wait_for(place, place.used + amount - limit.limit)
  elseif place.ends then
    return math.max(place.ends - now, SECOND)
  end
  return CONCURRENCY_RETRY
end

-- nil, or the limit that refuses: the one that no waiting helps with, else the one to wait for longest. What a limit in
-- shadow would have refused is told in `notices`.
local function refusal_of(item, ref, counts, notices)
  local worst = nil
  for position, number in ipairs(item.limits) do
    local limit = limits[number]
    local place = place_of(limit)
    local amount = amount_of(limit, place, item, ref, counts)
    if amount > 0 and amount > left_of(limit, place) then
      if limit.shadow then
        notices[#notices + 1] = position
        notices[#notices + 1] = 0
      else
        local found = {
          scope = limit.scope, kind = limit.kind, window = limit.window, limit = limit.exact or exactly(limit.limit),
          requested = exactly(amount),
        }
        if amount > limit.limit or place.text then
          return found
        end
        local retry = wait_of(limit, place, amount)
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
local function warn(position, limit, place, notices)
  for _, percent in ipairs(limit.soft_thresholds or {}) do
    if place.used > 0 and place.used * 100 >= limit.limit * percent then
      local lasts = place.width and (BUCKETS + 1) * place.width or place.ends and place.ends - now or 60 * SECOND
      local mark = PREFIX .. 's:' .. place.key:sub(#PREFIX + 1) .. ':' .. percent
      local told
      if place.text then
        -- A limit for all time that is raised is another one.
        told = call('SET', mark .. ':' .. limit.exact, 1, 'NX')
      else
        told = call('SET', mark, 1, 'NX', 'PX', math.max(math.ceil(lasts / 1000), 1))
      end
      if told then
        notices[#notices + 1] = position
        notices[#notices + 1] = percent
      end
    end
  end
end

-- Takes what the limits allow, for each of `refs`; returns what a later settlement of any of them has to replace or give back.
-- Two limits on the same thing count it once.
local function take(item, refs, counts, notices)
  local held, done = {}, {}
  for _, number in ipairs(item.limits) do
    local limit = limits[number]
    local place = limit.place
    if not done[place] then
      done[place] = true
      if place.flying then
        for _, ref in ipairs(refs) do
          enter(place, ref)
        end
        held[#held + 1] = entry_of(place)
      elseif limit.kind == 'requests' then
        change(place, place.bucket, counts and #refs or 0)
      else
        local amount = AMOUNTS[limit.kind](item)
        change(place, place.bucket, amount * #refs)
        held[#held + 1] = entry_of(place, limit.kind, amount)
      end
    end
  end
  for position, number in ipairs(item.limits) do
    warn(position, limits[number], limits[number].place, notices)
  end
  return held
end

-- Gives back the places in flight.
local function leave_all(held, ref)
  for _, entry in ipairs(held) do
    if not entry[KIND] then
      leave(place_held(entry), ref)
    end
  end
end

-- Makes the amounts held those of `exact`, gives places in flight back; returns what is still worth remembering.
local function put_back(held, ref, exact)
  local kept = {}
  for _, entry in ipairs(held) do
    if entry[KIND] then
      local amount = AMOUNTS[entry[KIND]](exact)
      change(place_held(entry), entry[SINCE], amount - entry[AMOUNT])
      entry[AMOUNT] = amount
      kept[#kept + 1] = entry
    else
      leave(place_held(entry), ref)
    end
  end
  return kept
end

-- Remaining and time to a full limit, one after the other, in the order of the limits. Of a limit for all time: what was ever
-- taken, as a text, and -1: never.
local function states_of(numbers)
  local states = {}
  for _, number in ipairs(numbers) do
    local limit = limits[number]
    local place = place_of(limit)
    local reset = options.lifetime
    if place.width then
      reset = (place.last + BUCKETS + 1) * place.width - now
    elseif place.ends then
      reset = math.max(place.ends - now, 0)
    elseif place.text then
      reset = -1
    end
    states[#states + 1] = place.text or math.max(limit.limit - place.used, 0)
    states[#states + 1] = place.used > 0 and reset or 0
  end
  return states
end

