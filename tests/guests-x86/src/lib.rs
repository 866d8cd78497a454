//! What the bare-metal test guests for PCs share: how they start, speak, fail, and drive the machine.
//!
//! The machine is the PC that Bulkhead offers, so each program runs under Bulkhead and on QEMU and Bochs alike; where
//! they differ by intent, a check asks [`machine::is_hypervised`] and is skipped. Everything here runs in long mode with an
//! identity map. Programs end by [`tap::Tap::finish`] or [`power_off`].
#![no_std]

pub mod acpi;
pub mod apic;
pub mod console;
pub mod cpu;
pub mod event_timer;
pub mod exception;
pub mod irq;
pub mod machine;
pub mod port;
#[path = "../../guests/src/random.rs"]
pub mod random;
pub mod smp;
mod start;
pub mod tables;
#[path = "../../guests/src/tap.rs"]
pub mod tap;
pub mod timer;

pub use machine::power_off;
pub use start::{EntryState, entry_state};

/// The most CPUs that a test guest uses.
pub const MAX_CPUS: usize = 16;

/// Names the functions of a program: `main` on the first CPU, what serves an interrupt (with its vector), and what a
/// further CPU runs once it was started (with its index; it halts when that returns).
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
            extern "Rust" fn guest_interrupt(vector: u8) {
                $interrupt(vector);
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
    power_off()
}
