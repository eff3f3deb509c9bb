-- What a small interpreter exercises: closures, coroutines, metatables, patterns, integers and floats.
local function numbers(limit)
    return coroutine.wrap(function() for i = 1, limit do coroutine.yield(i) end end)
end
local sum = 0
for i in numbers(100000) do sum = sum + i end
assert(sum == 5000050000)
local vector = setmetatable({1, 2}, {__add = function(a, b) return a[1] + b[1] end})
assert(vector + vector == 2)
assert(("stage2.aarch64-musl"):match("^(%a+%d)%.") == "stage2")
assert(math.maxinteger + 1 == math.mininteger and 7 // 2 == 3 and 2 ^ 0.5 > 1.414)
local ok, message = pcall(error, {code = 7})
assert(not ok and message.code == 7)
local words = {}
for word in ("the quick brown fox"):gmatch("%a+") do words[#words + 1] = word end
table.sort(words)
print(table.concat(words, " "), string.format("%5.2f", math.pi))
