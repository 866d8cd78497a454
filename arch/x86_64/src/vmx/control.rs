//! The shared layer's view of a VMCS.

use super::controls::{Controls, primary};
use super::exit::{injection, interrupted};
use super::vmcs::{Field, rights, shadow};
use crate::control::{cr0, cr4, efer};
use crate::hw::vmx::{ApicAccess, MsrBitmap, Vmcs};
use crate::hw::{GuestMsr, read_cr2, read_dr6, read_msr, write_cr2, write_dr6, write_guest_msr};
use crate::vendor::{
    Control, Delivery, DeliveryKind, PageMode, Register, Segment, SegmentName, TableName, TableRegister,
    Window,
};
use bulkhead_vdev::lapic::{Page, register};

/// Bits of CR0 that are not the guest's own: it would change the host's caching, or leave VMX operation.
pub(super) const CR0_MASK: u64 = cr0::NE | cr0::CD | cr0::NW;
/// Bits of CR4 that are the guest's own: they touch nothing but itself. MCE is not: a machine check is the host's.
const CR4_FREE: u64 = cr4::VME
    | cr4::PVI
    | cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::UMIP
    | cr4::FSGSBASE
    | cr4::PCIDE
    | cr4::OSXSAVE
    | cr4::SMEP
    | cr4::SMAP
    | cr4::PKE;
pub(super) const CR4_MASK: u64 = !CR4_FREE;
/// What they are while the guest runs.
const CR0_FORCED: u64 = cr0::NE;
const CR4_FORCED: u64 = cr4::VMXE | cr4::MCE;

const DIRECTORY_POINTERS: [Field; 4] =
    [Field::GUEST_PDPTE_0, Field::GUEST_PDPTE_1, Field::GUEST_PDPTE_2, Field::GUEST_PDPTE_3];

/// RFLAGS.IF
const INTERRUPTS: u64 = 1 << 9;
/// VPTPR: a task priority is its high half.
const CLASS_SHIFT: u32 = 4;

/// One vCPU's VMCS, and what the CPU does not note in it.
pub struct VmxControl {
    pub(super) vmcs: Vmcs,
    pub(super) controls: Controls,
    pub(super) page: &'static Page,
    /// What the last exit read from IDT-vectoring information.
    pub(super) vectoring: u64,
    /// Why it exited.
    pub(super) reason: u64,
    /// What RSP in the VMCS is.
    pub(super) rsp: u64,
    /// Entries do not begin with an event since `inject`.
    pub(super) injecting: bool,
    /// The windows that are open, as bits of the primary controls.
    pub(super) windows: u32,
    /// The TPR threshold.
    pub(super) threshold: u8,
    /// When the guest's turn ends; `u64::MAX`: never.
    pub(super) deadline: u64,
    /// What is requested and in service has to be looked for in the page.
    pub(super) recount: bool,
    /// The state of [`super::GENERATION`] in which cached translations were forgotten last.
    pub(super) seen: u64,
    /// Registers that the VMCS does not hold, while the vCPU is not loaded.
    pub(super) parked: Parked,
    /// Which MSRs exit, in x2APIC mode and in any other.
    pub(super) msrs: MsrBitmaps,
}

/// See [`VmxControl::msrs`].
#[derive(Clone, Copy)]
pub(super) struct MsrBitmaps {
    pub(super) plain: &'static MsrBitmap,
    pub(super) x2apic: &'static MsrBitmap,
}

/// Registers that the CPU holds while a vCPU is loaded.
pub(super) struct Parked {
    pub(super) cr2: u64,
    pub(super) dr6: u64,
    pub(super) msrs: [(GuestMsr, u64); 5],
}

impl VmxControl {
    /// Everything of the guest's that the CPU holds comes back to it.
    pub(super) fn load(&mut self) {
        self.vmcs.load();
        write_cr2(self.parked.cr2);
        write_dr6(self.parked.dr6);
        for (msr, value) in &self.parked.msrs {
            write_guest_msr(*msr, *value);
        }
    }

    pub(super) fn unload(&mut self) {
        self.parked.cr2 = read_cr2();
        self.parked.dr6 = read_dr6();
        for (msr, value) in &mut self.parked.msrs {
            *value = read_msr(*msr as u32);
        }
        self.vmcs.unload();
    }

    /// A register that has bits which are not the guest's: what it sees.
    fn shadowed(&self, real: Field, shown: Field, mask: u64) -> u64 {
        self.vmcs.read(real) & !mask | self.vmcs.read(shown) & mask
    }

    fn open_windows(&mut self, windows: u32) {
        if self.windows != windows {
            self.windows = windows;
            self.vmcs.set_windows(&self.controls, windows);
        }
    }

    fn set_threshold(&mut self, threshold: u8) {
        if self.threshold != threshold {
            self.threshold = threshold;
            self.vmcs.write(Field::TPR_THRESHOLD, threshold.into());
        }
    }

    /// What was asked for has come.
    pub(super) fn close_windows(&mut self) {
        self.open_windows(0);
        self.set_threshold(0);
    }

    /// The entry checks want no threshold above the task priority, which may have been lowered since.
    #[inline]
    pub(super) fn settle_threshold(&mut self) {
        if self.threshold != 0 && self.threshold > self.task_priority() {
            self.set_threshold(0);
            self.open_windows(self.windows | primary::INTERRUPT_WINDOW);
        }
    }

    /// The vector in service, which was `vector`. The CPU keeps that; only an EOI that was served outside of the guest makes it
    /// old.
    #[inline]
    fn in_service(&self, vector: u8) -> u8 {
        let word = self.page.get(register::IN_SERVICE.wrapping_add(vector >> 5));
        let is_right = vector == 0 || word >> (vector & 31) & 1 != 0;
        if is_right { vector } else { self.highest(register::IN_SERVICE) }
    }

    #[cold]
    fn highest(&self, first: u8) -> u8 {
        let bits = (0..8u8).rev().find_map(|word| {
            let bits = self.page.get(first + word);
            (bits != 0).then(|| u32::from(word) * 32 + 31 - bits.leading_zeros())
        });
        bits.map_or(0, |vector| vector.to_le_bytes()[0])
    }

    /// EOI of level-triggered interrupts exits, because an I/O APIC waits for it.
    #[cold]
    fn set_ends(&self, levels: [u64; 4]) {
        const FIELDS: [Field; 4] =
            [Field::EOI_EXIT_0, Field::EOI_EXIT_1, Field::EOI_EXIT_2, Field::EOI_EXIT_3];
        for (field, vectors) in FIELDS.into_iter().zip(levels) {
            self.vmcs.write(field, vectors);
        }
    }

    fn is_real(&self) -> bool {
        self.vmcs.read(Field::GUEST_CR0) & cr0::PE == 0
    }

    fn end_blocking(&self, what: u64) {
        let blocked = self.vmcs.read(Field::GUEST_INTERRUPTIBILITY);
        if blocked & what != 0 {
            self.vmcs.write(Field::GUEST_INTERRUPTIBILITY, blocked & !what);
        }
    }
}

impl Control for VmxControl {
    #[inline]
    fn get(&self, register: Register) -> u64 {
        match register {
            Register::Rip => self.vmcs.read(Field::GUEST_RIP),
            Register::Rflags => self.vmcs.read(Field::GUEST_RFLAGS),
            Register::Cr0 => self.shadowed(Field::GUEST_CR0, Field::CR0_SHADOW, CR0_MASK),
            Register::Cr2 if self.vmcs.is_loaded() => read_cr2(),
            Register::Cr2 => self.parked.cr2,
            Register::Cr3 => self.vmcs.read(Field::GUEST_CR3),
            Register::Cr4 => self.shadowed(Field::GUEST_CR4, Field::CR4_SHADOW, CR4_MASK),
            Register::Efer => self.vmcs.read(Field::GUEST_EFER),
            Register::Dr6 if self.vmcs.is_loaded() => read_dr6(),
            Register::Dr6 => self.parked.dr6,
            Register::Dr7 => self.vmcs.read(Field::GUEST_DR7),
            Register::Pat => self.vmcs.read(Field::GUEST_PAT),
            Register::TscOffset => self.vmcs.read(Field::TSC_OFFSET),
        }
    }

    #[inline]
    fn set(&mut self, register: Register, value: u64) {
        match register {
            Register::Rip => self.vmcs.write(Field::GUEST_RIP, value),
            Register::Rflags => self.vmcs.write(Field::GUEST_RFLAGS, value),
            Register::Cr0 => {
                self.vmcs.write(Field::GUEST_CR0, value & !CR0_MASK | CR0_FORCED);
                self.vmcs.write(Field::CR0_SHADOW, value);
            }
            Register::Cr2 if self.vmcs.is_loaded() => write_cr2(value),
            Register::Cr2 => self.parked.cr2 = value,
            Register::Cr3 => self.vmcs.write(Field::GUEST_CR3, value),
            Register::Cr4 => {
                self.vmcs.write(Field::GUEST_CR4, value & !CR4_MASK | CR4_FORCED);
                self.vmcs.write(Field::CR4_SHADOW, value);
            }
            Register::Efer => {
                self.vmcs.write(Field::GUEST_EFER, value);
                self.vmcs.set_long_mode(&self.controls, value & efer::LMA != 0);
            }
            Register::Dr6 if self.vmcs.is_loaded() => write_dr6(value),
            Register::Dr6 => self.parked.dr6 = value,
            Register::Dr7 => self.vmcs.write(Field::GUEST_DR7, value),
            Register::Pat => self.vmcs.write(Field::GUEST_PAT, value),
            Register::TscOffset => self.vmcs.write(Field::TSC_OFFSET, value),
        }
    }

    fn segment(&self, name: SegmentName) -> Segment {
        let low = |value: u64| value.to_le_bytes();
        let [selector_0, selector_1, ..] = low(self.vmcs.read(Field::selector(name)));
        let [limit_0, limit_1, limit_2, limit_3, ..] = low(self.vmcs.read(Field::limit(name)));
        Segment {
            selector: u16::from_le_bytes([selector_0, selector_1]),
            attributes: self.attributes(name),
            limit: u32::from_le_bytes([limit_0, limit_1, limit_2, limit_3]),
            base: self.vmcs.read(Field::base(name)),
        }
    }

    #[inline(always)]
    fn attributes(&self, name: SegmentName) -> u16 {
        attributes(self.vmcs.read(Field::rights(name)))
    }

    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        self.vmcs.write(Field::selector(name), segment.selector.into());
        self.vmcs.write(Field::limit(name), segment.limit.into());
        self.vmcs.write(Field::rights(name), access_rights(segment));
        self.vmcs.write(Field::base(name), segment.base);
    }

    fn table(&self, name: TableName) -> TableRegister {
        let (base, limit) = table_fields(name);
        let [low, high, ..] = self.vmcs.read(limit).to_le_bytes();
        TableRegister { base: self.vmcs.read(base), limit: u16::from_le_bytes([low, high]) }
    }

    fn set_table(&mut self, name: TableName, table: TableRegister) {
        let (base, limit) = table_fields(name);
        self.vmcs.write(base, table.base);
        self.vmcs.write(limit, table.limit.into());
    }

    #[inline]
    fn privilege(&self) -> u8 {
        let stack = self.vmcs.read(Field::rights(SegmentName::Ss));
        (stack >> rights::PRIVILEGE_SHIFT & 3).to_le_bytes()[0]
    }

    #[inline]
    fn task_priority(&self) -> u8 {
        (self.page.get(register::TASK_PRIORITY) >> CLASS_SHIFT & 0xf).to_le_bytes()[0]
    }

    /// The page is the register, and whoever changes the task priority has changed the page.
    fn set_task_priority(&mut self, _priority: u8) {}

    #[inline]
    fn is_open(&self) -> bool {
        self.vmcs.read(Field::GUEST_RFLAGS) & INTERRUPTS != 0
            && self.vmcs.read(Field::GUEST_INTERRUPTIBILITY) & (shadow::STI | shadow::MOV_SS) == 0
    }

    #[inline]
    fn end_shadow(&mut self) {
        self.end_blocking(shadow::STI | shadow::MOV_SS);
    }

    /// STI does not count: a window may open behind it (26.2), and would open again and again.
    fn is_open_for_nmi(&self) -> bool {
        let blocked = self.vmcs.read(Field::GUEST_INTERRUPTIBILITY);
        blocked & (shadow::MOV_SS | shadow::NMI) == 0
    }

    fn inject(&mut self, delivery: Delivery) {
        let error = delivery.error.filter(|_| !self.is_real());
        match delivery.kind {
            DeliveryKind::External => {}
            // The delivery blocks NMIs by itself, and wants to find them open.
            DeliveryKind::Nmi => self.end_blocking(shadow::NMI | shadow::STI | shadow::MOV_SS),
            // Delivery ends them; left here they would clash with single-stepping.
            _ => self.end_blocking(shadow::STI | shadow::MOV_SS),
        }
        self.vmcs.write(Field::ENTRY_INTERRUPTION, injection(Delivery { error, ..delivery }));
        if let Some(error) = error {
            self.vmcs.write(Field::ENTRY_ERROR_CODE, error.into());
        }
        if delivery.length != 0 {
            self.vmcs.write(Field::ENTRY_LENGTH, delivery.length.into());
        }
        self.injecting = true;
    }

    #[inline]
    fn is_injecting(&self) -> bool {
        self.injecting
    }

    #[inline]
    fn interrupted(&self) -> Option<Delivery> {
        interrupted(self.vectoring, |field| self.vmcs.read(field))
    }

    /// A vector that only the task priority holds back waits for that to be lowered, any other for the guest to be open.
    #[inline]
    fn want_window(&mut self, window: Window) {
        let nmi = self.windows & primary::NMI_WINDOW;
        let (windows, threshold) = match window {
            Window::Unwanted => (nmi, 0),
            Window::Vector(vector) if vector >> CLASS_SHIFT <= self.task_priority() => {
                (nmi, vector >> CLASS_SHIFT)
            }
            Window::Vector(_) | Window::External => (nmi | primary::INTERRUPT_WINDOW, 0),
        };
        self.open_windows(windows);
        self.set_threshold(threshold);
    }

    fn want_nmi_window(&mut self) -> bool {
        self.open_windows(self.windows | primary::NMI_WINDOW);
        true
    }

    /// The fields hold what the guest loaded last, and mean something in PAE paging only (28.3.4).
    #[inline]
    fn directory_pointers(&self) -> Option<[u64; 4]> {
        let is_pae = self.vmcs.read(Field::GUEST_EFER) & efer::LMA == 0
            && self.vmcs.read(Field::GUEST_CR0) & cr0::PG != 0
            && self.vmcs.read(Field::GUEST_CR4) & cr4::PAE != 0;
        is_pae.then(|| DIRECTORY_POINTERS.map(|field| self.vmcs.read(field)))
    }

    fn set_directory_pointers(&mut self, pointers: [u64; 4]) {
        for (field, pointer) in DIRECTORY_POINTERS.into_iter().zip(pointers) {
            self.vmcs.write(field, pointer);
        }
    }

    fn forget_translations(&mut self) {
        self.vmcs.forget_translations(&self.controls);
    }

    /// The CPU itself keeps what it knows of up to date while it delivers and while the guest ends interrupts.
    #[inline]
    fn refresh_page(&mut self, requested: u8, levels: Option<[u64; 4]>) {
        let status = self.vmcs.read(Field::GUEST_INTERRUPT_STATUS);
        let [known, in_service, ..] = status.to_le_bytes();
        let (requested, in_service) = if self.recount {
            self.recount = false;
            (self.highest(register::REQUEST), self.highest(register::IN_SERVICE))
        } else {
            (requested.max(known), self.in_service(in_service))
        };
        let new = u64::from(in_service) << 8 | u64::from(requested);
        if new != status {
            self.vmcs.write(Field::GUEST_INTERRUPT_STATUS, new);
        }
        if let Some(levels) = levels {
            self.set_ends(levels);
        }
    }

    fn set_page_mode(&mut self, mode: PageMode) {
        let (access, msrs) = match mode {
            PageMode::Off => (ApicAccess::Neither, self.msrs.plain),
            PageMode::XApic => (ApicAccess::Page, self.msrs.plain),
            PageMode::X2Apic if self.controls.features.virtual_interrupts => {
                (ApicAccess::Msrs, self.msrs.x2apic)
            }
            PageMode::X2Apic => (ApicAccess::Neither, self.msrs.plain),
        };
        self.vmcs.set_apic_access(&self.controls, access, msrs);
        if access == ApicAccess::Page {
            // What was cached while the page meant nothing would keep its accesses from exiting (29.4.3.4).
            self.vmcs.forget_space(&self.controls);
        }
        self.recount = true;
    }
}

const fn table_fields(name: TableName) -> (Field, Field) {
    match name {
        TableName::Global => (Field::GUEST_GDTR_BASE, Field::GUEST_GDTR_LIMIT),
        TableName::Interrupt => (Field::GUEST_IDTR_BASE, Field::GUEST_IDTR_LIMIT),
    }
}

/// Access rights as [`Segment::attributes`]: four bits closer together.
fn attributes(access_rights: u64) -> u16 {
    if access_rights & rights::UNUSABLE != 0 {
        return 0;
    }
    let packed = access_rights & 0xff | access_rights >> 4 & 0xf00;
    let [low, high, ..] = packed.to_le_bytes();
    u16::from_le_bytes([low, high])
}

/// The opposite; the granularity is the one that goes with the limit.
fn access_rights(segment: Segment) -> u64 {
    if segment.attributes & Segment::PRESENT == 0 {
        return rights::UNUSABLE;
    }
    let attributes = u64::from(segment.attributes);
    let spread = attributes & 0xff | (attributes & 0xf00) << 4;
    if segment.limit > 0xf_ffff {
        spread | rights::GRANULAR
    } else if segment.limit & 0xfff != 0xfff {
        spread & !rights::GRANULAR
    } else {
        spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn access_rights_come_back_as_they_went() {
        for (given, wanted) in [(0x0a9b, 0xa09b), (0x0c93, 0xc093), (0x0093, 0x0093)] {
            let limit = if given & 0x800 != 0 { u32::MAX } else { 0xffff };
            let segment = Segment { attributes: given, limit, ..Segment::default() };
            assert_eq!(access_rights(segment), wanted);
            assert_eq!(attributes(wanted), given);
        }
        assert_eq!(access_rights(Segment::default()), rights::UNUSABLE);
        assert_eq!(attributes(rights::UNUSABLE), 0);
    }

    #[test]
    fn granularity_follows_the_limit() {
        let flat = Segment { attributes: 0x93, limit: u32::MAX, ..Segment::default() };
        assert_ne!(access_rights(flat) & rights::GRANULAR, 0);
        let odd = Segment { attributes: 0x893, limit: 0x1234, ..Segment::default() };
        assert_eq!(access_rights(odd) & rights::GRANULAR, 0);
    }
}
