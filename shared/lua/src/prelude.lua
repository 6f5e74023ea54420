-- What is written in Lua itself: only Lua can yield, and what the library's own functions leave unbounded is bounded
-- here. Nothing in here can be reached by a script but through what it returns or sets.
local asks, search_work, max_move = ...
local yield, type, error, rawpairs = coroutine.yield, type, error, pairs

local handle = {}

function handle.body(self, always_wrap)
    if asks.body(self, always_wrap == true) then
        yield()
    end
    return asks.whole(self)
end

function handle.bodyChunks(self)
    return function()
        asks.chunk(self)
        return yield()
    end
end

function handle.trailers(self)
    if asks.trailers(self) then
        return yield()
    end
    return asks.fields(self)
end

function handle.httpCall(self, cluster, headers, body, timeout, options)
    if asks.call(self, cluster, headers, body, timeout, options) then
        return yield()
    end
end

function handle.respond(self, headers, body)
    asks.respond(self, headers, body)
    yield()
    error("the request was answered", 0)
end

-- As LuaJIT does for Envoy's objects.
pairs = function(of)
    if type(of) ~= "userdata" then
        return rawpairs(of)
    end
    local entries, at = of:__entries(), -1
    return function()
        at += 2
        return entries[at], entries[at + 1]
    end
end

-- The library compares a pattern with a text without a look at its interrupt: the work is the product of both lengths.
local function bounded(text, pattern)
    if type(text) == "string" and type(pattern) == "string" and #text * #pattern > search_work then
        error("the text and the pattern are too long together", 3)
    end
end

for _, name in { "find", "match", "gmatch", "gsub", "split" } do
    local own = string[name]
    string[name] = function(text, pattern, ...)
        bounded(text, pattern)
        return own(text, pattern, ...)
    end
end

-- Comparing two long strings is one step, and a sort makes many of them without a look at its interrupt: a comparison
-- in Lua is a call.
local sort = table.sort
table.sort = function(list, less)
    if less == nil then
        sort(list, function(a, b) return a < b end)
    else
        sort(list, function(a, b) return less(a, b) end)
    end
end

local move = table.move
table.move = function(from, first, last, to, ...)
    if type(first) == "number" and type(last) == "number" and not (last - first < max_move) then
        error("too many elements to move", 2)
    end
    return move(from, first, last, to, ...)
end

EnvoyTimestampResolution = table.freeze({ MILLISECOND = "ms", MICROSECOND = "us" })

-- LuaJIT's name for what Luau has as well. Results are unsigned.
bit = table.freeze({
    band = bit32.band,
    bor = bit32.bor,
    bxor = bit32.bxor,
    bnot = bit32.bnot,
    lshift = bit32.lshift,
    rshift = bit32.rshift,
    arshift = bit32.arshift,
    rol = bit32.lrotate,
    ror = bit32.rrotate,
})
unpack = table.unpack

return handle
