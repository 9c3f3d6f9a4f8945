//! [`StandardFloatModes`]: the floating-point modes that IEEE 754 starts with, for code whose results
//! must have the same bits in every thread.

/// A thread's floating-point modes are the standard ones while this lives: it rounds to nearest even,
/// keeps subnormal numbers, and raises no trap. The caller's modes and sticky flags are restored when
/// it is dropped, on the same thread.
///
/// Processes change the modes for speed (flush to zero) or for interval arithmetic, and a thread that
/// they start inherits them.
pub struct StandardFloatModes {
    callers: control::Register,
    /// The modes belong to one thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl StandardFloatModes {
    /// Sets the modes.
    pub fn set() -> Self {
        let callers = control::get();
        control::put(control::STANDARD);
        Self { callers, _thread: std::marker::PhantomData }
    }
}

impl Drop for StandardFloatModes {
    fn drop(&mut self) {
        control::put(self.callers);
    }
}

/// MXCSR: modes and sticky flags.
#[cfg(target_arch = "x86_64")]
mod control {
    use std::arch::asm;

    pub type Register = u32;

    /// All exceptions masked, everything else 0.
    pub const STANDARD: Register = 0x1f80;

    pub fn get() -> Register {
        let mut register: Register = 0;
        // SAFETY: stores four bytes into the variable.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut register, options(nostack)) };
        register
    }

    pub fn put(register: Register) {
        // SAFETY: loads four bytes, which `get` returned or STANDARD has: no reserved bit is set. The
        // Rust code between two calls does no floating-point arithmetic of its own.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const register, options(nostack)) };
    }
}

/// FPCR: modes.
#[cfg(target_arch = "aarch64")]
mod control {
    use std::arch::asm;

    pub type Register = u64;

    pub const STANDARD: Register = 0;

    pub fn get() -> Register {
        let register: Register;
        // SAFETY: reads the thread's own register.
        unsafe { asm!("mrs {}, fpcr", out(reg) register, options(nostack)) };
        register
    }

    pub fn put(register: Register) {
        // SAFETY: the value is one that `get` returned, or 0. The Rust code between two calls does no
        // floating-point arithmetic of its own.
        unsafe { asm!("msr fpcr, {}", in(reg) register, options(nostack)) };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("add the register of floating-point modes of this processor to os/float_modes.rs");

#[cfg(all(test, target_arch = "x86_64"))]
pub use tests::with_modes;

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    /// Runs `work` with a value of MXCSR.
    pub fn with_modes<T>(register: u32, work: impl FnOnce() -> T) -> T {
        let callers = control::get();
        control::put(register);
        let result = work();
        control::put(callers);
        result
    }

    #[test]
    fn the_callers_modes_are_set_aside_and_restored() {
        // Flush to zero, subnormals as zero, rounding up, and the sticky flag of an overflow.
        let odd = 0x8040 | 0x4000 | 0x1f80 | 0x8;
        with_modes(odd, || {
            let standard = StandardFloatModes::set();
            assert_eq!(control::get(), 0x1f80);
            drop(standard);
            assert_eq!(control::get(), odd);
        });
    }
}
