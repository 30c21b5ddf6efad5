//! The real program, from outside: its exit status, what it prints, and what it sends.

#[cfg(test)]
mod api;
#[cfg(test)]
mod certificate;
#[cfg(test)]
mod check;
#[cfg(test)]
#[cfg(target_os = "linux")]
mod console;
#[cfg(test)]
mod hunting;
#[cfg(test)]
mod json;
#[cfg(test)]
mod mcp;
#[cfg(test)]
mod problems;
#[cfg(test)]
mod register;
#[cfg(test)]
mod terminal;
