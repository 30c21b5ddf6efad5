//! Whole handlers in this process, against AWS and Microsoft on loopback.

mod admin;
mod consent;
mod local;
