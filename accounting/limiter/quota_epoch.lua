-- The last part of the limiter's script: what is done about an epoch, at whose beginning Redis knows nothing. It makes the answer
-- for all of them.

-- Begins an epoch unless there is one. Answers whether it did, the epoch's id, and when reservations are taken.
function operations.begin()
  local began = 0
  if call('EXISTS', KEYS[1]) == 0 then
    call('HSET', KEYS[1], 'id', options.epoch, 'open_at', now + options.recovery)
    began = 1
  end
  local found = call('HMGET', KEYS[1], 'id', 'open_at')
  return { began, found[1], tonumber(found[2]), now }
end

-- Puts what is known from elsewhere into windows: at least `amount` at the time the item names, which is a bucket of a window
-- that slides and else the current period. Doing it again changes nothing. A window that slides is given no more than it lacks
-- in all, so its items come together: what was restored, retried or reserved anew counts in a later bucket here than elsewhere.
-- Of an epoch that has not begun, or takes no reservations yet, a recovery sees to it, which adds: nothing is loaded then.
function operations.load()
  local open_at = call('HGET', KEYS[1], 'open_at')
  if not open_at or now < tonumber(open_at) then
    return 0
  end
  local lacking = {}
  for _, item in ipairs(items) do
    local place = place_of(limits[item.limit])
    if place.width and item.bucket >= place.bucket - BUCKETS then
      lacking[place] = (lacking[place] or -place.used) + item.amount
    end
  end
  for _, item in ipairs(items) do
    local place = place_of(limits[item.limit])
    if place.text and not place.there then
      call('SET', place.key, item.exact)
      read_total(place)
    elseif place.text then
      change(place, nil, math.max(exact_difference(item.exact, place.text), 0))
    elseif place.width then
      local there = amount_in(place, item.bucket, call('HGET', place.key, item.bucket))
      local added = math.max(math.min(item.amount - there, lacking[place] or 0), 0)
      lacking[place] = (lacking[place] or 0) - added
      change(place, item.bucket, added)
    else
      change(place, item.bucket, math.max(item.amount - place.used, 0))
    end
  end
  return #items
end

-- Takes what running requests hold of which nothing is known here, whatever the limits say, and renews the others. Answers for
-- each the end of its lease, or 0; and what is to be told about its limits.
function operations.restore()
  local notices = {}
  for index, item in ipairs(items) do
    local ref = reference(item)
    local since = math.min(item.since, now)
    notices[index] = {}
    if not read(ref) and now < since + options.lifetime then
      for _, number in ipairs(item.limits) do
        place_of(limits[number])
      end
      local held, counts = {}, not counted_before(item)
      -- An event holds what its latest attempt holds, which was restored before this one perhaps.
      local over = read(item.event .. ':' .. item.attempt + 1) and true
      if not over then
        take_over(item)
        held = take(item, { ref }, counts, notices[index])
      end
      open(ref, item, { reserve = since, over = over }, held, notices[index])
    end
  end
  return { operations.renew(), notices }
end

-- Makes what is known of windows from elsewhere only, beside what reservations hold of them here, the amount of each item: it
-- replaces what was said so before, until `recovered`. The item names a time as in `load`.
function operations.recover()
  local known = PREFIX .. 'known'
  if call('HEXISTS', KEYS[1], 'recovered') == 1 then
    return 0
  end
  for _, item in ipairs(items) do
    local place = place_of(limits[item.limit])
    local field = place.key .. (place.width and ':' .. item.bucket or '')
    local before = call('HGET', known, field) or '0'
    if place.text then
      call('INCRBY', place.key, item.exact)
      call('DECRBY', place.key, before)
      read_total(place)
    else
      change(place, item.bucket, item.amount - tonumber(before))
    end
    call('HSET', known, field, item.exact)
  end
  return #items
end

function operations.recovered()
  -- Not before: a recovery may be interrupted for longer than anything else is remembered.
  call('DEL', PREFIX .. 'known')
  return call('HSET', KEYS[1], 'recovered', 1)
end

local answer = operations[ARGV[1]]()
write_places()
return cmsgpack.pack(answer)
