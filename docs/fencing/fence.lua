-- EVAL this with KEYS: what is written, and its fence (both with the same {tag} in a cluster); ARGV: the token, the value.
-- Tokens are below 2^53, so that Lua's numbers hold them exactly.
local token, highest = tonumber(ARGV[1]), tonumber(redis.call('GET', KEYS[2]) or 0)
if not token or token < highest then
  return redis.error_reply(string.format('FENCED the token %s is older than %.0f', ARGV[1], highest))
end
redis.call('SET', KEYS[2], ARGV[1])
return redis.call('SET', KEYS[1], ARGV[2])
