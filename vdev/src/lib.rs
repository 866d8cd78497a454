//! What a guest sees: device models and the bus that finds them.
//!
//! A model owns its state and nothing else. Console, memory and time are lent to it for the length of one
//! call ([`Ports`]), so no model can name a host address, block, allocate after it was made or reach
//! another guest. Every number that arrives here comes from a hostile guest.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi_pm;
pub mod bus;
pub mod cmos;
pub mod delay_port;
mod fifo;
pub mod gicv3;
pub mod hpet;
pub mod ioapic;
mod isa;
pub mod lapic;
pub mod pc;
pub mod pc_irqs;
pub mod pc_reset;
pub mod pc_timers;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod pl011;
pub mod pl031;
pub mod uart16550;
pub mod virt;

use core::fmt;

/// A guest-physical address (IPA in Arm's words): what the guest believes to be physical.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Gpa(pub u64);

impl fmt::Debug for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// How many bytes one access moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Width {
    /// 1 byte
    Byte = 0,
    /// 2 bytes
    Half = 1,
    /// 4 bytes
    Word = 2,
    /// 8 bytes
    Double = 3,
}

impl Width {
    /// 1, 2, 4 or 8.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self as u64
    }

    /// The bits of a register that an access of this width moves.
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.bytes())
    }
}

/// One load or store, fully decoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// A load of this width.
    Read(Width),
    /// A store of this width; the value is already cut to it.
    Write(Width, u64),
}

impl Access {
    /// The width of either direction.
    #[must_use]
    pub const fn width(self) -> Width {
        match self {
            Self::Read(width) | Self::Write(width, _) => width,
        }
    }
}

/// A set of virtual CPUs of one VM: the ones that have to look at their interrupts again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct VcpuSet(pub u32);

impl VcpuSet {
    /// Nobody.
    pub const EMPTY: Self = Self(0);

    /// Only `vcpu`, an index below 32.
    pub const fn only(vcpu: usize) -> Self {
        Self(1 << vcpu)
    }

    /// Whether `vcpu` is in the set.
    #[must_use]
    pub const fn has(self, vcpu: usize) -> bool {
        self.0 >> vcpu & 1 != 0
    }

    /// Both sets together.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The members, lowest index first.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut left = self.0;
        core::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let next = left.trailing_zeros() as usize;
            left &= left - 1;
            Some(next)
        })
    }
}

/// The most virtual CPUs one VM may have: a [`VcpuSet`] and one GICv3 target list hold them.
pub const MAX_VCPUS: usize = 16;

/// One memory-mapped or port-mapped device model.
pub trait Device: Send {
    /// Performs one access at `offset` from the window's start. A read returns the value in its low bits; what a
    /// write returns is ignored.
    fn access(&mut self, offset: u64, access: Access, ports: &mut Ports<'_>) -> u64;

    /// What a read of this width at `offset` gives, if it changes nothing and needs nothing lent: what drivers poll. Then
    /// the read is done; otherwise [`Device::access`] does it.
    fn peek(&self, offset: u64, width: Width) -> Option<u64> {
        let _ = (offset, width);
        None
    }

    /// Stores a write of this width at `offset`, if all that it changes is what is stored there and it needs nothing lent: what
    /// selects a register, or what nobody looks at. Then the write is done (`true`); otherwise [`Device::access`] does it.
    fn poke(&mut self, offset: u64, width: Width, value: u64) -> bool {
        let _ = (offset, width, value);
        false
    }

    /// The level of the device's interrupt line, read back after each call.
    fn irq(&self) -> bool;

    /// Something the device may wait for happened: the console has input or room again, or its alarm is due.
    fn notify(&mut self, ports: &mut Ports<'_>);

    /// When the device wants to be notified next, in the time of [`Clock::now_ns`].
    fn alarm(&self) -> Option<u64> {
        None
    }

    /// Back to the state after power-on.
    fn reset(&mut self);
}

/// What is lent to a device for one call.
pub struct Ports<'a> {
    /// The VM's console.
    pub console: &'a mut dyn Console,
    /// The VM's RAM.
    pub memory: &'a dyn GuestMemory,
    /// Time.
    pub clock: &'a dyn Clock,
    /// What the guest asked of its machine by this call, if anything.
    pub wish: Option<Wish>,
}

/// What a guest asks of its machine as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// To be switched off.
    PowerOff,
    /// To start again.
    Reset,
}

/// One VM's console, seen from the device that drives it.
pub trait Console {
    /// Takes one byte of output; `false` if there is no room now (the device is notified when there is).
    fn put(&mut self, byte: u8) -> bool;

    /// The next byte of input.
    fn get(&mut self) -> Option<u8>;
}

/// Time as a device needs it.
pub trait Clock {
    /// Nanoseconds since the machine started; never goes back.
    fn now_ns(&self) -> u64;

    /// Nanoseconds between 1970-01-01 and the moment at which [`Clock::now_ns`] was 0.
    fn epoch_ns(&self) -> u64;
}

/// A VM's RAM, for devices that read and write it.
pub trait GuestMemory {
    /// Copies out of the guest's RAM; all of `into` or nothing.
    ///
    /// # Errors
    /// [`OutsideRam`] if the range is not wholly RAM.
    fn read(&self, at: Gpa, into: &mut [u8]) -> Result<(), OutsideRam>;

    /// Copies into the guest's RAM; all of `from` or nothing.
    ///
    /// # Errors
    /// [`OutsideRam`] if the range is not wholly RAM.
    fn write(&self, at: Gpa, from: &[u8]) -> Result<(), OutsideRam>;

    /// Stores `new` as a number of this width at `at`, if `old` is there; tells whether it did. Memory that others reach
    /// meanwhile does it in one step, for aligned places and [`Width::Word`] and [`Width::Double`] only; this default is for
    /// memory that nobody else reaches.
    fn compare_exchange(&self, at: Gpa, width: Width, old: u64, new: u64) -> bool {
        let (mut found, old, new) = ([0; 8], old.to_le_bytes(), new.to_le_bytes());
        let bytes = 1 << width as usize;
        self.read(at, &mut found[..bytes]).is_ok()
            && found[..bytes] == old[..bytes]
            && self.write(at, &new[..bytes]).is_ok()
    }
}

/// The guest named memory that it does not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutsideRam;

/// The part of an interrupt controller that is the same on every machine: wires go in, vCPUs are told.
pub trait IrqLines: Send {
    /// Sets the level of the wire `line` (the controller's own numbering); tells who has to look.
    fn set_line(&mut self, line: u32, level: bool) -> VcpuSet;

    /// Back to the state after power-on.
    fn reset(&mut self);
}
