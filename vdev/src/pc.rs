//! The machine that an x86 guest finds: the subset of a PC that Bulkhead offers, at the same addresses, ports and
//! interrupt lines as QEMU's `q35`.
//!
//! Line numbers are those of the IOAPIC's pins, and of the 8259s' inputs where these have one, except line 0, which
//! is the timer: it reaches the 8259's input 0 and the IOAPIC's pin 2.

use crate::Gpa;

/// Ports of one device: where they lie, and where they begin in the device's own register space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortWindow {
    /// The first port.
    pub port: u16,
    /// How many ports.
    pub len: u64,
    /// The first port's offset for the device.
    pub offset: u64,
}

impl PortWindow {
    const fn new(port: u16, len: u64, offset: u64) -> Self {
        Self { port, len, offset }
    }
}

// Memory

/// Where RAM below 1 MiB ends: video memory would follow.
pub const LOW_RAM_END: Gpa = Gpa(0xa_0000);
/// Where RAM goes on behind the video memory: option ROMs, firmware tables and the firmware itself on a real PC.
pub const FIRMWARE_RAM: Gpa = Gpa(0xc_0000);
/// Where RAM below 4 GiB ends at the latest; the devices' addresses follow.
pub const HOLE: Gpa = Gpa(0xc000_0000);
/// Where RAM goes on that found no room below [`HOLE`].
pub const HIGH_RAM: Gpa = Gpa(0x1_0000_0000);

/// PCI configuration space as memory: the one bus that there is.
pub const PCI_ECAM: Gpa = Gpa(0xe000_0000);
/// Bytes of [`PCI_ECAM`]: 32 devices of 8 functions of 4 KiB.
pub const PCI_ECAM_BYTES: u64 = 0x10_0000;
/// The first IOAPIC, 4 KiB.
pub const IOAPIC: Gpa = Gpa(0xfec0_0000);
/// The high precision event timer.
pub const HPET: Gpa = Gpa(0xfed0_0000);
/// Bytes of [`HPET`].
pub const HPET_BYTES: u64 = 0x400;
/// Where [`HPET`] begins in the register space that the timers on one line share.
pub const HPET_OFFSET: u64 = 0x1000;
/// The local APIC after power-on, 4 KiB.
pub const LAPIC: Gpa = Gpa(0xfee0_0000);

// Ports

/// The first 8259, two ports; its edge/level register is [`ELCR`].
pub const PIC_MASTER: u16 = 0x20;
/// The second 8259, two ports.
pub const PIC_SLAVE: u16 = 0xa0;
/// The 8259s' edge/level control registers, two ports.
pub const ELCR: u16 = 0x4d0;

/// The timer's counters and control word, and port 0x61.
pub const PIT: [PortWindow; 2] = [PortWindow::new(0x40, 4, 0), PortWindow::new(0x61, 1, 4)];
/// The real-time clock's index and data.
pub const CMOS: [PortWindow; 1] = [PortWindow::new(0x70, 2, 0)];
/// Port 0x92, the keyboard controller's data, and its status and commands.
pub const RESET: [PortWindow; 3] =
    [PortWindow::new(0x92, 1, 0), PortWindow::new(0x60, 1, 1), PortWindow::new(0x64, 1, 2)];
/// Written for a delay of one bus cycle: the usual port, which also shows how far a start is, and the other one.
pub const DELAY: [PortWindow; 2] = [PortWindow::new(0x80, 1, 0), PortWindow::new(0xed, 1, 1)];
/// The first UART, the guest's console.
pub const COM1: [PortWindow; 1] = [PortWindow::new(0x3f8, 8, 0)];
/// The second UART.
pub const COM2: [PortWindow; 1] = [PortWindow::new(0x2f8, 8, 0)];
/// ACPI fixed hardware: events, control and timer.
pub const ACPI: [PortWindow; 1] = [PortWindow::new(ACPI_PM1_EVENT, 12, 0)];
/// PCI configuration address and data, with the reset control register in the middle.
pub const PCI_CONFIG: [PortWindow; 1] = [PortWindow::new(0xcf8, 8, 0)];
/// Where [`PCI_ECAM`] begins in the PCI host's register space.
pub const PCI_ECAM_OFFSET: u64 = 0x10_0000;

/// PM1a event block: status and enable, 2 bytes each (ACPI 6.5, 4.8.3.1).
pub const ACPI_PM1_EVENT: u16 = 0x600;
/// Bytes of the PM1a event block.
pub const ACPI_PM1_EVENT_BYTES: u8 = 4;
/// PM1a control block (ACPI 6.5, 4.8.3.2).
pub const ACPI_PM1_CONTROL: u16 = 0x604;
/// Bytes of the PM1a control block.
pub const ACPI_PM1_CONTROL_BYTES: u8 = 2;
/// Power management timer: 24 bits in 4 bytes (ACPI 6.5, 4.8.3.3).
pub const ACPI_PM_TIMER: u16 = 0x608;
/// Bytes of the power management timer.
pub const ACPI_PM_TIMER_BYTES: u8 = 4;
/// What SLP_TYP has to be for S5, soft off.
pub const ACPI_S5_SLEEP_TYPE: u8 = 0;
/// The reset register of the FADT, 1 byte (ACPI 6.5, 4.8.3.6).
pub const RESET_CONTROL: u16 = 0xcf9;
/// What resets the machine when written to [`RESET_CONTROL`]: a hard reset, now.
pub const RESET_CONTROL_VALUE: u8 = 0x06;

/// What the high precision event timer says it is, the low half of its first register: Intel's, a counter of 64 bits, three
/// comparators, revision 1; nothing of legacy replacement (IA-PC HPET 1.0a, 2.3.4).
pub const HPET_ID: u32 = 0x8086_2201;
/// Nanoseconds of one tick of the high precision event timer.
pub const HPET_PERIOD_NS: u64 = 10;

/// The CMOS register that holds the century, as the FADT names it.
pub const CMOS_CENTURY: u8 = 0x32;

// Interrupt lines

/// The 8254's first counter.
pub const PIT_LINE: u32 = 0;
/// [`COM2`].
pub const COM2_LINE: u32 = 3;
/// [`COM1`].
pub const COM1_LINE: u32 = 4;
/// The real-time clock.
pub const RTC_LINE: u32 = 8;
/// ACPI's system control interrupt: level-triggered, active high.
pub const SCI_LINE: u32 = 9;
/// The IOAPIC's pin that line 0 reaches.
pub const PIT_PIN: u32 = 2;
/// How many pins the IOAPIC has.
pub const IOAPIC_PINS: u32 = 24;

// Frequencies

/// Ticks of the 8254 in a second: 315/88 MHz divided by 3 (rounded, as everybody does).
pub const PIT_HZ: u64 = 1_193_182;
/// Ticks of the power management timer in a second (ACPI 6.5, 4.8.2.1).
pub const PM_TIMER_HZ: u64 = 3_579_545;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_devices_share_a_port() {
        let mut bus = crate::bus::Bus::new();
        let devices = [&PIT[..], &CMOS, &RESET, &DELAY, &COM1, &COM2, &ACPI, &PCI_CONFIG];
        for window in devices.into_iter().flatten() {
            assert_eq!(bus.add(Gpa(window.port.into()), window.len, ()), Ok(()), "{window:?}");
        }
        for (port, len) in [(PIC_MASTER, 2), (PIC_SLAVE, 2), (ELCR, 2)] {
            assert_eq!(bus.add(Gpa(port.into()), len, ()), Ok(()), "{port:#x}");
        }
    }
}
