//! The machine that an Arm guest finds: the subset of QEMU's `virt` that Bulkhead offers, at the same addresses.

use crate::Gpa;

/// GICv3 distributor, 64 KiB.
pub const GICD: Gpa = Gpa(0x0800_0000);
/// GICv3 redistributors, two 64 KiB frames for each vCPU, one behind the other.
pub const GICR: Gpa = Gpa(0x080a_0000);
/// PL011 UART, 4 KiB.
pub const UART: Gpa = Gpa(0x0900_0000);
/// The UART's shared peripheral interrupt, as a GIC interrupt number.
pub const UART_INTID: u32 = 33;
/// PL031 real-time clock, 4 KiB.
pub const RTC: Gpa = Gpa(0x0901_0000);
/// The clock's shared peripheral interrupt, as a GIC interrupt number.
pub const RTC_INTID: u32 = 34;
/// Where RAM starts.
pub const RAM: Gpa = Gpa(0x4000_0000);

/// Non-secure EL1 physical timer (Arm BSA 3.8): a private interrupt.
pub const PHYSICAL_TIMER_INTID: u32 = 30;
/// Virtual timer: a private interrupt.
pub const VIRTUAL_TIMER_INTID: u32 = 27;

/// Interrupt numbers that the distributor offers: 32 private ones and 256 shared ones.
pub const INTIDS: u32 = 288;
