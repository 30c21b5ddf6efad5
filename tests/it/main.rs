//! Whole handlers in this process, against AWS and Microsoft on loopback.

#[cfg(test)]
mod admin;
#[cfg(test)]
mod consent;
#[cfg(test)]
mod journey;
#[cfg(test)]
mod layers;
#[cfg(test)]
mod local;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod sync;
#[cfg(test)]
mod tokens;
