-- The part of the limiter's script that knows reservations. It stands between `quota_keys.lua` and `quota_spares.lua`.
--
-- A reservation is one string: a letter, which is its state, and a map in MessagePack of what is known of it. An open one's
-- lease is in LEASES. A closed one stays for `memory`:
--   revision, reserve      of what it reserved last, and when it was made
--   held                   what it took of which place; of places in flight while it is open
--   about                  for whom and what, while it is open
--   key                    its idempotency key
--   over                   a later attempt has taken over
--   refusal                of a better figure that did not fit
--   rank                   the evidence it was settled by
--   spare                  of one that no request is known to have been made with: where its request was counted

local OPEN, ENDED, EXPIRING, RELEASED, REFUSED, SETTLED = 'o', 'e', 'x', 'r', 'f', 's'
-- One that has ENDED is open, but its places in flight were given back; one that is EXPIRING was claimed by a sweeper.
local RUNNING = { [OPEN] = true, [ENDED] = true }
local UNSETTLED = { [OPEN] = true, [ENDED] = true, [EXPIRING] = true }
local NOTHING = { input = 0, output = 0, cost = 0 }
local NOTHING_KNOWN = {}

local function reference(item)
  return item.event .. ':' .. item.attempt
end

local function decode(text)
  local _, found = cmsgpack.unpack_one(text, 1)
  return text:sub(1, 1), found
end

-- Its state, nil if nobody knows it; what is known of it; and both as they are written.
local function read(ref)
  local text = call('GET', PREFIX .. 'r:' .. ref)
  if not text then
    return nil, NOTHING_KNOWN
  end
  local state, found = decode(text)
  return state, found, text
end

local function write(ref, text, ...)
  call('SET', PREFIX .. 'r:' .. ref, text, ...)
end

local function change_state(ref, state)
  call('SETRANGE', PREFIX .. 'r:' .. ref, 0, state)
end

local function close(ref, state, found, held)
  call('ZREM', LEASES, ref)
  found.about, found.spare, found.held = nil, nil, held
  write(ref, state .. cmsgpack.pack(found), 'PX', math.ceil(options.memory / 1000))
end

-- When it ends whatever is told of it.
local function deadline_of(found)
  return found.reserve + options.lifetime
end

local function lease(ref, found)
  local ends = math.min(now + options.lease, deadline_of(found))
  call('ZADD', LEASES, ends, ref)
  return ends
end

-- Whether an earlier attempt of the event was open, and has been counted as a request then.
local function counted_before(item)
  for attempt = item.attempt - 1, 0, -1 do
    local _, found = read(item.event .. ':' .. attempt)
    if found.reserve then
      return true
    end
  end
  return false
end

local function open(ref, item, found, held, notices)
  found.revision, found.held, found.about = item.revision, held, item.about
  write(ref, OPEN .. cmsgpack.pack(found))
  return { 'granted', found.reserve, lease(ref, found), '', states_of(item.limits), notices }
end

local function refuse(refusal, item, notices)
  return { 'refused', 0, 0, refusal, states_of(item.limits), notices }
end

local function replace(ref, item, found)
  if now >= deadline_of(found) then
    return { 'closed', 0, 0, '', {}, {} }
  end
  -- The old tokens go first, so that the new ones may take their place; a place in flight is kept.
  local tokens, places = {}, {}
  for _, entry in ipairs(found.held) do
    if entry[KIND] then
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
    found.refusal, found.revision = refusal, item.revision
    close(ref, REFUSED, found, {})
    if item.idempotency then
      free_key(item.idempotency.name, item.event)
    end
    return refuse(refusal, item, notices)
  end
  found.spare = nil
  local held = take(item, { ref }, false, notices)
  local taken = {}
  for _, entry in ipairs(held) do
    taken[entry[NAME]] = true
  end
  -- A limit that no longer applies still holds its place until the reservation closes.
  for _, entry in ipairs(places) do
    if not taken[entry[NAME]] then
      held[#held + 1] = entry
    end
  end
  return open(ref, item, found, held, notices)
end

-- An event holds what its latest attempt holds: a retry elsewhere takes over from the attempts before it, which keep their
-- leases until somebody knows what became of them. Returns what has to be undone when the retry is refused.
local function take_over(item)
  local before = {}
  for attempt = item.attempt - 1, 0, -1 do
    local ref = item.event .. ':' .. attempt
    local state, found, text = read(ref)
    if state and not found.over then
      put_back(found.held, ref, NOTHING)
      found.held, found.over, found.spare = {}, true, nil
      write(ref, state .. cmsgpack.pack(found), 'KEEPTTL')
      before[#before + 1] = { ref = ref, text = text }
    end
  end
  return before
end

local function give_back(before)
  for _, one in ipairs(before) do
    local state, found = decode(one.text)
    for _, entry in ipairs(found.held) do
      if entry[KIND] then
        change(place_held(entry), entry[SINCE], entry[AMOUNT])
      elseif state == OPEN then
        enter(place_held(entry), one.ref)
      end
    end
    write(one.ref, one.text, 'KEEPTTL')
  end
end

local function reserve_first(ref, item)
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
  local found = { reserve = now }
  if item.idempotency then
    hold_key(item)
    found.key = item.idempotency.name
  end
  return open(ref, item, found, take(item, { ref }, counts, notices), notices)
end

local function reserve(item)
  local ref = reference(item)
  local state, found = read(ref)
  if not state then
    return reserve_first(ref, item)
  end
  local known = found.revision and item.revision <= found.revision
  if found.over then
    return { 'closed', 0, 0, '', {}, {} }
  elseif state == OPEN and known then
    return { 'granted', found.reserve, tonumber(call('ZSCORE', LEASES, ref)), '', states_of(item.limits), {} }
  elseif state == OPEN then
    return replace(ref, item, found)
  elseif state == REFUSED and known then
    return { 'refused', 0, 0, found.refusal, states_of(item.limits), {} }
  end
  return { 'closed', 0, 0, '', {}, {} }
end
