//! dx, dgamma and dbeta of any finite bits are those of the definition, within a bound that follows from the arithmetic.
//!
//! A NaN or an infinity stays where it is documented to stay. `tests/support` has the oracle.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llm_operator_fuzz::{AnyCall, with_call};

fuzz_target!(|call: AnyCall| with_call!(call, |call| call.assert_backward_is_within_bounds()));
