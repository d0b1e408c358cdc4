-- Takes the lock, or holds it for so long again. ARGV: owner, holder, milliseconds.
-- Answers 1 when this holder has it now, 0 when another one has, -1 when it is another owner's, -2 when not readable.
local own = ARGV[1] .. ' ' .. ARGV[2]
local kept = redis.call('GET', KEYS[1])
if kept and kept ~= own then
    local whose = string.match(kept, '^(%S+) %S+$')
    if not whose then
        return -2
    end
    return whose == ARGV[1] and 0 or -1
end
redis.call('SET', KEYS[1], own, 'PX', ARGV[3])
return 1
