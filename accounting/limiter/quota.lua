-- The part of the limiter's script that knows the operations on reservations. It stands between `quota_spares.lua` and
-- `quota_epoch.lua`.

local operations = {}

-- Gives places in flight back before what was used is known; everything else stays as it is.
local function finish(ended)
  for _, item in ipairs(ended) do
    local ref = reference(item)
    local state, found = read(ref)
    if state == OPEN then
      leave_all(found.held, ref)
      change_state(ref, ENDED)
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
      answers[index] = item.spares and reserve_spares(item) or reserve(item)
    end
  end
  return { standing, wait, answers }
end

function operations.release()
  local answers = {}
  for index, item in ipairs(items) do
    local ref = reference(item)
    local state, found = read(ref)
    answers[index] = 0
    if options.unused_spares then
      answers[index] = state == OPEN and found.spare and drop_spare(ref, found) or 0
    elseif not state then
      close(ref, RELEASED, {}, {})
    elseif RUNNING[state] then
      close(ref, RELEASED, found, put_back(found.held, ref, NOTHING))
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
    local state, found = read(ref)
    local goes_on = RUNNING[state] and now < deadline_of(found)
    if goes_on and found.spare then
      found.spare = nil
      write(ref, state .. cmsgpack.pack(found))
    end
    answers[index] = goes_on and lease(ref, found) or 0
  end
  return answers
end

-- Makes what a reservation took what it used. Better evidence may do so again; equal or worse changes nothing.
function operations.settle()
  local answers = {}
  for index, item in ipairs(items) do
    local ref = reference(item)
    local state, found = read(ref)
    answers[index] = 0
    if state and item.rank > (found.rank or -1) then
      found.rank = item.rank
      close(ref, UNSETTLED[state] and SETTLED or state, found, put_back(found.held, ref, item))
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
    local state, found = read(ref)
    if state == OPEN and found.spare then
      drop_spare(ref, found)
    elseif UNSETTLED[state] then
      leave_all(found.held, ref)
      change_state(ref, EXPIRING)
      call('ZADD', LEASES, now + options.hold, ref)
      answers[#answers + 1] = { ref, found.reserve, found.about }
    else
      call('ZREM', LEASES, ref)
    end
  end
  return answers
end

-- Answers whether each is known at all, whether it still runs, and when it was made.
function operations.look_up()
  local answers = {}
  for index, item in ipairs(items) do
    local state, found = read(reference(item))
    answers[index] = { state ~= nil, UNSETTLED[state] == true, found.reserve or 0 }
  end
  return answers
end

operations.keep = keep_outcomes

function operations.time()
  return now
end

-- Answers for each item where its limits stand.
function operations.inspect()
  local answers = {}
  for index, item in ipairs(items) do
    answers[index] = states_of(item.limits)
  end
  return answers
end
