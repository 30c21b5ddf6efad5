//! Whole handlers in this process, against AWS and Microsoft on loopback.

mod admin;
mod aws;
mod consent;
mod local;
mod tokens;
