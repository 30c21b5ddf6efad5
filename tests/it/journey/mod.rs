//! Journeys: the real binaries behind an emulated Lambda, deployed from the template, seen only from outside: as callers
//! of the HTTP API, customers' administrators, the queue, the schedule and readers of the bucket see them.

mod credential;
mod events;
mod five_calls;
mod harness;
mod job;
mod leaks;
mod live;
mod memory;
mod operator;
mod shapes;
mod start;
