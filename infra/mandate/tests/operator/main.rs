//! The real program, from outside: its exit status, what it prints, and what it sends.

mod api;
mod certificate;
mod check;
mod hunting;
mod json;
mod mcp;
mod problems;
mod register;
mod terminal;
