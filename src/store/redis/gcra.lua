-- Counts a request against each key in turn, until one may not. ARGV: owner and limit of each key.
-- What is owed of a key is kept in units of a request's 60,000,000th part: each request adds 60,000,000, each
-- microsecond of this server's clock takes the limit off. So all numbers are whole, and exact below 2^53.
-- Answers for each key that was asked: verdict (1 may, 0 may not, -1 another's, -2 not readable) and what is owed.
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local REQUEST = 60000000
local answers = {}
for i, key in ipairs(KEYS) do
    local owner, limit = ARGV[2 * i - 1], tonumber(ARGV[2 * i])
    local owed, at = 0, now
    local kept = redis.call('GET', key)
    if kept then
        local whose, counted, debt, since = string.match(kept, '^(%S+) (%d+) (%d+) (%d+)$')
        if not whose then
            answers[i] = {-2, 0}
            break
        end
        if whose ~= owner then
            answers[i] = {-1, 0}
            break
        end
        -- Another limit begins anew.
        if tonumber(counted) == limit then
            owed, at = tonumber(debt), tonumber(since)
        end
    end
    -- A clock that was set back takes nothing off, and goes on from where it is.
    owed = math.max(owed - math.max(now - at, 0) * limit, 0)
    local verdict = 0
    if owed + REQUEST <= REQUEST * limit then
        owed = owed + REQUEST
        verdict = 1
    end
    if verdict == 1 or now < at then
        local kept_ms = math.ceil(owed / limit / 1000) + 1
        local value = string.format('%s %.0f %.0f %.0f', owner, limit, owed, now)
        redis.call('SET', key, value, 'PX', string.format('%.0f', kept_ms))
    end
    answers[i] = {verdict, owed}
    if verdict == 0 then
        break
    end
end
return answers
