//! The machine's own 16550 (National PC16550D datasheet), which carries all consoles.

use super::mmio::Page;
use super::{in8, out8};
use crate::machine::{self, Register};
use bulkhead::console;
use core::sync::atomic::{AtomicBool, Ordering};

/// Registers by their number.
const DATA: u8 = 0;
const INTERRUPTS: u8 = 1;
const FIFO: u8 = 2;
const LINE_CONTROL: u8 = 3;
const MODEM_CONTROL: u8 = 4;
const LINE_STATUS: u8 = 5;
const SCRATCH: u8 = 7;

/// IER: something was received; there is room to send.
const RECEIVED: u8 = 1;
const ROOM: u8 = 2;
/// IIR: the FIFOs are on.
const HAS_FIFO: u8 = 0xc0;
/// FCR: on, both emptied, interrupt at the first byte.
const FIFO_ON: u8 = 0x07;
/// LCR: 8 bits, no parity, one stop bit; the divisor is reached in place of data and interrupts.
const LINE_8N1: u8 = 0x03;
const DIVISOR: u8 = 0x80;
/// MCR: DTR, RTS, and OUT2, which lets the interrupt out of the chip.
const READY: u8 = 0x0b;
/// LSR: a byte was received; all bytes before were sent.
const HAS_BYTE: u8 = 0x01;
const EMPTY: u8 = 0x20;
const SENT: u8 = 0x40;
/// How many bytes a FIFO takes once it is empty.
const FIFO_BYTES: u8 = 16;

/// How often a UART that does not send is looked at.
const MOST_LOOKS: u32 = 1_000_000;

/// Whether output waits until the UART has room.
static HAS_BACKLOG: AtomicBool = AtomicBool::new(false);

/// Whether output waited for room when the console was last served.
pub(crate) fn has_backlog() -> bool {
    HAS_BACKLOG.load(Ordering::Relaxed)
}

/// The UART.
pub struct Pc16550 {
    place: Place,
    fifo_bytes: u8,
    /// How many more bytes it takes before it has to be asked again.
    room: u8,
    wants_room: bool,
}

#[derive(Clone, Copy)]
enum Place {
    Ports(u16),
    Memory { page: Page, offset: u16, stride: u8 },
}

impl Pc16550 {
    /// The UART that firmware names, sending at 115200 baud, or at firmware's speed where firmware uses it; it does not
    /// interrupt. What it was sending before is sent. `None` if nothing answers.
    ///
    /// # Safety
    /// There is a UART there, or nothing; its page is mapped, if it is in memory.
    #[must_use]
    pub unsafe fn new(uart: &machine::Uart) -> Option<Self> {
        let place = match uart.registers {
            Register::Port(port) => Place::Ports(port),
            Register::Memory(at) => Place::Memory {
                // SAFETY: the caller answers for the page; a UART reaches no memory.
                page: unsafe { Page::new(at) },
                offset: (at & 0xfff) as u16,
                stride: uart.stride,
            },
        };
        let mut new = Self { place, fifo_bytes: 1, room: 0, wants_room: false };
        if !new.answers() {
            return None;
        }
        for _ in 0..MOST_LOOKS {
            if new.read(LINE_STATUS) & SENT != 0 {
                break;
            }
        }
        new.write(INTERRUPTS, 0);
        if !uart.is_set_up {
            new.write(LINE_CONTROL, LINE_8N1 | DIVISOR);
            new.write(DATA, 1);
            new.write(INTERRUPTS, 0);
        }
        new.write(LINE_CONTROL, LINE_8N1);
        new.write(FIFO, FIFO_ON);
        new.write(MODEM_CONTROL, READY);
        if new.read(FIFO) & HAS_FIFO == HAS_FIFO {
            new.fifo_bytes = FIFO_BYTES;
        }
        Some(new)
    }

    /// From now on what is received interrupts.
    pub fn start_receiving(&mut self) {
        self.write(INTERRUPTS, RECEIVED);
    }

    /// Where nothing is, all ones are read, whatever was written.
    fn answers(&mut self) -> bool {
        self.write(SCRATCH, 0x5a);
        self.read(SCRATCH) == 0x5a || self.read(LINE_STATUS) != 0xff
    }

    fn read(&self, register: u8) -> u8 {
        match self.place {
            // SAFETY: a register of the UART; reading it changes nothing in memory.
            Place::Ports(first) => unsafe { in8(first.wrapping_add(register.into())) },
            Place::Memory { page, offset, stride } => page.read8(offset_of(offset, stride, register)),
        }
    }

    fn write(&self, register: u8, value: u8) {
        match self.place {
            // SAFETY: as above.
            Place::Ports(first) => unsafe { out8(first.wrapping_add(register.into()), value) },
            Place::Memory { page, offset, stride } => page.write8(offset_of(offset, stride, register), value),
        }
    }
}

fn offset_of(first: u16, stride: u8, register: u8) -> usize {
    usize::from(first) + usize::from(stride) * usize::from(register)
}

impl console::Uart for Pc16550 {
    fn has_room(&mut self) -> bool {
        if self.room == 0 && self.read(LINE_STATUS) & EMPTY != 0 {
            self.room = self.fifo_bytes;
        }
        self.room > 0
    }

    fn put(&mut self, byte: u8) {
        self.room = self.room.saturating_sub(1);
        self.write(DATA, byte);
    }

    fn get(&mut self) -> Option<u8> {
        (self.read(LINE_STATUS) & HAS_BYTE != 0).then(|| self.read(DATA))
    }

    fn want_room(&mut self, wanted: bool) {
        if wanted != self.wants_room {
            self.wants_room = wanted;
            HAS_BACKLOG.store(wanted, Ordering::Relaxed);
            self.write(INTERRUPTS, if wanted { RECEIVED | ROOM } else { RECEIVED });
        }
    }
}
