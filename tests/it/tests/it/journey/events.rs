//! Events that no function was made for: each is refused in the interface's words, and no process dies of one.
