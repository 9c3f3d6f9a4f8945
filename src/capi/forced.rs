//! Functions that tests call in a build with the feature `forced-panics`; no other build has them.

use crate::os::sync::forced;

/// Makes the calling thread panic at its point number `point` from now. The beginning of an
/// exported function is a point, and so is every lock that is taken; 0 is the next one.
#[unsafe(no_mangle)]
pub extern "C" fn wb_force_panic(point: u32) {
    forced::arm(point);
}

/// Cancels the panic; returns 1 if it had not happened yet.
#[unsafe(no_mangle)]
pub extern "C" fn wb_take_back_panic() -> i32 {
    forced::disarm().into()
}
