//! Ports that a PC's software writes to for the time that a bus cycle takes: nothing is behind them.

use crate::{Access, Device, Ports, Width};

/// The ports that [`crate::pc::DELAY`] places.
#[derive(Clone, Copy, Debug, Default)]
pub struct DelayPort;

impl Device for DelayPort {
    fn access(&mut self, _: u64, access: Access, _: &mut Ports<'_>) -> u64 {
        access.width().mask()
    }

    fn peek(&self, _: u64, width: Width) -> Option<u64> {
        Some(width.mask())
    }

    fn poke(&mut self, _: u64, _: Width, _: u64) -> bool {
        true
    }

    fn irq(&self) -> bool {
        false
    }

    fn notify(&mut self, _: &mut Ports<'_>) {}

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pl011::testing::Lent;

    #[test]
    fn what_is_written_is_gone_and_all_ones_are_read() {
        let mut lent = Lent::default();
        for access in [Access::Write(Width::Byte, 0x12), Access::Read(Width::Byte)] {
            assert_eq!(lent.with(|ports| DelayPort.access(0, access, ports)), 0xff);
        }
        assert_eq!(DelayPort.peek(0, Width::Byte), Some(0xff));
        assert!(DelayPort.poke(0, Width::Byte, 0x12));
        assert_eq!(lent.wish, None);
    }
}
