//! What tests lend to a device: a terminal, a clock that stands still, no memory.

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use crate::{Clock, Console, Gpa, GuestMemory, OutsideRam, Ports, Wish};

#[derive(Default)]
pub(crate) struct Lent {
    pub(crate) now_ns: u64,
    pub(crate) epoch_ns: u64,
    pub(crate) terminal: Terminal,
    /// What the last call asked for.
    pub(crate) wish: Option<Wish>,
}

#[derive(Default)]
pub(crate) struct Terminal {
    pub(crate) input: VecDeque<u8>,
    pub(crate) output: Vec<u8>,
    pub(crate) blocked: bool,
}

struct Time(u64, u64);
struct NoMemory;

impl Lent {
    pub(crate) fn with<R>(&mut self, call: impl FnOnce(&mut Ports<'_>) -> R) -> R {
        let clock = Time(self.now_ns, self.epoch_ns);
        let mut ports = Ports { console: &mut self.terminal, memory: &NoMemory, clock: &clock, wish: None };
        let result = call(&mut ports);
        self.wish = ports.wish;
        result
    }
}

impl Console for Terminal {
    fn put(&mut self, byte: u8) -> bool {
        if !self.blocked {
            self.output.push(byte);
        }
        !self.blocked
    }

    fn get(&mut self) -> Option<u8> {
        self.input.pop_front()
    }
}

impl Clock for Time {
    fn now_ns(&self) -> u64 {
        self.0
    }

    fn epoch_ns(&self) -> u64 {
        self.1
    }
}

impl GuestMemory for NoMemory {
    fn read(&self, _: Gpa, _: &mut [u8]) -> Result<(), OutsideRam> {
        Err(OutsideRam)
    }

    fn write(&self, _: Gpa, _: &[u8]) -> Result<(), OutsideRam> {
        Err(OutsideRam)
    }
}
