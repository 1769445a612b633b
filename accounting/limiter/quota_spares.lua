-- The part of the limiter's script that knows spares. It stands between `quota_reservations.lua` and `quota.lua`.
--
-- What is reserved before there is a request for it. It is a reservation like any other, but that a sweeper drops it when its
-- lease ends, unless that was renewed: nobody is to hear of a request that nobody made.

-- How many times as much as spares take must be left of a limit.
local TIMES_LEFT = 64

-- As many of the item as there is room for.
local function room_for_spares(item)
  local room = #item.spares
  for _, number in ipairs(item.limits) do
    local place = place_of(limits[number])
    local amount = amount_of(limits[number], place, item, nil, true)
    if amount > 0 then
      room = math.min(room, math.floor(left_of(limits[number], place) / (amount * TIMES_LEFT)))
    end
  end
  return math.max(room, 0)
end

local function spare_references(item, most)
  local refs = {}
  for index = 1, most do
    refs[index] = item.spares[index] .. ':0'
  end
  return refs
end

-- Where a request of the item is counted.
local function entries_of_requests(item)
  local entries, done = {}, {}
  for _, number in ipairs(item.limits) do
    local limit = limits[number]
    if limit.kind == 'requests' and not done[limit.place] then
      done[limit.place] = true
      entries[#entries + 1] = entry_of(limit.place, limit.kind, 1)
    end
  end
  return entries
end

-- The answer to one that is asked again.
local function spares_there(item)
  local refs, there = spare_references(item, #item.spares), 0
  for _, ref in ipairs(refs) do
    there = there + call('EXISTS', PREFIX .. 'r:' .. ref)
  end
  local _, found = read(refs[1])
  local ends = tonumber(call('ZSCORE', LEASES, refs[1]) or '0')
  return { 'granted', found.reserve or now, ends, '', states_of(item.limits), {}, there }
end

local function reserve_spares(item)
  if call('EXISTS', PREFIX .. 'r:' .. spare_references(item, 1)[1]) == 1 then
    return spares_there(item)
  end
  item.fresh = true
  local states, notices = states_of(item.limits), {}
  local refs = spare_references(item, room_for_spares(item))
  local ends = math.min(now + options.lease, now + options.lifetime)
  if #refs > 0 then
    local found = { revision = 0, reserve = now, about = item.about, spare = entries_of_requests(item) }
    found.held = take(item, refs, true, notices)
    local text, leases = OPEN .. cmsgpack.pack(found), {}
    for _, ref in ipairs(refs) do
      write(ref, text)
      leases[#leases + 1] = ends
      leases[#leases + 1] = ref
    end
    call('ZADD', LEASES, unpack(leases))
  end
  return { 'granted', now, ends, '', states, notices, #refs }
end

-- Forgets one, and gives back all that it took.
local function drop_spare(ref, found)
  for _, entry in ipairs(found.spare) do
    change(place_held(entry), entry[SINCE], -1)
  end
  put_back(found.held, ref, NOTHING)
  call('ZREM', LEASES, ref)
  call('DEL', PREFIX .. 'r:' .. ref)
  return 1
end
