-- The token buckets and slots of one account's subjects, looked at and changed as a whole.
--
-- KEYS    two for each claim: the hash of its buckets, the sorted set of its slots. All
--         carry the account in braces, so that in a cluster they lie on one node.
-- ARGV[1] what is to be done: acquire, renew, close or status
-- ARGV[2] the time in microseconds since 1970, or '' for this server's own
-- ARGV[3] the lease in microseconds
-- ARGV[4] the id of the grant
-- ARGV[5] requests and
-- ARGV[6] tokens that are taken (acquire) or given back (close; below zero: taken)
-- ARGV[7] and on, three for each claim: requests a minute, tokens a minute and calls at
--         once, '' where there is no limit
--
-- Answers whether it was done (1 or 0), and then for each claim what is left: units of
-- requests, units of tokens, calls that run. A token is 60,000,000 units, of which a
-- bucket that holds C a minute gains C each microsecond: whole numbers, and exact as long
-- as they stay below 2^53.

local UNITS = 60000000
-- Units of debt, at most: more could not be counted exactly.
local DEEPEST = 150000000 * UNITS
local act, lease, grant = ARGV[1], tonumber(ARGV[3]), ARGV[4]
local amounts = {requests = tonumber(ARGV[5]), tokens = tonumber(ARGV[6])}

local now = tonumber(ARGV[2])
if not now then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

-- level * new / old, rounded down, in steps that stay below 2^53: what is left over of a
-- step, times 4096, is carried to the next.
local function share(level, old, new)
  local whole = math.floor(level / old)
  local rest = level - whole * old
  local high = math.floor(rest / 4096) * new
  local carried = math.floor(high / old)
  local low = (high - carried * old) * 4096 + rest % 4096 * new
  return whole * new + carried * 4096 + math.floor(low / old)
end

-- What a bucket holds now; one that is not there is full, and one whose capacity has
-- changed holds the same share of it.
local function refilled(level, old, capacity, elapsed)
  if not capacity then return nil end
  if not level then return capacity * UNITS end
  level = level + elapsed * old
  if level >= old * UNITS then return capacity * UNITS end
  if old == 0 or old == capacity then return level end
  return math.max(share(level, old, capacity), -DEEPEST)
end

-- The clock was put back: time goes on from here, and no lease that is left lasts longer
-- than the longest that there is.
local function go_back(subject)
  redis.call('HSET', subject.buckets, 'at', now)
  local last = now + subject.lease
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', subject.slots, last, '+inf')) do
    redis.call('ZADD', subject.slots, last, id)
  end
end

-- Microseconds until no call holds a slot any more; the leases of workers may differ.
local function longest_hold(subject)
  if subject.running == 0 then return 0 end
  return redis.call('ZREVRANGE', subject.slots, 0, 0, 'WITHSCORES')[2] - now
end

-- A claim's subject as it stands now: for a call that asks, under the limits of the
-- claim; for one under way, under those that it stood under last.
local function look(number)
  local first = 7 + 3 * (number - 1)
  local subject = {buckets = KEYS[2 * number - 1], slots = KEYS[2 * number]}
  local kept = redis.call('HMGET', subject.buckets, 'at', 'rpm', 'requests', 'tpm', 'tokens',
    'lease')
  for place, value in ipairs(kept) do kept[place] = tonumber(value) or false end
  local at, rpm, requests, tpm, tokens = unpack(kept)
  subject.lease = math.max(lease, kept[6] or 0)
  if at and at > now then go_back(subject) end
  local elapsed = at and math.max(0, now - at) or 0
  subject.rpm, subject.tpm = tonumber(ARGV[first]), tonumber(ARGV[first + 1])
  subject.concurrent = tonumber(ARGV[first + 2])
  if at and (act == 'renew' or act == 'close') then subject.rpm, subject.tpm = rpm, tpm end
  subject.requests = refilled(requests, rpm, subject.rpm, elapsed)
  subject.tokens = refilled(tokens, tpm, subject.tpm, elapsed)
  redis.call('ZREMRANGEBYSCORE', subject.slots, '-inf', now)
  subject.running = redis.call('ZCARD', subject.slots)
  return subject
end

local function has_room(subject)
  return not (subject.requests and subject.requests < amounts.requests * UNITS
    or subject.tokens and subject.tokens < amounts.tokens * UNITS
    or subject.concurrent and subject.running >= subject.concurrent)
end

-- Microseconds until a bucket is full.
local function missing(level, capacity)
  if not level or capacity == 0 then return 0 end
  return (capacity * UNITS - level) / capacity
end

-- Keep a subject for as long as it differs from one that was never seen.
local function save(subject)
  local kept = {'at', now, 'lease', subject.lease}
  for name, limit in pairs({requests = 'rpm', tokens = 'tpm'}) do
    if subject[limit] then
      for _, value in ipairs({limit, subject[limit], name, subject[name]}) do
        table.insert(kept, value)
      end
    else
      redis.call('HDEL', subject.buckets, limit, name)
    end
  end
  redis.call('HSET', subject.buckets, unpack(kept))
  local full = math.max(
    missing(subject.requests, subject.rpm), missing(subject.tokens, subject.tpm))
  local rest = math.ceil(math.max(full, longest_hold(subject)) / 1000) + 1000
  redis.call('PEXPIRE', subject.buckets, rest)
  redis.call('PEXPIRE', subject.slots, rest)
end

local function add(subject, sign)
  for name, limit in pairs({requests = 'rpm', tokens = 'tpm'}) do
    if subject[name] then
      local level = subject[name] + sign * amounts[name] * UNITS
      subject[name] = math.max(-DEEPEST, math.min(level, subject[limit] * UNITS))
    end
  end
end

local acts = {}

function acts.status()
  return true
end

function acts.acquire(subjects)
  for _, subject in ipairs(subjects) do
    if not has_room(subject) then return false end
  end
  for _, subject in ipairs(subjects) do
    add(subject, -1)
    redis.call('ZADD', subject.slots, now + lease, grant)
    subject.running = subject.running + 1
    save(subject)
  end
  return true
end

function acts.renew(subjects)
  for _, subject in ipairs(subjects) do
    if not redis.call('ZSCORE', subject.slots, grant) then return false end
    redis.call('ZADD', subject.slots, now + lease, grant)
    save(subject)
  end
  return true
end

function acts.close(subjects)
  for _, subject in ipairs(subjects) do
    if redis.call('ZREM', subject.slots, grant) == 0 then return false end
    subject.running = subject.running - 1
    add(subject, 1)
    save(subject)
  end
  return true
end

local subjects = {}
for number = 1, #KEYS / 2 do subjects[number] = look(number) end
local answer = {acts[act](subjects) and 1 or 0}
for _, subject in ipairs(subjects) do
  table.insert(answer, subject.requests or 0)
  table.insert(answer, subject.tokens or 0)
  table.insert(answer, subject.running)
end
return answer
