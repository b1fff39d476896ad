package resp

import "github.com/kiloraft/kiloraft/internal/budget"

// stacksBytes is about what the two goroutines of a connection take.
const stacksBytes = 16 << 10

// Budgets are the bounds of the memory that Redis clients take.
func (c Config) Budgets() []budget.Line {
	c.fill()
	return []budget.Line{
		{What: "Redis: requests being read and in flight, replies in the making and not taken", Bytes: 2 * c.HeldBytesMax,
			Then: "from half of it on a connection of the host that holds most is closed; at it, whoever adds"},
		{What: "Redis: requests of 1 MiB and more, from when they are read until they are done", Bytes: int64(limitsFull.requestBytes), Then: "hosts wait in turn; who pauses for 2 s is cut off", Within: true},
		{What: "Redis: those of them in the cluster", Bytes: bigDoBytes, Then: "hosts wait in turn", Within: true},
		{What: "Redis: big replies in the making, by what is expected", Bytes: c.BigBytesMax, Then: "hosts wait in turn; who takes nothing for 2 s is cut off", Within: true},
		{What: "Redis: replies of a connection", Bytes: int64(c.ReplyBytesMax), Per: "connection", Count: int64(c.ConnsMax), Then: "the command fails, or the connection is closed", Within: true},
		{What: "Redis: buffers and stacks", Bytes: readBufferSize + arenaSize + stacksBytes, Per: "connection", Count: int64(c.ConnsMax), Then: "the longest silent connection is closed, or the new one refused"},
	}
}
