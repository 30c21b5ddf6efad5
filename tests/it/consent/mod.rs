//! Onboarding, by the handler as a browser sees it; each link of the chain is broken once.

mod binding;
mod chain;
mod forged;
mod harness;
mod later_release;
mod onboarding;
mod pages;
mod races;
mod refusals;
