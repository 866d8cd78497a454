//! The shared layer's view of a control block.

use super::exit;
use super::vmcb::{SegmentState, clean, interrupt};
use crate::control::{cr0, cr4};
use crate::hw::svm::Block;
use crate::vendor::{
    Control, Delivery, DeliveryKind, Register, Segment, SegmentName, TableName, TableRegister, Window,
};

/// EFER.SVME: set while a guest runs, and not shown to it.
const SVME: u64 = 1 << 12;
/// CR4 while the guest runs: without MCE a machine check would be its shutdown. Where the guest has it off, reads exit (but not on
/// QEMU 10, where it sees it on).
const CR4_FORCED: u64 = cr4::MCE;
/// RFLAGS.IF
const INTERRUPTS: u64 = 1 << 9;

/// Whether a guest takes NMIs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum NmiState {
    /// Yes.
    Open,
    /// It has taken one, and has not executed IRET since.
    Blocked,
    /// It was at the IRET, at this address: behind it NMIs are open.
    Returning(u64),
}

/// One vCPU's control block, and what the CPU does not note in it.
pub struct SvmControl {
    pub(super) block: Block,
    pub(super) nmi: NmiState,
    /// The state of [`super::generation`] in which cached translations were forgotten last.
    pub(super) seen: u64,
    /// CR4 as the guest sees it.
    cr4: u64,
    /// What the window was asked for.
    window: Window,
}

impl SvmControl {
    pub(super) fn new(block: Block) -> Self {
        Self { block, nmi: NmiState::Open, seen: 0, cr4: 0, window: Window::Unwanted }
    }

    /// An interrupt that nothing holds back is a virtual one that the CPU takes at once, and notes when it has: what an exit
    /// comes before stays. As an injected event QEMU 10 delivers it a second time, whatever RFLAGS.IF is, if something calls
    /// its CPU away between the entry and the next exit.
    #[inline]
    fn let_in(&mut self, vector: u8) {
        if self.window != Window::Unwanted {
            self.window = Window::Unwanted;
            self.block.intercept_window(false);
        }
        let vector = u64::from(vector) << interrupt::VECTOR_SHIFT;
        self.set_waiting(interrupt::REQUESTED | interrupt::ANY_TASK_PRIORITY | vector);
    }

    /// Sets the virtual interrupt that waits, and leaves CR8 as it is.
    #[inline(always)]
    fn set_waiting(&mut self, waiting: u64) {
        let others = self.block.control().interrupt & !interrupt::WAITING;
        self.block.set_interrupt(others | waiting);
    }

    /// The interrupt that was let in, until the guest has taken it.
    #[inline(always)]
    fn let_in_vector(&self) -> Option<u8> {
        let interrupt = self.block.control().interrupt;
        let is_let_in = interrupt & interrupt::REQUESTED != 0 && self.window == Window::Unwanted;
        let [.., vector, _, _, _] = interrupt.to_le_bytes();
        is_let_in.then_some(vector)
    }

    /// The guest is about to execute IRET.
    pub(super) fn returns_from_nmi(&mut self) {
        self.block.intercept_return(false);
        self.nmi = NmiState::Returning(self.block.save().rip);
    }

    pub(super) fn reset(&mut self) {
        self.nmi = NmiState::Open;
        self.window = Window::Unwanted;
        // Translation is switched off behind the CPU's back: what it remembers of this guest goes before it runs again.
        self.seen = 0;
        self.block.reset();
        self.set(Register::Cr4, 0);
    }
}

impl Control for SvmControl {
    #[inline(always)]
    fn get(&self, register: Register) -> u64 {
        let save = self.block.save();
        match register {
            Register::Rip => save.rip,
            Register::Rflags => save.rflags,
            Register::Cr0 => save.cr0,
            Register::Cr2 => save.cr2,
            Register::Cr3 => save.cr3,
            Register::Cr4 => self.cr4,
            Register::Efer => save.efer & !SVME,
            Register::Dr6 => save.dr6,
            Register::Dr7 => save.dr7,
            Register::Pat => save.pat,
            Register::TscOffset => self.block.control().tsc_offset,
        }
    }

    #[inline(always)]
    fn set(&mut self, register: Register, value: u64) {
        match register {
            Register::Rip => self.block.save_mut(0).rip = value,
            Register::Rflags => self.block.save_mut(0).rflags = value,
            Register::Cr0 => self.block.save_mut(clean::CONTROL).cr0 = value,
            Register::Cr2 => self.block.save_mut(clean::CR2).cr2 = value,
            Register::Cr3 => self.block.save_mut(clean::CONTROL).cr3 = value,
            Register::Cr4 => {
                self.cr4 = value;
                self.block.save_mut(clean::CONTROL).cr4 = value | CR4_FORCED;
                self.block.intercept_cr4_reads(value & CR4_FORCED != CR4_FORCED);
            }
            Register::Efer => self.block.save_mut(clean::CONTROL).efer = value | SVME,
            Register::Dr6 => self.block.save_mut(clean::DEBUG).dr6 = value,
            Register::Dr7 => self.block.save_mut(clean::DEBUG).dr7 = value,
            Register::Pat => self.block.save_mut(clean::NESTED).pat = value,
            Register::TscOffset => self.block.set_tsc_offset(value),
        }
    }

    #[inline]
    fn segment(&self, name: SegmentName) -> Segment {
        let save = self.block.save();
        match name {
            SegmentName::Ldtr => save.ldtr.into(),
            SegmentName::Tr => save.tr.into(),
            _ => save.segments.get(name as usize).copied().unwrap_or_default().into(),
        }
    }

    #[inline(always)]
    fn attributes(&self, name: SegmentName) -> u16 {
        self.segment(name).attributes
    }

    fn set_segment(&mut self, name: SegmentName, segment: Segment) {
        let save = self.block.save_mut(clean::SEGMENTS);
        match name {
            SegmentName::Ldtr => save.ldtr = segment.into(),
            SegmentName::Tr => save.tr = segment.into(),
            _ => {
                if let Some(state) = save.segments.get_mut(name as usize) {
                    *state = segment.into();
                }
            }
        }
        if name == SegmentName::Ss {
            // The privilege level is that of the stack (15.5.1).
            let [low, _] = segment.attributes.to_le_bytes();
            save.cpl = low >> 5 & 3;
        }
    }

    fn table(&self, name: TableName) -> TableRegister {
        let save = self.block.save();
        let state = match name {
            TableName::Global => &save.gdtr,
            TableName::Interrupt => &save.idtr,
        };
        TableRegister { base: state.base, limit: u16::try_from(state.limit & 0xffff).unwrap_or(0) }
    }

    fn set_table(&mut self, name: TableName, table: TableRegister) {
        let save = self.block.save_mut(clean::TABLES);
        let state = SegmentState { limit: table.limit.into(), base: table.base, ..SegmentState::default() };
        match name {
            TableName::Global => save.gdtr = state,
            TableName::Interrupt => save.idtr = state,
        }
    }

    #[inline]
    fn privilege(&self) -> u8 {
        self.block.save().cpl
    }

    #[inline]
    fn task_priority(&self) -> u8 {
        let [low, ..] = (self.block.control().interrupt & interrupt::TASK_PRIORITY).to_le_bytes();
        low
    }

    fn set_task_priority(&mut self, priority: u8) {
        let now = self.block.control().interrupt;
        self.block.set_interrupt(now & !interrupt::TASK_PRIORITY | u64::from(priority & 0xf));
    }

    #[inline]
    fn is_open(&self) -> bool {
        self.block.save().rflags & INTERRUPTS != 0 && !self.block.has_shadow()
    }

    #[inline(always)]
    fn end_shadow(&mut self) {
        self.block.end_shadow();
    }

    fn is_open_for_nmi(&self) -> bool {
        !self.block.has_shadow()
            && match self.nmi {
                NmiState::Open => true,
                NmiState::Blocked => false,
                NmiState::Returning(from) => self.block.save().rip != from,
            }
    }

    #[inline]
    fn inject(&mut self, delivery: Delivery) {
        if delivery.kind == DeliveryKind::External {
            self.let_in(delivery.vector);
            return;
        }
        if delivery.kind == DeliveryKind::Nmi {
            self.nmi = NmiState::Blocked;
            self.block.intercept_return(true);
        }
        // Handlers of real mode find no error code.
        let error = delivery.error.filter(|_| self.block.save().cr0 & cr0::PE != 0);
        self.block.inject(exit::injection(Delivery { error, ..delivery }));
    }

    #[inline(always)]
    fn is_injecting(&self) -> bool {
        self.block.control().event_injection != 0 || self.let_in_vector().is_some()
    }

    #[inline(always)]
    fn interrupted(&self) -> Option<Delivery> {
        exit::interrupted(self.block.control())
    }

    /// A virtual interrupt of the vector's priority is made to wait: the CPU compares with IF and CR8, and stops before it
    /// is taken (15.21.4).
    #[inline]
    fn want_window(&mut self, window: Window) {
        if self.window == window {
            return;
        }
        if let Some(vector) = self.let_in_vector() {
            // The CPU knows of one virtual interrupt only: the one that waits for the window.
            self.block.inject(exit::injection(Delivery::external(vector)));
        }
        self.window = window;
        self.set_waiting(match window {
            Window::Unwanted => 0,
            Window::Vector(vector) => {
                interrupt::REQUESTED | u64::from(vector >> 4) << interrupt::PRIORITY_SHIFT
            }
            Window::External => interrupt::REQUESTED | interrupt::ANY_TASK_PRIORITY,
        });
        self.block.intercept_window(window != Window::Unwanted);
    }

    fn want_nmi_window(&mut self) -> bool {
        false
    }

    fn forget_translations(&mut self) {
        self.block.forget_translations();
    }
}
