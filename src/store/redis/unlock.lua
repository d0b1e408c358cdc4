-- Lets go of the lock, if this holder has it. ARGV: owner, holder.
-- Answers 1 when it had, 0 when another one or nobody has it, -1 when it is another owner's, -2 when not readable.
local kept = redis.call('GET', KEYS[1])
if not kept then
    return 0
end
if kept == ARGV[1] .. ' ' .. ARGV[2] then
    redis.call('DEL', KEYS[1])
    return 1
end
local whose = string.match(kept, '^(%S+) %S+$')
if not whose then
    return -2
end
return whose == ARGV[1] and 0 or -1
