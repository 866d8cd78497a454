//! PCI: one bus with its host bridge and nothing else, by configuration ports and by memory (ECAM).
//!
//! The bridge is q35's, so that operating systems know it. It has no base addresses, no capabilities and nothing to
//! set: all of its configuration space is read-only. The reset control register is here because its port lies
//! within those of the configuration address.

use crate::isa::byte;
use crate::pc::{PCI_ECAM_BYTES, PCI_ECAM_OFFSET, RESET_CONTROL};
use crate::pc_reset::ResetControl;
use crate::{Access, Device, Ports, Width};

/// Configuration address and data (PCI Local Bus 3.0, 3.2.2.3.2), and the port of reset control.
const ADDRESS: u64 = 0;
const RESET: u64 = (RESET_CONTROL & 7) as u64;
const DATA: u64 = 4;
const DATA_END: u64 = 8;

/// The address selects a register, rather than nothing.
const ADDRESS_ENABLE: u32 = 1 << 31;
const ADDRESS_KEPT: u32 = 0x80ff_fffc;
/// Bus, device and function of an address.
const ADDRESS_FUNCTION: u32 = 0xff_ff00;

/// The bridge's header (PCI Local Bus 3.0, 6.1): Intel, q35's; memory and bus mastering on; revision 0, class host
/// bridge; type 0.
const HEADER: [u32; 4] = [0x29c0_8086, 0x0000_0006, 0x0600_0000, 0x0000_0000];
/// The first register behind the header, and the one with the subsystem: as on QEMU.
const SUBSYSTEM_REGISTER: u64 = 0x2c;
const SUBSYSTEM: u32 = 0x1100_1af4;
/// Bytes of a function's configuration space, by memory and by ports.
const FUNCTION_BYTES: u64 = 0x1000;

/// The host bridge and the ways to it.
#[derive(Clone, Debug, Default)]
pub struct PciHost {
    address: u32,
    reset_control: ResetControl,
}

impl PciHost {
    /// A bus as after power-on.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn read(&self, offset: u64, width: Width) -> u64 {
        match (offset, width) {
            (ADDRESS, Width::Word) => u64::from(self.address),
            (RESET, Width::Byte) => u64::from(self.reset_control.read()),
            (DATA..DATA_END, _) => self.read_data(offset - DATA, width),
            (PCI_ECAM_OFFSET.., _) => configuration(offset - PCI_ECAM_OFFSET, width),
            _ => width.mask(),
        }
    }

    fn write(&mut self, offset: u64, width: Width, value: u64, ports: &mut Ports<'_>) {
        match (offset, width) {
            (ADDRESS, Width::Word) => self.address = (value & 0xffff_ffff) as u32 & ADDRESS_KEPT,
            (RESET, Width::Byte) => self.reset_control.write(byte(value, 0), ports),
            _ => {}
        }
    }

    /// By the ports, only one bus's first 256 bytes of each function can be reached.
    fn read_data(&self, within: u64, width: Width) -> u64 {
        if self.address & ADDRESS_ENABLE == 0
            || self.address & ADDRESS_FUNCTION != 0
            || within + width.bytes() > 4
        {
            return width.mask();
        }
        configuration(u64::from(self.address & 0xff) + within, width)
    }
}

/// Reads bus 0's configuration space, 4 KiB for each function; where no function is, nothing answers.
fn configuration(at: u64, width: Width) -> u64 {
    let bytes = (0..width.bytes())
        .map(|index| u64::from(configuration_byte(at.saturating_add(index))) << (8 * index));
    bytes.sum()
}

fn configuration_byte(at: u64) -> u8 {
    if at >= FUNCTION_BYTES.min(PCI_ECAM_BYTES) {
        return u8::MAX;
    }
    let register = match at & !3 {
        SUBSYSTEM_REGISTER => SUBSYSTEM,
        at => usize::try_from(at / 4).ok().and_then(|index| HEADER.get(index).copied()).unwrap_or(0),
    };
    byte(u64::from(register), at & 3)
}

impl Device for PciHost {
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64 {
        match access {
            Access::Read(width) => self.read(offset, width),
            Access::Write(width, value) => {
                self.write(offset, width, value, ports);
                0
            }
        }
    }

    fn irq(&self) -> bool {
        false
    }

    fn notify(&mut self, _: &mut Ports<'_>) {}

    fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Wish;
    use crate::pl011::testing::Lent;
    use proptest::prelude::*;

    const WIDTHS: [Width; 4] = [Width::Byte, Width::Half, Width::Word, Width::Double];

    #[derive(Default)]
    struct Bench {
        host: PciHost,
        lent: Lent,
    }

    impl Bench {
        fn read(&mut self, offset: u64, width: Width) -> u64 {
            self.lent.with(|ports| self.host.access(offset, Access::Read(width), ports))
        }

        fn write(&mut self, offset: u64, width: Width, value: u64) {
            self.lent.with(|ports| self.host.access(offset, Access::Write(width, value), ports));
        }

        fn by_ports(&mut self, address: u64, width: Width) -> u64 {
            self.write(ADDRESS, Width::Word, 1 << 31 | address & !3);
            self.read(DATA + (address & 3), width)
        }
    }

    #[test]
    fn a_probe_finds_the_first_configuration_mechanism() {
        let mut bench = Bench::default();
        bench.write(3, Width::Byte, 1);
        assert_eq!(bench.read(ADDRESS, Width::Word), 0);
        bench.write(ADDRESS, Width::Word, 0x8000_0000);
        assert_eq!(bench.read(ADDRESS, Width::Word), 0x8000_0000);
        bench.write(ADDRESS, Width::Word, 0xffff_ffff);
        assert_eq!(bench.read(ADDRESS, Width::Word), 0x80ff_fffc);
        bench.host.reset();
        assert_eq!(bench.read(ADDRESS, Width::Word), 0);
    }

    #[test]
    fn the_only_function_is_a_host_bridge_that_cannot_be_changed() {
        let mut bench = Bench::default();
        for _ in 0..2 {
            assert_eq!(bench.by_ports(0x00, Width::Word), 0x29c0_8086);
            assert_eq!(bench.by_ports(0x02, Width::Half), 0x29c0);
            assert_eq!(bench.by_ports(0x0a, Width::Half), 0x0600);
            assert_eq!(bench.by_ports(0x0e, Width::Byte), 0);
            assert_eq!(bench.by_ports(0x10, Width::Word), 0);
            assert_eq!(bench.by_ports(0x2c, Width::Word), 0x1100_1af4);
            assert_eq!(bench.read(PCI_ECAM_OFFSET, Width::Double), 0x0000_0006_29c0_8086);
            for register in (0..0x100).step_by(4) {
                bench.write(ADDRESS, Width::Word, 1 << 31 | register);
                bench.write(DATA, Width::Word, 0xffff_ffff);
                bench.write(PCI_ECAM_OFFSET + register, Width::Word, 0xffff_ffff);
            }
        }
    }

    #[test]
    fn where_no_function_is_all_ones_are_read() {
        let mut bench = Bench::default();
        for function in [0x100, 0x800, 0x1_0000, 0xff_ff00] {
            assert_eq!(bench.by_ports(function, Width::Word), 0xffff_ffff);
        }
        bench.write(ADDRESS, Width::Word, 0);
        assert_eq!(bench.read(DATA, Width::Word), 0xffff_ffff);
        for function in 1..256 {
            assert_eq!(bench.read(PCI_ECAM_OFFSET + function * 0x1000, Width::Word), 0xffff_ffff);
        }
        for (offset, width) in [(ADDRESS, Width::Byte), (2, Width::Half), (3, Width::Half), (5, Width::Word)]
        {
            assert_eq!(bench.read(offset, width), width.mask(), "offset {offset}");
        }
    }

    #[test]
    fn reset_control_is_a_byte_among_the_configuration_ports() {
        let mut bench = Bench::default();
        bench.write(ADDRESS, Width::Word, 0x8000_0600);
        assert_eq!((bench.lent.wish, bench.read(RESET, Width::Byte)), (None, 0));
        bench.write(RESET, Width::Byte, 0x06);
        assert_eq!(bench.lent.wish, Some(Wish::Reset));
        assert_eq!(bench.read(ADDRESS, Width::Word), 0x8000_0600);
    }

    proptest! {
        #[test]
        fn ports_and_memory_show_the_same(register in 0u64..0x100, width in 0usize..3) {
            let width = WIDTHS[width];
            let mut bench = Bench::default();
            let register = register & !(width.bytes() - 1);
            let by_memory = bench.read(PCI_ECAM_OFFSET + register, width);
            prop_assert_eq!(bench.by_ports(register, width), by_memory);
        }

        #[test]
        fn no_access_panics_and_a_read_fits_its_width(
            steps in prop::collection::vec((0u64..10, 0..PCI_ECAM_BYTES + 8, 0usize..8, any::<u64>()), 100),
        ) {
            let mut bench = Bench::default();
            for (port, at, kind, value) in steps {
                let offset = if value & 1 == 0 { port } else { PCI_ECAM_OFFSET + at };
                let width = WIDTHS[kind % 4];
                if kind < 4 {
                    prop_assert_eq!(bench.read(offset, width) & !width.mask(), 0);
                } else {
                    bench.write(offset, width, value & width.mask());
                }
            }
            bench.read(u64::MAX, Width::Double);
        }
    }
}
