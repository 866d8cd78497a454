//! What the bare-metal test guests share: how they start, speak, fail, and drive the machine.
//!
//! The machine is the subset of QEMU's `virt` that Bulkhead offers, so each program runs under Bulkhead and on
//! QEMU alike; where the two differ by intent, a check asks [`machine::is_hypervised`] and is skipped.
//! Everything here runs at EL1 with an identity map. Programs end by [`tap::Tap::finish`] or [`psci::system_off`].
#![no_std]

pub mod console;
pub mod exception;
pub mod gic;
pub mod machine;
pub mod mmio;
pub mod mmu;
pub mod psci;
pub mod random;
pub mod registers;
pub mod smp;
mod start;
pub mod tap;
pub mod timer;

pub use psci::system_off as power_off;
pub use start::{ENTRY_CONTEXT_MASK, EntryState, entry_state, secondary_entry};

/// The most CPUs that a test guest uses.
pub const MAX_CPUS: usize = 16;

/// Names the functions of a program: `main` on the first CPU, what serves an interrupt, and what a further CPU
/// runs once it was started (with its index; it is switched off when that returns).
#[macro_export]
macro_rules! program {
    ($main:path) => {
        $crate::program!($main, $crate::exception::unexpected_interrupt);
    };
    ($main:path, $interrupt:path) => {
        $crate::program!($main, $interrupt, $crate::smp::unexpected_cpu);
    };
    ($main:path, $interrupt:path, $secondary:path) => {
        #[expect(unsafe_code, reason = "the start code finds the program by these names")]
        const _: () = {
            #[unsafe(no_mangle)]
            extern "Rust" fn guest_main() {
                $main();
            }

            #[unsafe(no_mangle)]
            extern "Rust" fn guest_interrupt() {
                $interrupt();
            }

            #[unsafe(no_mangle)]
            extern "Rust" fn guest_secondary(cpu: usize) {
                $secondary(cpu);
            }
        };
    };
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    println!("Bail out! {info}");
    psci::system_off()
}
