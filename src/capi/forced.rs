//! What tests of a build with `forced-panics` call; no other build has it.

use crate::os::sync::forced;

/// The calling thread panics at its point number `point` from now: 0 is where the next exported function
/// begins, and every lock that is taken is one more.
#[unsafe(no_mangle)]
pub extern "C" fn wb_force_panic(point: u32) {
    forced::arm(point);
}

/// 1 when the panic has not come yet; it no longer does.
#[unsafe(no_mangle)]
pub extern "C" fn wb_take_back_panic() -> i32 {
    forced::disarm().into()
}
