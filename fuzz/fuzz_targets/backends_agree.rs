//! Every backend with fused multiply-add has the bits of the model, however memory lies and rows are split into calls.
//!
//! A NaN or an infinity stays where it is documented to stay. `tests/support` has the oracle.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_operator_fuzz::{AnyCall, with_call};

fuzz_target!(|call: AnyCall| with_call!(call, |call| call.assert_backends_agree()));
