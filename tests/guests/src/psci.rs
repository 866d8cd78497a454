//! Calls to the firmware: SMCCC and PSCI 1.1 (Arm DEN0028, DEN0022), by HVC and by SMC.
#![expect(unsafe_code, reason = "HVC and SMC")]

use core::arch::asm;

use crate::exception::{self, Fault};

/// PSCI_VERSION.
pub const VERSION: u64 = 0x8400_0000;
/// CPU_SUSPEND, 64-bit convention.
pub const CPU_SUSPEND: u64 = 0xc400_0001;
/// CPU_OFF.
pub const CPU_OFF: u64 = 0x8400_0002;
/// CPU_ON, 64-bit convention.
pub const CPU_ON: u64 = 0xc400_0003;
/// AFFINITY_INFO, 64-bit convention.
pub const AFFINITY_INFO: u64 = 0xc400_0004;
/// MIGRATE_INFO_TYPE.
pub const MIGRATE_INFO_TYPE: u64 = 0x8400_0006;
/// SYSTEM_OFF.
pub const SYSTEM_OFF: u64 = 0x8400_0008;
/// SYSTEM_RESET.
pub const SYSTEM_RESET: u64 = 0x8400_0009;
/// PSCI_FEATURES.
pub const FEATURES: u64 = 0x8400_000a;
/// SMCCC_VERSION.
pub const SMCCC_VERSION: u64 = 0x8000_0000;

/// The caller's number is not that of a function.
pub const NOT_SUPPORTED: i64 = -1;
/// A parameter names nothing that exists.
pub const INVALID_PARAMETERS: i64 = -2;
/// CPU_ON of a CPU that runs.
pub const ALREADY_ON: i64 = -4;
/// CPU_ON at a place where no CPU can start.
pub const INVALID_ADDRESS: i64 = -9;

macro_rules! conduit {
    ($(#[$doc:meta])* $name:ident, $instruction:literal) => {
        $(#[$doc])*
        ///
        /// Returns x0 to x3; a call that the CPU does not know leaves them as they were, if caught.
        pub fn $name(function: u64, a: u64, b: u64, c: u64) -> [u64; 4] {
            let mut x = [function, a, b, c];
            // SAFETY: a call keeps x18 to x30 and memory (SMCCC 2.6); who calls SYSTEM_OFF or CPU_ON means it.
            unsafe {
                asm!($instruction,
                    inout("x0") x[0], inout("x1") x[1], inout("x2") x[2], inout("x3") x[3],
                    out("x4") _, out("x5") _, out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _,
                    out("x11") _, out("x12") _, out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
                    options(nostack));
            }
            x
        }
    };
}

conduit!(
    /// One `HVC #0`.
    hvc, "hvc #0");
conduit!(
    /// One `HVC` with an immediate that no convention uses.
    hvc_odd, "hvc #0x1234");
conduit!(
    /// One `SMC #0`.
    smc, "smc #0");
conduit!(
    /// One `SMC` with an immediate that no convention uses.
    smc_odd, "smc #0x1234");

/// A call by HVC that answers with one signed number. 32-bit functions answer in 32 bits.
pub fn call(function: u64, a: u64, b: u64, c: u64) -> i64 {
    signed(function, hvc(function, a, b, c)[0])
}

/// The signed answer of `function`, from x0.
#[must_use]
pub fn signed(function: u64, x0: u64) -> i64 {
    let wide = x0.cast_signed();
    if function & 1 << 30 != 0 { wide } else { wide << 32 >> 32 }
}

/// An SMC whose UNDEFINED is caught: x0, or the fault.
///
/// # Errors
/// The exception that the instruction raised: there is no firmware to call.
pub fn try_smc(function: u64, a: u64, b: u64, c: u64) -> Result<i64, Fault> {
    let mut x0 = 0;
    match exception::catch(|| x0 = smc(function, a, b, c)[0]) {
        None => Ok(signed(function, x0)),
        Some(fault) => Err(fault),
    }
}

/// Powers the machine off.
pub fn system_off() -> ! {
    loop {
        hvc(SYSTEM_OFF, 0, 0, 0);
        crate::smp::wait_for_interrupt();
    }
}
