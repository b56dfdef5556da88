//! What the checker promises, on operations that are written out here.

mod bugs;
mod layer_norm;
mod notebook;
mod threads;
mod verdicts;
