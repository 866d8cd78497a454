//! AMD's extension: SVM with nested paging (APM Vol. 2, chapter 15).
//!
//! It relies on nothing but nested paging. What a CPU has besides (the next RIP, decode assists, clean bits, flushing by
//! ASID) is used where it is.

mod control;
pub mod exit;
pub mod vmcb;

use crate::hw::Registers;
use crate::hw::svm::{Block, Extension, enable};
use crate::msr::Direction;
use crate::npt::Npt;
use crate::vendor::{
    Control as _, Event, Register, Segment, SegmentName, TableName, TableRegister, Vendor, Window,
};
use bulkhead::arch::{Unsupported, VcpuId};
use bulkhead::memory::table::Stage2;
use bulkhead_vdev::lapic::Page;
pub use control::SvmControl;
use core::cell::Cell;
use core::sync::atomic::{AtomicU64, Ordering};

/// The PAT after power-on (7.8.2).
const PAT_RESET: u64 = 0x0007_0406_0007_0406;
/// CR0 after power-on: caches off, extension type.
const CR0_RESET: u64 = 0x6000_0010;
const DR6_RESET: u64 = 0xffff_0ff0;
const DR7_RESET: u64 = 0x400;
/// Descriptors of real mode after power-on: present, accessed; code or writable data.
const CODE_RESET: u16 = 0x9b;
const DATA_RESET: u16 = 0x93;
/// An LDT, and a busy 16-bit TSS.
const LDTR_RESET: u16 = 0x82;
const TR_RESET: u16 = 0x83;

/// Counts [`Svm::invalidate`]: a vCPU whose translations were forgotten before the last one forgets them when it is loaded.
static GENERATION: AtomicU64 = AtomicU64::new(1);

/// SVM on the CPU that this was made on.
pub struct Svm {
    extension: Extension,
    /// Control blocks made on this CPU; each has a tag for its translations, as long as there are tags.
    made: Cell<u32>,
}

impl Svm {
    /// The next guest's tag: 1 and up. Once they are used up they are shared, and then every load forgets.
    fn next_asid(&self) -> u32 {
        let number = self.made.get();
        self.made.set(number.saturating_add(1));
        1 + number % self.asids()
    }

    /// How many tags there are for guests.
    fn asids(&self) -> u32 {
        self.extension.asids.saturating_sub(1).max(1)
    }
}

impl Vendor for Svm {
    type Format = Npt;
    type Control = SvmControl;

    const NAME: &'static str = "AMD SVM with nested paging";

    fn enable() -> Result<Self, Unsupported> {
        Ok(Self { extension: enable()?, made: Cell::new(0) })
    }

    fn permit(&mut self, number: u32, direction: Direction) {
        self.extension.permit(number, direction);
    }

    fn address_bits(&self) -> u32 {
        self.extension.address_bits
    }

    fn control(&self, _vm: usize, _id: VcpuId, space: &Stage2<Npt>, _page: &'static Page) -> SvmControl {
        SvmControl::new(Block::new(&self.extension, space, self.next_asid()))
    }

    fn reset(&self, control: &mut SvmControl) {
        control.reset();
        let data = Segment { attributes: DATA_RESET, limit: 0xffff, ..Segment::default() };
        for name in SegmentName::ALL {
            control.set_segment(name, data);
        }
        let code = Segment { selector: 0xf000, attributes: CODE_RESET, base: 0xffff_0000, ..data };
        control.set_segment(SegmentName::Cs, code);
        control.set_segment(SegmentName::Ldtr, Segment { attributes: LDTR_RESET, ..data });
        control.set_segment(SegmentName::Tr, Segment { attributes: TR_RESET, ..data });
        let table = TableRegister { base: 0, limit: 0xffff };
        control.set_table(TableName::Global, table);
        control.set_table(TableName::Interrupt, table);
        control.set(Register::Rip, 0xfff0);
        control.set(Register::Rflags, 2);
        control.set(Register::Cr0, CR0_RESET);
        control.set(Register::Efer, 0);
        control.set(Register::Dr6, DR6_RESET);
        control.set(Register::Dr7, DR7_RESET);
        control.set(Register::Pat, PAT_RESET);
    }

    fn load(&self, control: &mut SvmControl) {
        let generation = GENERATION.load(Ordering::SeqCst);
        if control.seen != generation || self.made.get() > self.asids() {
            control.seen = generation;
            control.block.forget_translations();
        }
        control.block.changed_all();
    }

    fn unload(&self, _control: &mut SvmControl) {}

    #[inline(always)]
    fn enter(&self, control: &mut SvmControl, registers: &mut Registers) -> Event {
        control.block.run(&self.extension, registers);
        let area = control.block.control();
        match exit::decode(area, control.block.save()) {
            Event::Host if area.exit_code == exit::code::IRET => {
                control.returns_from_nmi();
                Event::Host
            }
            Event::Window => {
                control.want_window(Window::Unwanted);
                Event::Window
            }
            event => event,
        }
    }

    fn invalidate(&self, _vm: usize, _space: &Stage2<Npt>) {
        GENERATION.fetch_add(1, Ordering::SeqCst);
    }

    #[inline(always)]
    fn instruction_length(&self, control: &SvmControl) -> Option<u8> {
        let area = control.block.control();
        let next = match area.exit_code {
            exit::code::PORT => area.exit_info_2,
            _ if self.extension.has_next_rip => area.next_rip,
            _ => return None,
        };
        // At the end of a segment of 64 KiB it wraps; instructions have at most 15 bytes.
        let [length, ..] = (next.wrapping_sub(control.block.save().rip) & 0xf).to_le_bytes();
        Some(length)
    }

    fn instruction_bytes<'c>(&self, control: &'c SvmControl) -> Option<&'c [u8]> {
        let area = control.block.control();
        if !self.extension.has_decode_assists || area.fetched_count == 0 {
            return None;
        }
        area.fetched.get(..usize::from(area.fetched_count))
    }
}

#[cfg(test)]
mod tests;
