// Package auth says who somebody is and what they may do: roles, grants, users with hashed passwords, and what an
// authenticated connection carries.
//
//	record of a user (meta shard) ──Update──► Users ──Password, Certificate──► Identity ──Access──► may it?
//	                                            │ one account per user and kind of credential
//	                                            └─ a changed user changes the account, and with it all its connections
//
// Guarantees
//   - Asking an Identity costs an atomic load and a branch for those who may use all keys; nothing is looked up per request.
//   - A user who was removed, or whose rights were taken, loses them on all connections with the Update that says so; a new
//     password ends the rights of connections that had used the old one.
//   - Passwords are stored as argon2id (the PHC form). Checking one takes about 20 MiB and some tens of milliseconds, so only
//     a few are checked at a time, a bounded number waits, and what was right once is recognized by a fast keyed hash.
//   - A wrong password makes the next attempt of that user from that address wait, twice as long each time, up to PenaltyMax. The
//     table of penalties has a fixed size. An unknown user costs the same time as a known one.
//   - Comparisons are in constant time. No error and no log line holds a password.
//
// It imports the standard library, golang.org/x/crypto and internal/door, and knows nothing of nodes and shards.
package auth
