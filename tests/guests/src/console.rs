//! Text on the PL011, polled. Only one CPU at a time may speak.

use core::fmt::{self, Write};

use crate::mmio;

/// The UART's registers.
pub const UART: usize = 0x0900_0000;
/// Flag register; bit 5: transmit FIFO full (PL011 TRM 3.3.3).
pub const FLAGS: usize = UART + 0x18;
const TRANSMIT_FULL: u32 = 1 << 5;
/// A bound on waiting for room, so that a dead UART does not hang a program.
const PATIENCE: u32 = 1_000_000;

/// Sends one byte as it is.
pub fn put(byte: u8) {
    for _ in 0..PATIENCE {
        if mmio::read32(FLAGS) & TRANSMIT_FULL == 0 {
            break;
        }
        crate::smp::pause();
    }
    mmio::write32(UART, u32::from(byte));
}

struct Console;

impl Write for Console {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            if byte == b'\n' {
                put(b'\r');
            }
            put(byte);
        }
        Ok(())
    }
}

#[doc(hidden)]
pub fn print(text: fmt::Arguments<'_>) {
    // `Console` never fails.
    let _ = Console.write_fmt(text);
}

/// Prints like `std::print!`.
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => { $crate::console::print(format_args!($($text)*)) };
}

/// Prints like `std::println!`.
#[macro_export]
macro_rules! println {
    () => { $crate::print!("\n") };
    ($($text:tt)*) => {{
        $crate::print!($($text)*);
        $crate::print!("\n");
    }};
}
