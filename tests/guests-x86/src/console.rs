//! Text on the first serial port, polled. Only one CPU at a time may speak.

use core::fmt::{self, Write};

use crate::port;

/// The first serial port.
pub const COM1: u16 = 0x3f8;
/// Its line status; bit 5: it takes another byte.
pub const LINE_STATUS: u16 = COM1 + 5;
/// A byte that it keeps and that means nothing.
pub const SCRATCH: u16 = COM1 + 7;
const READY: u8 = 1 << 5;
/// A bound on waiting, so that a dead port does not hang a program.
const PATIENCE: u32 = 1_000_000;

/// Sends one byte as it is.
pub fn put(byte: u8) {
    for _ in 0..PATIENCE {
        if port::read8(LINE_STATUS) & READY != 0 {
            break;
        }
    }
    port::write8(COM1, byte);
}

/// Waits until the last byte has left.
pub fn drain() {
    for _ in 0..PATIENCE {
        if port::read8(LINE_STATUS) & 1 << 6 != 0 {
            break;
        }
    }
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
