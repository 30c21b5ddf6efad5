//! Whole handlers in this process, against AWS and Microsoft on loopback.

#[cfg(test)]
mod admin;
#[cfg(test)]
mod backends;
#[cfg(test)]
mod cases;
#[cfg(test)]
mod consent;
#[cfg(test)]
mod contract;
#[cfg(test)]
mod features;
#[cfg(test)]
mod journey;
#[cfg(test)]
mod later_release;
#[cfg(test)]
mod layers;
#[cfg(test)]
mod ocsf;
#[cfg(test)]
mod panics;
#[cfg(test)]
mod rotation;
#[cfg(test)]
mod snapshots;
#[cfg(test)]
mod sync;
#[cfg(test)]
mod tenant_list;
#[cfg(test)]
mod tokens;
