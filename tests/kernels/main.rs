//! The kernels: their values, their accuracy, their bits, on every backend and any number of threads.
//!
//! One program, because what these tests share is as large as they are, and is built for four instruction sets and sanitizers.

#[path = "../support/mod.rs"]
mod support;

mod accuracy;
mod any_bits;
mod backends;
mod backward;
mod contract;
mod extremes;
mod forward;
mod threads;
