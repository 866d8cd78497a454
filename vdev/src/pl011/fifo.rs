//! The UART's FIFO: 16 bytes, in order, never more.

/// A queue of bytes that never grows.
#[derive(Clone, Debug)]
pub(super) struct Fifo {
    bytes: [u8; Fifo::DEPTH],
    head: usize,
    len: usize,
}

impl Fifo {
    pub(super) const DEPTH: usize = 16;

    pub(super) const fn new() -> Self {
        Self { bytes: [0; Self::DEPTH], head: 0, len: 0 }
    }

    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) fn first(&self) -> Option<u8> {
        (self.len != 0).then(|| self.bytes[self.head % Self::DEPTH])
    }

    /// Drops the byte when full; callers ask for room first.
    pub(super) fn push(&mut self, byte: u8) {
        if self.len < Self::DEPTH {
            self.bytes[(self.head + self.len) % Self::DEPTH] = byte;
            self.len += 1;
        }
    }

    pub(super) fn pop(&mut self) -> Option<u8> {
        let byte = self.first()?;
        self.head = (self.head + 1) % Self::DEPTH;
        self.len -= 1;
        Some(byte)
    }
}
