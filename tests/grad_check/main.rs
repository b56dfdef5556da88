//! What the checker promises, on operations that are written out here.

mod bugs;
mod corners;
mod exact;
mod layer_norm;
mod local;
mod modes;
mod notebook;
mod seeds;
mod sweep;
mod threads;
mod verdicts;
