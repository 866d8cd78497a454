//! A UART's FIFO: 16 bytes, in order, never more.

/// A queue of bytes that never grows.
#[derive(Clone, Debug)]
pub(crate) struct Fifo {
    bytes: [u8; Fifo::DEPTH],
    head: usize,
    len: usize,
}

impl Fifo {
    pub(crate) const DEPTH: usize = 16;

    pub(crate) const fn new() -> Self {
        Self { bytes: [0; Self::DEPTH], head: 0, len: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn first(&self) -> Option<u8> {
        (self.len != 0).then(|| self.bytes[self.head % Self::DEPTH])
    }

    /// Drops the byte when full; callers ask for room first.
    pub(crate) fn push(&mut self, byte: u8) {
        if self.len < Self::DEPTH {
            self.bytes[(self.head + self.len) % Self::DEPTH] = byte;
            self.len += 1;
        }
    }

    pub(crate) fn pop(&mut self) -> Option<u8> {
        let byte = self.first()?;
        self.head = (self.head + 1) % Self::DEPTH;
        self.len -= 1;
        Some(byte)
    }
}
