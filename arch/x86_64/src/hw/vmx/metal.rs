//! The real CPU's VMX instructions (SDM Vol. 3C, chapter 31). Those that can fail do so only where this crate errs: a
//! field that the CPU lacks is not written, and reads as anything.

use crate::ept::Ept;
use crate::hw::Registers;
use crate::hw::descriptors::DATA;
use bulkhead::memory::Hpa;
use bulkhead::memory::table::{Format, Slot};
use bulkhead_vdev::Gpa;
use core::arch::{asm, global_asm};
use core::ptr::with_exposed_provenance;

global_asm!(include_str!("../vmx_entry.S"), data = const DATA);

unsafe extern "C" {
    fn bulkhead_enter_vmx(registers: *mut Registers, host_stack: *mut u64, how: u32) -> u32;
    fn bulkhead_vmx_exit();
}

/// An operand in memory: the address of a region.
macro_rules! with_region {
    ($name:ident, $instruction:literal, $what:literal) => {
        #[doc = $what]
        pub(super) fn $name(region: u64) -> bool {
            let failed: u8;
            // SAFETY: the region is a page of ours that nobody but the CPU uses from here on.
            unsafe {
                asm!(concat!($instruction, " qword ptr [{}]"), "setna {}", in(reg) &raw const region, out(reg_byte) failed,
                    options(nostack));
            }
            failed == 0
        }
    };
}
with_region!(vmxon, "vmxon", "Enters VMX operation; `false` if the CPU refuses.");
with_region!(vmclear, "vmclear", "Initialises a VMCS.");
with_region!(vmptrld, "vmptrld", "Makes a VMCS current.");

/// The current VMCS; all ones if there is none.
pub(super) fn vmptrst() -> u64 {
    let mut region = u64::MAX;
    // SAFETY: the instruction writes its operand.
    unsafe { asm!("vmptrst qword ptr [{}]", in(reg) &raw mut region, options(nostack)) };
    region
}

/// Reads a field of the current VMCS.
#[inline(always)]
pub(super) fn vmread(field: u32) -> u64 {
    let value;
    // SAFETY: reading a field changes nothing.
    unsafe { asm!("vmread {}, {}", out(reg) value, in(reg) u64::from(field), options(nostack, nomem)) };
    value
}

/// Writes a field of the current VMCS. What has to be guarded is guarded by the types of [`super`].
#[inline(always)]
pub(super) fn vmwrite(field: u32, value: u64) {
    // SAFETY: the callers write guests' state, or what confines them.
    unsafe { asm!("vmwrite {}, {}", in(reg) u64::from(field), in(reg) value, options(nostack)) };
}

/// Runs the guest of the current VMCS; `false` if it was not entered. `how` is as `vmx_entry.S` has it.
#[inline(always)]
pub(super) fn enter(registers: &mut Registers, host_stack: &mut u64, how: u32) -> bool {
    // SAFETY: the current VMCS was made by `Vmcs::new`: it confines its guest, and comes back to `bulkhead_vmx_exit` with our
    // tables, our stack pointer and nothing else changed but what a guest may change.
    unsafe { bulkhead_enter_vmx(registers, host_stack, how) != 0 }
}

/// Where exits continue.
pub(super) fn exit_address() -> u64 {
    (bulkhead_vmx_exit as *const ()).addr() as u64
}

/// Forgets translations of the second stage `pointer`.
pub(super) fn invept(kind: u64, pointer: u64) {
    let descriptor = [pointer, 0];
    // SAFETY: invalidation only makes translations be walked again.
    unsafe {
        asm!("invept {}, xmmword ptr [{}]", in(reg) kind, in(reg) &raw const descriptor, options(nostack))
    };
}

/// Forgets translations with the tag `vpid`.
pub(super) fn invvpid(kind: u64, vpid: u64) {
    let descriptor = [vpid, 0];
    // SAFETY: as above.
    unsafe {
        asm!("invvpid {}, xmmword ptr [{}]", in(reg) kind, in(reg) &raw const descriptor, options(nostack))
    };
}

/// Where a second stage leads.
pub(super) fn translate(root: Hpa, at: Gpa) -> Option<Hpa> {
    const TOP: u32 = 3;
    let mut table = root;
    for level in (0..=TOP).rev() {
        let shift = 12 + 9 * level;
        let entry = table.0 + (at.0 >> shift & 0x1ff) * 8;
        // SAFETY: tables of a `Stage2` are frames of ours, mapped one to one, of 512 entries each.
        let entry = unsafe { with_exposed_provenance::<u64>(usize::try_from(entry).ok()?).read_volatile() };
        match Ept::decode(entry, level) {
            Slot::Table(next) => table = next,
            Slot::Leaf(page) => return Some(Hpa(page.0 + (at.0 & ((1 << shift) - 1)))),
            Slot::Empty => return None,
        }
    }
    None
}
